"""The engine: the owner of one device, shared by all requests.

A request passes through four places, and only the third touches the device::

    decode pool            feeder thread            device thread       collector, encode pool
    decode, prepare   ->   take a fair batch,   ->  predict        ->   add; finish, encode
                           cut its patches

The feeder keeps exactly one batch ready while the device works on the one before. Everything that waits is
bounded: admitted requests, patches in the queue, reserved bytes, and the time a new request would have to
wait.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Literal

from bpr_service.errors import BusyError, CancelledError, LimitError, NotReadyError
from bpr_service.runtime.device import DeviceOwner
from bpr_service.runtime.lanes import Lanes
from bpr_service.runtime.pump import Pump
from bpr_service.runtime.settings import EngineConfig, EngineEvents, ModelSource
from bpr_service.runtime.shares import NOBODY, FairThreads, Shares
from bpr_service.runtime.work import Hold, Lane, Memory, Slot, Stages, Work, past_deadline

__all__ = ["Engine", "EngineConfig", "EngineEvents", "ModelSource", "State"]

State = Literal["starting", "ready", "draining", "failed", "stopped"]

DEADLINE_CHECK_S = 0.25  # a request may shorten its deadline once its body is read


class Engine:
    """See the module. ``source`` gives the models, ``warm`` gives whole refinements to run (numba compiles there)."""

    def __init__(
        self,
        source: ModelSource,
        config: EngineConfig | None = None,
        *,
        device: str = "cpu",
        warm: Callable[[Lane], Iterable[Stages]] | None = None,
        events: EngineEvents | None = None,
    ) -> None:
        self.config = config or EngineConfig()
        self.device = device
        self.state: State = "starting"
        self.events = events or EngineEvents()
        self.shares = Shares()
        self.memory = Memory(self.config.memory_mb << 20, self.shares)
        self._changed = threading.Condition()
        self._owner = DeviceOwner()
        self._lanes = Lanes(source, self._owner, self.config.max_batch_patches, warm, self.events)
        self._pump = Pump(
            self._owner,
            self.config,
            self._changed,
            events=self.events,
            expecting=lambda: self._undecoded > 0,
            finish=self._to_encoders,
            broken=self._device_failed,
        )
        self.decoders = FairThreads(self.config.cpu_workers, "decode", self.shares)
        self._encoders = FairThreads(self.config.cpu_workers, "encode", self.shares)
        self._works: weakref.WeakSet[Work] = weakref.WeakSet()
        self._undecoded = 0
        self._patches_each = 0.0

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Load and warm every preset, then be ready. Blocks; raises the error of a preset that cannot be loaded."""
        self._owner.start()
        self._pump.start()
        try:
            self._lanes.open()
        except BaseException:
            with self._changed:
                if self.state != "stopped":
                    self.state = "failed"
            raise
        with self._changed:
            if self.state == "starting":
                self.state = "ready"

    def drain(self) -> None:
        """Admit nothing more. What was admitted goes on."""
        with self._changed:
            if self.state in ("starting", "ready"):
                self.state = "draining"
            self._changed.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until every admitted request has really ended; False where ``timeout_s`` passed first."""
        with self._changed:
            return self._changed.wait_for(lambda: self.requests == 0, timeout_s)

    def abandon(self) -> None:
        """End every request with `NotReadyError`, whatever works on it."""
        with self._changed:
            works = list(self._works)
        for work in works:
            self.cancel(work, NotReadyError("the server stopped before the work was done", fix="send it again"))

    def stop(self) -> None:
        """End the threads. Requests that are still there fail with `NotReadyError`."""
        with self._changed:
            waiting = list(self._pump.queue)
            if self.state != "failed":
                self.state = "stopped"
        for work in waiting:
            work.fail(NotReadyError("the server is stopping", fix="try another one"))
        self.decoders.stop(cancel=True)
        self._pump.stop()
        self._encoders.stop(cancel=False)

    def _device_failed(self) -> None:
        with self._changed:
            self.state = "failed"
            waiting = list(self._pump.queue)
        for work in waiting:
            self.cancel(work, self._not_ready())

    @property
    def alive(self) -> bool:
        """False after a fatal device error, or where patches do not move any more: the process should be replaced."""
        return self.state != "failed" and self._pump.works() and self.decoders.alive and self._encoders.alive

    # ------------------------------------------------------------------ models

    @property
    def default_preset(self) -> str:
        return self._lanes.default

    def lanes(self) -> list[Lane]:
        return self._lanes.all()

    def lane(self, preset: str | None) -> Lane:
        """The warm lane of ``preset``, by default the first; `UnknownName` lists those that are served."""
        return self._lanes.get(preset)

    def activate(self, model: str, version: str | None = None, commit: Callable[[], None] | None = None) -> list[Lane]:
        """`Lanes.activate` while the engine is ready; `NotReadyError` otherwise."""
        return self._lanes.activate(model, version, commit, self._check_ready)

    # ------------------------------------------------------------------ admission

    def _check_ready(self) -> None:
        if self.state != "ready":
            raise self._not_ready()

    def _not_ready(self) -> NotReadyError:
        why = {
            "starting": "the models are being loaded",
            "draining": "the server is shutting down",
            "failed": "the device has failed",
        }
        return NotReadyError(
            why.get(self.state, "the server has stopped"), fix="try again or elsewhere", retry_after_s=2.0
        )

    @property
    def requests(self) -> int:
        """Requests that are admitted and have not really ended."""
        return self.shares.requests

    @property
    def queue_patches(self) -> int:
        """Patches that wait for the device."""
        return self._pump.queue.patches

    def expected_wait_s(self) -> float:
        """How long what is admitted keeps the device busy, by its measured pace; 0 before it was measured."""
        pump = self._pump
        if not pump.pace:
            return 0.0
        return (pump.queue.patches + pump.on_device + self._undecoded * self._patches_each) / pump.pace

    def check_room(self, owner: str = NOBODY) -> None:
        """Raise what `admit` would raise now for a request of ``owner``."""
        self.shares.see(owner)
        with self._changed:
            self._check_room(owner)

    def admit(self, hold: Hold | None = None) -> Slot:
        """A slot that takes over the memory of ``hold``; `NotReadyError`, or `BusyError` with the time to come back."""
        hold = hold or Hold(self.memory)
        owner = hold.owner
        self.shares.see(owner)
        with self._changed:
            self._check_room(owner)
            self.shares.take(owner)
        return Slot(hold, partial(self._released, owner))

    def _check_room(self, owner: str) -> None:
        self._check_ready()
        wait_s = self.expected_wait_s()
        room = self.config.max_requests
        full = self.requests >= room or self.shares.is_spent(owner, room)
        if full or wait_s > self.config.max_queue_wait_s:
            raise BusyError(
                "the server is at capacity",
                fix="try again after the time in Retry-After",
                retry_after_s=min(30.0, max(1.0, math.ceil(wait_s / 2))),
            )

    def _released(self, owner: str) -> None:
        with self._changed:
            self.shares.give(owner)
            self._changed.notify_all()

    # ------------------------------------------------------------------ one request

    async def run(
        self,
        slot: Slot,
        decode: Callable[[Work], tuple[Lane, Stages]],
        encode: Callable[[Work, Any], Any],
        *,
        deadline: float,
        gone: Awaitable[Any] | None = None,
    ) -> Any:
        """Take ``slot`` over and answer, from the event loop.

        ``decode`` (a pool thread) gives the lane and the prepared request, ``encode`` (a pool thread) turns
        its result into the answer. Ends early with `DeadlineError` at ``deadline`` (`time.monotonic`), and
        with `CancelledError` when ``gone`` completes; the slot stays taken until the work has really stopped.
        """
        work = self.submit(slot, decode, encode, deadline=deadline)
        answer = asyncio.ensure_future(asyncio.wrap_future(work.future))
        waits: set[asyncio.Future[Any]] = {answer}
        watcher = asyncio.ensure_future(gone) if gone is not None else None
        if watcher is not None:
            waits.add(watcher)
        try:
            while not answer.done():
                timeout_s = min(DEADLINE_CHECK_S, max(0.0, work.remaining_s()))
                await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                if answer.done():
                    break
                if watcher is not None and watcher.done():
                    self.cancel(work, CancelledError("the caller went away"))
                elif work.remaining_s() <= 0:
                    self.cancel(work, past_deadline(work))
                else:
                    continue
                await asyncio.wait({answer})
            return answer.result()
        except asyncio.CancelledError:
            self.cancel(work, CancelledError("the request was cancelled"))
            raise
        finally:
            if watcher is not None:
                watcher.cancel()

    def submit(
        self,
        slot: Slot,
        decode: Callable[[Work], tuple[Lane, Stages]],
        encode: Callable[[Work, Any], Any],
        *,
        deadline: float,
    ) -> Work:
        """`run` without an event loop: the answer is in ``work.future``."""
        work = Work(slot, decode, encode, deadline=deadline)
        work.hold()
        with self._changed:
            self._undecoded += 1
            self._works.add(work)
        try:
            self.decoders.submit(work.owner, self._decode, work)
        except RuntimeError:
            self._decoded(work)
            work.fail(self._not_ready())
            work.let_go()
        return work

    def cancel(self, work: Work, error: BaseException) -> None:
        """End ``work`` with ``error`` now; it leaves the queue, and what is on the device runs out."""
        self._pump.drop(work, error)

    def _decoded(self, work: Work) -> None:
        with self._changed:
            self._undecoded -= 1
            self._changed.notify_all()

    def _decode(self, work: Work) -> None:
        try:
            if not work.ended and work.decode is not None:
                work.check()
                work.lane, stages = work.decode(work)
                work.stages, work.n_patches = stages, stages.n_patches
                self._enqueue(work)
        except BaseException as error:
            work.fail(error)
        finally:
            self._decoded(work)
            work.let_go()

    def _enqueue(self, work: Work) -> None:
        if work.n_patches > self.config.max_patches:
            raise LimitError(
                "too much boundary for one request",
                expected=f"at most {self.config.max_patches} patches",
                got=str(work.n_patches),
                fix="send fewer masks at once, or use a job",
            )
        if work.n_patches == 0:
            self._to_encoders(work)
            return
        with self._changed:
            self._patches_each += 0.1 * (work.n_patches - self._patches_each) if self._patches_each else work.n_patches
            pump, ahead = self._pump, self._pump.queue.patches
            wait_s = (ahead + pump.on_device + work.n_patches) / pump.pace if pump.pace else 0.0
            if ahead and (ahead + work.n_patches > self.config.max_queue_patches or wait_s > work.remaining_s()):
                raise BusyError(
                    "the queue is full",
                    fix="try again after the time in Retry-After",
                    retry_after_s=min(30.0, max(1.0, math.ceil(wait_s / 2))),
                )
            if work.ended:
                return
            work.ready_at = time.monotonic()
            pump.queue.push(work)
            self._changed.notify_all()

    def _to_encoders(self, work: Work) -> None:
        work.hold()
        self._encoders.submit(work.owner, self._finish, work)

    def _finish(self, work: Work) -> None:
        try:
            if not work.ended and work.stages is not None and work.encode is not None:
                work.check()
                with work.timed("finish"):
                    result = work.stages.finish()
                work.succeed(work.encode(work, result))
        except BaseException as error:
            work.fail(error)
        finally:
            work.let_go()
