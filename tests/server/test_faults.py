"""Faults put into every thread and dependency of a server: it says so, and the next request is answered."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bpr_service.runtime.dummy import DummyModels
from bpr_service.server.codec.pool import Pool
from bpr_service.server.codec.shared import Block
from bpr_service.server.http import auth
from bpr_service.server.http.auth import Keys, new_key
from bpr_service.server.http.refine import RefineCall
from bpr_service.server.metrics import JobFigures
from tests.server.helpers import Running, body, serving


@pytest.fixture
def running() -> Iterator[Running]:
    with serving() as server:
        yield server


def ask(server: Running, **headers: str) -> int:
    return server.client.post("/v1/refine/instance", json=body(), headers=headers).status_code


def once(error: BaseException, real: Callable[..., Any]) -> Callable[..., Any]:
    """``real``, but for the first call, which raises."""
    left = [error]

    def faulty(*args: Any, **named: Any) -> Any:
        if left:
            raise left.pop()
        return real(*args, **named)

    return faulty


PLACES: dict[str, Callable[[Running], tuple[Any, str]]] = {
    "event loop: a body": lambda server: (Block, "append"),
    "decode thread": lambda server: (RefineCall, "decode"),
    "decode thread: a worker": lambda server: (Pool, "step"),
    "feeder thread": lambda server: (server.engine._pump, "_to_device"),
    "device thread": lambda server: (server.engine._pump, "_in_halves"),
    "collector thread": lambda server: (server.engine._pump, "_finish"),
    "encode thread": lambda server: (RefineCall, "encode"),
}
SHORT = (MemoryError(), OSError(errno.ENOMEM, "no memory"), OSError(errno.EMFILE, "files"), OSError(errno.EIO, "disk"))


@pytest.mark.parametrize("error", SHORT, ids=["MemoryError", "ENOMEM", "EMFILE", "EIO"])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_short_costs_one_request(
    place: str, error: Exception, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name = PLACES[place](running)
    assert ask(running) == 200
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, once(error, getattr(owner, name)))
        assert ask(running) == 503
        assert ask(running) == 200
    assert running.client.get("/livez").status_code == 200
    assert running.engine.wait_idle(10)


@pytest.mark.parametrize("name", ["decoders", "_encoders"])
def test_without_one_of_its_threads_it_is_not_alive(name: str, running: Running) -> None:
    assert ask(running) == 200  # they begin with their first task
    gone = threading.Thread()
    gone.start()
    gone.join()
    threads = getattr(running.engine, name)
    kept, threads._threads[0] = threads._threads[0], gone
    assert running.client.get("/livez").status_code == 503
    threads._threads[0] = kept
    assert running.client.get("/livez").status_code == 200


def test_the_process_that_forks_may_die() -> None:
    pool = Pool(2)
    pool.start()
    with serving(pool=pool) as server:
        assert ask(server) == 200
        forker = pool._forker
        assert forker is not None
        forker[0].kill()
        forker[0].wait()
        while not pool._idle.empty():  # so that new ones are needed
            worker = pool._idle.get()
            if worker is not None:
                worker.close()
        for _ in range(2):
            pool._idle.put(None)
        assert ask(server) == 200
    pool.stop()


@pytest.mark.parametrize("days", [-4000, 4000])
def test_a_clock_that_jumps_is_nobody_s_deadline(days: int, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + days * 86_400)
    assert ask(running) == 200
    assert running.client.get("/livez").status_code == 200


def test_after_a_long_sleep_of_the_machine_what_was_under_way_is_late_and_the_rest_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, jump = time.monotonic, [0.0]
    decode = RefineCall.decode

    def slept(self: Any, work: Any) -> Any:
        jump[0] += 10_000.0
        return decode(self, work)

    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda _: real())  # other servers of the tests have loops too
    monkeypatch.setattr(time, "monotonic", lambda: real() + jump[0])
    with serving() as server:  # which ends before the clock goes back
        with monkeypatch.context() as patch:
            patch.setattr(RefineCall, "decode", slept)
            assert ask(server) == 504
        assert ask(server) == 200
        assert server.client.get("/livez").status_code == 200


def test_a_disk_that_hangs_under_the_keys_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, kept = new_key("a", ("refine",))
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([kept.model_dump(mode="json")]))
    keys, hang = Keys(path=path), threading.Event()

    def stuck(path: Path) -> None:
        hang.wait(60)

    monkeypatch.setattr(auth, "_stamp", stuck)
    with serving(keys=keys) as server:
        for _ in range(3):
            assert ask(server, authorization=f"Bearer {key}") == 200
        assert ask(server, authorization="Bearer no") == 401
        hang.set()


def test_a_log_that_cannot_be_written_costs_no_request(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = threading.Event()

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            tried.set()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(logging, "raiseExceptions", False)
    log = logging.getLogger("bpr_service.server")
    handler, level = logging.StreamHandler(Full()), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        assert ask(running) == 200
        assert tried.wait(10)
        assert ask(running) == 200
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "disk"), RuntimeError("database")])
def test_figures_that_cannot_be_had_are_none(error: Exception) -> None:
    class Away:
        def load(self) -> None:
            raise error

    figures = JobFigures(Away())  # type: ignore[arg-type]
    figures.look()
    assert figures.latest() is None


def test_a_model_that_cannot_be_read_leaves_the_one_that_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    models = DummyModels()
    with serving(models=models) as server:
        monkeypatch.setattr(models, "open", once(OSError(errno.EIO, "storage"), models.open))
        with pytest.raises(Exception, match="could not be activated"):
            server.engine.activate("dummy", "v2")
        assert ask(server) == 200
