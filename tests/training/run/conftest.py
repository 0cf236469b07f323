"""The tests of runs compute on one thread."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _threads(one_thread: None) -> None:
    """For every test here."""
