"""An installation of jobs a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs.fleet import Fleet


@pytest.fixture(params=["sqlite", "postgres"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    """On SQLite, and on PostgreSQL."""
    fleet = Fleet(tmp_path, request.getfixturevalue("postgres_url") if request.param == "postgres" else "")
    yield fleet
    fleet.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Fleet]:
    """On SQLite."""
    fleet = Fleet(tmp_path, "")
    yield fleet
    fleet.close()
