"""Slots, memory and threads are shared between owners, once there is more than one."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import pytest

from bpr_service.errors import BusyError
from bpr_service.runtime.dummy import DummyModels
from bpr_service.runtime.engine import Engine
from bpr_service.runtime.settings import EngineConfig
from bpr_service.runtime.shares import RECENT_S, FairThreads, Shares
from bpr_service.runtime.work import Hold, Memory


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_who_is_alone_may_have_everything_and_who_went_is_forgotten() -> None:
    clock = Clock()
    shares = Shares(clock)
    shares.see("a")
    for _ in range(3):
        shares.take("a")
    assert (shares.is_spent("a", 4), shares.most(100, "a")) == (False, 100)
    shares.see("b")
    assert (shares.is_spent("a", 4), shares.is_spent("a", 8), shares.is_spent("b", 1)) == (True, False, False)
    assert (shares.most(100, "a"), shares.most(1, "a")) == (75, 1)
    clock.now = RECENT_S + 1
    assert (shares.is_spent("a", 4), shares.most(100, "a")) == (False, 100)
    for _ in range(3):
        shares.give("a")
    assert shares.requests == 0


def test_memory_is_left_to_others() -> None:
    shares = Shares(Clock())
    memory = Memory(100, shares)
    greedy, other = Hold(memory, owner="greedy"), Hold(memory, owner="other")
    greedy.reserve(90)
    greedy.free(90)
    shares.see("other")
    greedy.reserve(75)
    with pytest.raises(BusyError):
        greedy.reserve(1)
    other.reserve(25)
    greedy.split(10).release()
    greedy.release()
    other.release()
    assert (memory.used_bytes, dict(memory._used_by)) == (0, {})


def test_slots_are_shared() -> None:
    engine = Engine(DummyModels(), EngineConfig(max_requests=4))
    engine.start()
    try:
        mine = [engine.admit(Hold(engine.memory, owner="a")) for _ in range(4)]
        with pytest.raises(BusyError):
            engine.admit(Hold(engine.memory, owner="a"))
        mine.pop().release()
        mine.pop().release()
        theirs = engine.admit(Hold(engine.memory, owner="b"))
        with pytest.raises(BusyError):
            engine.admit(Hold(engine.memory, owner="a"))
        for slot in (*mine, theirs):
            slot.release()
        assert engine.requests == 0
    finally:
        engine.stop()


def test_one_owner_s_tasks_do_not_hold_every_thread() -> None:
    shares = Shares()
    threads = FairThreads(2, "test", shares)
    for owner in ("hostile", "honest"):
        shares.see(owner)
    gate = threading.Event()
    stuck = [threads.submit("hostile", gate.wait, 60) for _ in range(8)]
    assert threads.submit("honest", lambda: "done").result(30) == "done"
    gate.set()
    assert all(task.result(30) for task in stuck)
    threads.stop(cancel=False)


def test_who_had_the_least_time_is_next() -> None:
    clock = Clock()
    threads = FairThreads(1, "test", Shares(clock), clock)
    order: list[str] = []
    gate = threading.Event()

    def task(owner: str, seconds: float) -> None:
        gate.wait(60)
        order.append(owner)
        clock.now += seconds

    tasks: list[Future[None]] = [threads.submit("long", task, "long", 5.0) for _ in range(3)]
    tasks += [threads.submit("short", task, "short", 1.0) for _ in range(3)]
    gate.set()
    for one in tasks:
        one.result(30)
    assert order == ["long", "short", "short", "short", "long", "long"]
    threads.stop(cancel=False)


def test_what_fails_ends_no_thread_and_what_is_stopped_takes_nothing() -> None:
    threads = FairThreads(1, "test", Shares())
    with pytest.raises(MemoryError):
        threads.submit("a", _no_memory).result(30)
    assert threads.submit("a", time.monotonic).result(30)
    gate, begun = threading.Event(), threading.Event()
    running = threads.submit("a", lambda: (begun.set(), gate.wait(60)))
    waiting = threads.submit("a", gate.wait, 60)
    assert begun.wait(30)
    threads.stop(cancel=True)
    gate.set()
    assert running.result(30)
    assert waiting.cancelled()
    with pytest.raises(RuntimeError):
        threads.submit("a", time.monotonic)


def _no_memory() -> None:
    raise MemoryError
