"""One server for the tests that need no settings of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.helpers import Running, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """One server with default settings for the whole run, activation included."""
    with serving() as running:
        yield running
