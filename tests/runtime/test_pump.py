"""The threads around the device: what one failure, a dead thread and a hanging device come to."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from bpr_service.errors import DeviceError
from tests.runtime.doubles import held, running, send


def test_a_batch_that_cannot_be_cut_ends_its_requests_and_not_the_feeder(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        call, failures = engine._pump._owner.call, [MemoryError(), RuntimeError()]

        def scarce(function: Any) -> Any:
            if failures:
                raise failures.pop()
            return call(function)

        monkeypatch.setattr(engine._pump._owner, "call", scarce)
        for _ in range(2):
            with pytest.raises(DeviceError, match="could not be cut"):
                send(engine, 1, 3).future.result(5)
        assert send(engine, 1, 3).future.result(5)[1] == [0, 1, 2]
        assert engine.alive


@pytest.mark.parametrize("number", [0, 1])
def test_without_one_of_its_threads_the_engine_is_not_alive(number: int) -> None:
    with running() as engine:
        assert engine.alive
        gone = threading.Thread()
        gone.start()
        gone.join()
        thread, engine._pump._threads[number] = engine._pump._threads[number], gone
        assert not engine.alive
        engine._pump._threads[number] = thread


def test_patches_that_do_not_move_mean_that_it_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(stalled_s=30.0) as engine:
        now = [time.monotonic()]
        monkeypatch.setattr(engine._pump, "_clock", lambda: now[0])
        now[0] += 1000.0
        assert engine.alive, "nothing waits"
        with held(engine):
            now[0] += 29.0
            assert engine.alive
            now[0] += 2.0
            assert not engine.alive
        assert engine.alive
