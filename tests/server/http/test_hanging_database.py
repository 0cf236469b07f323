"""A jobs database that takes connections and never answers: it keeps nobody but its own callers waiting."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bpr_service.errors import BusyError, NotReadyError
from bpr_service.jobs.engine import JobEngine
from bpr_service.jobs.settings import JobSettings
from bpr_service.server.http.jobs import STREAMS, STREAMS_EACH, JobThreads, Looks, Streams, job_router
from bpr_service.server.metrics import JobFigures, Metrics
from tests.server.helpers import Running, body, serving


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a database that says nothing; its connections are cut at the end."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as door:

        def take() -> None:
            while True:
                try:
                    taken.append(door.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"postgresql://secret-user@127.0.0.1:{door.getsockname()[1]}/none"
        door.shutdown(socket.SHUT_RDWR)
        for connection in taken:
            connection.close()


@pytest.fixture
def server(silent: str, tmp_path: Path) -> Iterator[Running]:
    engine = JobEngine(JobSettings(database=silent, folder=str(tmp_path), statement_s=1.0), patience_s=0.0)
    metrics = Metrics()
    figures = metrics.watch_jobs(JobEngine(engine.settings, patience_s=0.0))
    with serving(job_router=job_router(engine, 0.5), metrics=metrics, beside=[figures]) as running:
        yield running
    engine.database.engine.dispose()


def test_scrapes_and_requests_do_not_wait_for_it(server: Running) -> None:
    def call(number: int) -> int:
        path = ("/metrics", "/v1/jobs", "/", "/readyz")[number % 4]
        return server.client.get(path).status_code

    with ThreadPoolExecutor(60) as pool:
        found = [pool.submit(call, number) for number in range(180)]
        assert server.client.post("/v1/refine/instance", json=body()).status_code == 200
        statuses = [one.result(60) for one in found]
    assert {status for number, status in enumerate(statuses) if number % 4 != 1} == {200}
    assert {status for number, status in enumerate(statuses) if number % 4 == 1} <= {429, 503}
    assert "bpr_jobs_database_up 0.0" in server.client.get("/metrics").text


def test_what_it_is_called_is_not_told(server: Running) -> None:
    answer = server.client.get("/v1/jobs")
    assert answer.status_code == 503
    assert not any(word in answer.text for word in ("secret-user", "127.0.0.1", "postgres"))
    assert answer.headers["retry-after"]


def test_a_locked_sqlite_is_waited_for_as_long_as_a_statement(tmp_path: Path) -> None:
    engine = JobEngine(JobSettings(folder=str(tmp_path), statement_s=2.5), patience_s=0.0)
    with engine.database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 2500
    engine.close()


def test_figures_are_asked_by_one_thread_and_scrapes_read_them() -> None:
    asked: list[int] = []

    class Away:
        def load(self) -> None:
            asked.append(threading.get_ident())
            raise NotReadyError("away")

    metrics = Metrics()
    figures = metrics.watch_jobs(Away())  # type: ignore[arg-type]
    assert isinstance(figures, JobFigures)
    for _ in range(45):
        assert b"bpr_jobs_database_up 0.0" in metrics.text()
    assert asked == []


def test_streams_of_a_job_share_one_look_at_it() -> None:
    asked: list[str] = []

    class Jobs:
        def get(self, job_id: str) -> str:
            asked.append(job_id)
            return job_id

    async def watch() -> list[Any]:
        looks = Looks(Jobs(), JobThreads())  # type: ignore[arg-type]
        return await asyncio.gather(*(looks.get(job_id) for job_id in ["a", "b"] * 32))

    assert asyncio.run(watch()) == ["a", "b"] * 32
    assert sorted(asked) == ["a", "b"]


def test_event_streams_are_bounded_for_a_key_and_in_all() -> None:
    streams = Streams()
    for _ in range(STREAMS_EACH):
        streams.begin("a")
    with pytest.raises(BusyError):
        streams.begin("a")
    others = [f"key{number // STREAMS_EACH}" for number in range(STREAMS - STREAMS_EACH)]
    for name in others:
        streams.begin(name)
    with pytest.raises(BusyError):
        streams.begin("last")
    streams.end("a")
    streams.begin("last")
