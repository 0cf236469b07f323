"""The engine against a predictor that can be held up, fail, or run out of memory."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest

from bpr_service.errors import (
    BusyError,
    CancelledError,
    ConflictError,
    DeadlineError,
    DeviceError,
    FatalDeviceError,
    LimitError,
    ModelError,
    NotReadyError,
    UnknownName,
)
from bpr_service.runtime.engine import Engine, EngineEvents
from tests.runtime.doubles import Patches, Predictor, Source, held, running, send, started
from tests.services import wait_for


def wait_until(true: Any) -> None:
    wait_for("it comes true", true, pause_s=0.002)


def wait_an_hour_for_company(engine: Engine) -> None:
    """In place of ``max_batch_wait_ms``: what does not wait that long does not wait."""
    engine._pump._config = engine._pump._config.model_copy(update={"max_batch_wait_ms": 3.6e6})


def test_every_patch_of_every_request_comes_back_in_order() -> None:
    with running(max_batch_patches=16) as engine:
        works = [send(engine, tag, n) for tag, n in enumerate((1, 100, 0, 17, 16, 333))]
        for work, n in zip(works, (1, 100, 0, 17, 16, 333), strict=True):
            assert work.future.result(60) == ("v1", list(range(n)))


def test_patches_of_different_requests_share_a_batch() -> None:
    with running(max_batch_patches=64, cpu_workers=1) as engine:
        predictor: Predictor = engine.lanes()[0].refiner
        with held(engine):
            send(engine, 1, 5)  # becomes the batch that is kept ready
            wait_until(lambda: engine._pump.on_device == 6)
            works = [send(engine, tag, 6) for tag in (2, 3, 4)]
            wait_until(lambda: engine.queue_patches == 18)
        for work in works:
            work.future.result(60)
        assert [2] * 6 + [3] * 6 + [4] * 6 in predictor.batches


def test_batching_off_is_a_batch_of_one() -> None:
    with running(max_batch_patches=1) as engine:
        assert send(engine, 1, 9).future.result(60)[1] == list(range(9))
        assert all(len(batch) == 1 for batch in engine.lanes()[0].refiner.batches)


def test_a_long_request_does_not_starve_a_short_one() -> None:
    with running(Source(predictor=Predictor(call_ms=5)), max_batch_patches=64) as engine:
        long = send(engine, 1, 4000)
        wait_until(lambda: len(engine.lanes()[0].refiner.batches) > 2)
        short = send(engine, 2, 20)
        short.future.result(60)
        assert not long.future.done()
        since = [i for i, batch in enumerate(engine.lanes()[0].refiner.batches) if 2 in batch]
        assert len(since) <= 2
        assert long.future.result(60)[1] == list(range(4000))


def test_a_lone_request_does_not_wait_for_company() -> None:
    with running() as engine:
        wait_an_hour_for_company(engine)
        send(engine, 1, 3).future.result(60)


def test_a_batch_waits_for_a_request_that_is_being_decoded() -> None:
    with running(max_batch_patches=8, cpu_workers=2) as engine:
        wait_an_hour_for_company(engine)
        decoding, decoded = threading.Event(), threading.Event()

        def slow(work: Any) -> Any:
            decoding.set()
            assert decoded.wait(60)
            return engine.lane(None), Patches(2, 4)

        late = engine.submit(engine.admit(), slow, lambda w, r: r, deadline=time.monotonic() + 150)
        assert decoding.wait(60)
        early = send(engine, 1, 4)
        wait_until(lambda: engine.queue_patches == 4)
        decoded.set()
        early.future.result(60)
        late.future.result(60)
        assert engine.lanes()[0].refiner.batches == [[1] * 4 + [2] * 4]


def test_a_cancelled_request_leaves_the_queue_and_frees_its_slot() -> None:
    with running() as engine, held(engine):
        ready = send(engine, 1, 1)
        wait_until(lambda: engine._pump.on_device == 2)
        work = send(engine, 2, 500)
        wait_until(lambda: engine.queue_patches == 500)
        engine.cancel(work, CancelledError("the caller went away"))
        assert engine.queue_patches == 0
        assert work.slot.released
        with pytest.raises(CancelledError):
            work.future.result(0)
        assert not ready.slot.released


def test_a_slot_is_freed_only_when_the_device_is_done_with_it() -> None:
    with running(max_requests=1) as engine:
        predictor: Predictor = engine.lanes()[0].refiner
        predictor.gate = threading.Event()
        work = send(engine, 1, 3)
        assert predictor.running.wait(60)
        engine.cancel(work, DeadlineError("late"))
        assert work.future.done()
        assert engine.requests == 1, "the device still works for it"
        with pytest.raises(BusyError):
            engine.admit()
        predictor.gate.set()
        wait_until(lambda: engine.requests == 0)


def test_a_slot_is_held_while_a_decoder_that_was_given_up_on_still_runs() -> None:
    with running(max_requests=1) as engine:
        go, inside = threading.Event(), threading.Event()

        def stuck(work: Any) -> Any:
            inside.set()
            go.wait(60)
            return engine.lane(None), Patches(1, 3)

        async def call() -> None:
            with pytest.raises(DeadlineError, match=r"expected an answer within 0\.1 s"):
                await engine.run(engine.admit(), stuck, lambda w, r: r, deadline=time.monotonic() + 0.1)
            assert engine.requests == 1
            go.set()

        asyncio.run(call())
        wait_until(lambda: engine.requests == 0)


def test_the_caller_going_away_ends_the_request() -> None:
    with running() as engine, held(engine):

        async def call() -> None:
            async def leaves() -> None:
                await asyncio.sleep(0.05)

            send(engine, 1, 1)
            with pytest.raises(CancelledError):
                await engine.run(
                    engine.admit(),
                    lambda work: (engine.lane(None), Patches(1, 400)),
                    lambda w, r: r,
                    deadline=time.monotonic() + 60,
                    gone=leaves(),
                )

        asyncio.run(call())
        assert engine.queue_patches == 0


def test_a_deadline_that_is_shortened_after_the_start_holds() -> None:
    with running() as engine, held(engine):

        def decode(work: Any) -> Any:
            work.deadline = work.started_at + 0.2
            return engine.lane(None), Patches(1, 30)

        async def call() -> None:
            with pytest.raises(DeadlineError):
                await engine.run(engine.admit(), decode, lambda w, r: r, deadline=time.monotonic() + 3600)

        asyncio.run(call())


def test_at_capacity_admission_says_when_to_come_back() -> None:
    with running(max_requests=2) as engine:
        slots = [engine.admit(), engine.admit()]
        with pytest.raises(BusyError) as caught:
            engine.admit()
        assert caught.value.retry_after_s >= 1
        for slot in slots:
            slot.release()
            slot.release()  # twice is once
        assert engine.requests == 0


def test_a_queue_that_would_take_too_long_refuses_before_decoding() -> None:
    with running(Source(predictor=Predictor(call_ms=20)), max_batch_patches=8, max_queue_wait_s=0.5) as engine:
        send(engine, 1, 40).future.result(60)  # the pace is measured: 400 patches a second
        long = send(engine, 1, 1000)
        wait_until(lambda: engine.queue_patches > 500)
        assert engine.expected_wait_s() > 0.5
        with pytest.raises(BusyError):
            engine.admit()
        engine.cancel(long, CancelledError())


def test_a_request_that_cannot_make_its_deadline_is_refused_not_kept() -> None:
    with running(Source(predictor=Predictor(call_ms=20)), max_batch_patches=8, max_queue_wait_s=60) as engine:
        send(engine, 1, 40).future.result(60)
        long = send(engine, 1, 1000)
        wait_until(lambda: engine.queue_patches > 500)
        with pytest.raises(BusyError, match="the queue is full"):
            send(engine, 2, 10, timeout_s=0.3).future.result(60)
        engine.cancel(long, CancelledError())


def test_the_queue_of_patches_is_bounded() -> None:
    with running(max_queue_patches=100) as engine, held(engine):
        ready = send(engine, 1, 1)
        wait_until(lambda: engine._pump.on_device == 2)
        waiting = send(engine, 2, 90)
        wait_until(lambda: engine.queue_patches == 90)
        with pytest.raises(BusyError, match="the queue is full"):
            send(engine, 3, 20).future.result(60)
        assert not waiting.future.done()
        assert not ready.future.done()


def test_too_many_patches_in_one_request() -> None:
    with running(max_patches=10) as engine, pytest.raises(LimitError, match="at most 10 patches, got 11"):
        send(engine, 1, 11).future.result(60)


def test_a_batch_that_does_not_fit_is_halved() -> None:
    class Counted(EngineEvents):
        halved = 0

        def out_of_memory(self, patches: int) -> None:
            self.halved += 1

    with running(max_batch_patches=32) as engine:
        engine._pump._events = engine.events = Counted()
        engine.lanes()[0].refiner.room = 9
        assert send(engine, 1, 64).future.result(60)[1] == list(range(64))
        assert engine.events.halved
        engine.lanes()[0].refiner.room = 0
        with pytest.raises(DeviceError, match="no memory left for one patch"):
            send(engine, 2, 3).future.result(60)
        assert engine.alive


def test_a_failed_batch_fails_its_requests_only() -> None:
    with running() as engine:
        engine.lanes()[0].refiner.error = ValueError("bad batch")
        with pytest.raises(ValueError, match="bad batch"):
            send(engine, 1, 3).future.result(60)
        engine.lanes()[0].refiner.error = None
        assert send(engine, 2, 3).future.result(60)[1] == [0, 1, 2]
        assert engine.alive


def test_a_fatal_device_error_fails_liveness_and_everything_that_waits() -> None:
    with running() as engine:
        engine.lanes()[0].refiner.error = FatalDeviceError("the device fell off the bus")
        with pytest.raises(DeviceError):
            send(engine, 1, 3).future.result(60)
        wait_until(lambda: not engine.alive)
        with pytest.raises(NotReadyError, match="the device has failed"):
            engine.admit()


def test_five_failed_batches_in_a_row_are_a_broken_device() -> None:
    with running() as engine:
        engine.lanes()[0].refiner.error = RuntimeError("who knows")
        for tag in range(5):
            assert engine.alive
            with pytest.raises(RuntimeError):
                send(engine, tag, 1).future.result(60)
        wait_until(lambda: not engine.alive)


def test_an_error_in_finish_or_encode_frees_the_slot() -> None:
    with running() as engine:

        def broken(work: Any, result: Any) -> Any:
            raise ZeroDivisionError

        work = engine.submit(
            engine.admit(), lambda w: (engine.lane(None), Patches(1, 2)), broken, deadline=time.monotonic() + 60
        )
        with pytest.raises(ZeroDivisionError):
            work.future.result(60)
        wait_until(lambda: engine.requests == 0)


# ---------------------------------------------------------------- models


def test_requests_finish_on_the_version_they_started_with() -> None:
    with running(Source(predictor=Predictor(call_ms=10)), max_batch_patches=8) as engine:
        old = send(engine, 1, 200)
        wait_until(lambda: engine.queue_patches > 0)
        lanes = engine.activate("model-balanced", "v2")
        assert [lane.version for lane in lanes] == ["v2"]
        new = send(engine, 2, 8)
        assert new.future.result(60)[0] == "v2"
        assert old.future.result(60) == ("v1", list(range(200)))


def test_versions_never_share_a_batch() -> None:
    with running(max_batch_patches=64, cpu_workers=1) as engine:
        predictor: Predictor = engine.lanes()[0].refiner
        with held(engine) as gate:
            works = [send(engine, 1, 4)]
            wait_until(lambda: engine._pump.on_device == 5)
            works.append(send(engine, 2, 4))
            wait_until(lambda: engine.queue_patches == 4)
            engine._lanes._lanes = {"balanced": Source(predictor=predictor).open("balanced", None, "v2")}
            works.append(send(engine, 3, 4))
            wait_until(lambda: engine.queue_patches == 8)
            gate.set()
        for work in works:
            work.future.result(60)
        assert all(len(set(batch)) == 1 for batch in predictor.batches)


@pytest.mark.parametrize("error", [ModelError("damaged"), OSError("disk")])
def test_an_activation_that_fails_changes_nothing(error: BaseException) -> None:
    source = Source()
    with running(source) as engine:
        source.broken = error
        with pytest.raises(ModelError):
            engine.activate("model-balanced", "v2")
        assert [lane.version for lane in engine.lanes()] == ["v1"]
        assert send(engine, 1, 4).future.result(60)[0] == "v1"


def test_a_version_that_gives_no_numbers_is_not_activated() -> None:
    source = Source()
    with running(source) as engine:
        good = source.predictor

        class Broken(Predictor):
            def logits(self, crops: np.ndarray) -> np.ndarray:
                return np.full((len(crops), 4, 4), np.nan, np.float32)

        source.predictor = Broken()
        with pytest.raises(ModelError, match="finite logits"):
            engine.activate("model-balanced", "v2")
        assert engine.lanes()[0].refiner is good


def test_where_the_activation_cannot_be_kept_it_is_rolled_back() -> None:
    with running() as engine:

        def commit() -> None:
            raise ModelError("the store is read-only")

        with pytest.raises(ModelError, match="read-only"):
            engine.activate("model-balanced", "v2", commit)
        assert [lane.version for lane in engine.lanes()] == ["v1"]


def test_one_activation_at_a_time_and_only_of_what_is_served() -> None:
    with running() as engine:
        with pytest.raises(UnknownName, match="model-balanced"):
            engine.activate("other")
        with engine._lanes._activation, pytest.raises(ConflictError):
            engine.activate("model-balanced")


def test_an_unknown_preset_lists_those_served() -> None:
    with running(Source("fast", "best")) as engine, pytest.raises(UnknownName, match="best, fast"):
        send(engine, 1, 2, preset="balanced").future.result(60)


def test_a_preset_that_cannot_be_loaded_stops_the_start() -> None:
    source = Source()
    source.broken = ModelError("damaged")
    engine = Engine(source)
    with pytest.raises(ModelError):
        engine.start()
    assert not engine.alive
    engine.stop()


# ---------------------------------------------------------------- the end


def test_draining_admits_nothing_and_finishes_what_is_there() -> None:
    with running(Source(predictor=Predictor(call_ms=5)), max_batch_patches=8) as engine:
        work = send(engine, 1, 100)
        engine.drain()
        with pytest.raises(NotReadyError, match="shutting down"):
            engine.admit()
        assert engine.wait_idle(60)
        assert work.future.result(0)[1] == list(range(100))


def test_wait_idle_gives_up_in_time() -> None:
    with running() as engine, held(engine):
        assert not engine.wait_idle(0.1)


def test_stop_fails_what_waits() -> None:
    engine = started(max_batch_patches=1)
    predictor: Predictor = engine.lanes()[0].refiner
    predictor.gate = threading.Event()
    works = [send(engine, tag, 50) for tag in range(3)]
    wait_until(lambda: engine.queue_patches > 100)
    threading.Timer(0.1, predictor.gate.set).start()
    engine.stop()
    with pytest.raises(NotReadyError):
        works[2].future.result(60)
