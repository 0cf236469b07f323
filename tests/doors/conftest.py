"""A server, a small model, and the doors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doors.doors import Doors
from tests.jobs.samples import tiny_model
from tests.server.helpers import Running, serving


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


@pytest.fixture
def doors(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> Doors:
    """The server starts where a test first asks for it."""

    def server() -> Running:
        running: Running = request.getfixturevalue("server")
        return running

    return Doors(model, server, tmp_path)
