"""From the queue to the device and back: fair batches, one ready while the device works on the one before."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from bpr_service.errors import CancelledError, DeviceError
from bpr_service.network.devices import wait_for
from bpr_service.runtime.batching import FairQueue, Slice
from bpr_service.runtime.device import DeviceOwner, is_fatal, is_out_of_memory
from bpr_service.runtime.settings import EngineConfig, EngineEvents
from bpr_service.runtime.work import Predictor, Work

if TYPE_CHECKING:
    from torch import Tensor

FAILURES_IN_A_ROW = 5
"""Batches that may fail one after the other before the device is taken for broken."""


def joined(parts: list[Tensor]) -> Tensor:
    """Patches of several requests as one batch."""
    import torch

    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Pump:
    """Two threads around a `DeviceOwner`: the feeder cuts the next batch, the collector hands results back.

    ``lock`` is the engine's and guards the queue; ``expecting()`` is true while requests are being decoded, for whom a
    batch may wait; ``finish(work)`` is called when the last patch of a request is in, ``broken()`` when the device is.
    """

    def __init__(
        self,
        owner: DeviceOwner,
        config: EngineConfig,
        lock: threading.Condition,
        *,
        events: EngineEvents,
        expecting: Callable[[], bool],
        finish: Callable[[Work], None],
        broken: Callable[[], None],
    ) -> None:
        self._owner, self._config, self._lock, self._events = owner, config, lock, events
        self._expecting, self._finish, self._broken = expecting, finish, broken
        self.queue: FairQueue[Work] = FairQueue()
        self.on_device = 0
        self.pace = 0.0
        """Patches a second while the device works; 0 before the first batch."""
        self._permits = threading.Semaphore(1)
        self._results: queue.SimpleQueue[tuple[list[Slice[Work]], Future[Any]] | None] = queue.SimpleQueue()
        self._failures = 0
        self._stopped = False

    def start(self) -> None:
        for name, target in (("feeder", self._feed), ("collector", self._collect)):
            threading.Thread(target=target, name=name, daemon=True).start()

    def stop(self) -> None:
        """Let both threads end; what is on the device runs out first."""
        with self._lock:
            self._stopped = True
            self._lock.notify_all()
        self._permits.release()
        self._owner.stop(10.0)
        self._results.put(None)

    def drop(self, work: Work, error: BaseException) -> None:
        """End ``work`` with ``error``: it leaves the queue, and what is on the device runs out."""
        with self._lock:
            self.queue.remove(work)
            work.fail(error)

    def _feed(self) -> None:
        while True:
            self._permits.acquire()
            batch = self._next_batch()
            if batch is None:
                return
            parts, slices = [], []
            for piece in batch:
                work = piece.request
                try:
                    if work.ended or work.stages is None:
                        raise CancelledError("ended before its patches were cut")
                    with work.stage_lock, work.timed("crop"):
                        parts.append(work.stages.crops(piece.start, piece.stop))
                    slices.append(piece)
                except BaseException as error:
                    self._abandon(piece, error)
            if not slices:
                self._permits.release()
                continue
            crops = joined(parts)
            refiner = slices[0].request.lane.refiner  # type: ignore[union-attr]
            done = self._owner.call(partial(self._predict, refiner, crops, len(slices)))
            done.add_done_callback(partial(self._computed, slices))
            del parts, slices, crops, batch, done, piece, work

    def _computed(self, slices: list[Slice[Work]], future: Future[Any]) -> None:
        self._results.put((slices, future))

    def _next_batch(self) -> list[Slice[Work]] | None:
        """Wait for patches, then up to ``max_batch_wait_ms`` for more while requests are being decoded."""
        room = self._config.max_batch_patches
        with self._lock:
            while True:
                if self._stopped:
                    return None
                ready = self.queue.head_patches()
                wait_s: float | None = None
                if ready:
                    wait_s = self.queue.oldest_ready_at() + self._config.max_batch_wait_ms / 1e3 - time.monotonic()
                    if ready >= room or not self._expecting() or wait_s <= 0:
                        break
                self._lock.wait(wait_s)
            batch = self.queue.take(room)
            for piece in batch:
                piece.request.hold()
                self.on_device += piece.stop - piece.start
            return batch

    def _predict(self, refiner: Predictor, crops: Tensor, requests: int) -> tuple[Tensor, float]:
        """On the device thread. Returns the logits, computed, and the seconds they took."""
        self._permits.release()
        start = time.perf_counter()
        logits = self._in_halves(refiner, crops)
        wait_for(logits.device)
        seconds = time.perf_counter() - start
        pace = len(crops) / max(seconds, 1e-6)
        self.pace += 0.1 * (pace - self.pace) if self.pace else pace
        self._events.batch(len(crops), requests, self._config.max_batch_patches, seconds)
        return logits, seconds

    def _in_halves(self, refiner: Predictor, crops: Tensor) -> Tensor:
        """Predict; a batch that does not fit the device's memory is halved until it does."""
        try:
            return refiner.logits(crops)
        except BaseException as error:
            if not is_out_of_memory(error):
                raise
            if len(crops) == 1:
                raise DeviceError("the device has no memory left for one patch", fix="free some") from error
        self._events.out_of_memory(len(crops))
        half = len(crops) // 2
        return joined([self._in_halves(refiner, crops[:half]), self._in_halves(refiner, crops[half:])])

    def _collect(self) -> None:
        """Hand results back, in the order of the batches: sums of floats must not depend on the load."""
        while (item := self._results.get()) is not None:
            slices, future = item
            error = future.exception()
            if error is not None:
                self._failed(slices, error)
                continue
            self._failures = 0
            logits, seconds = future.result()
            offset = 0
            for piece in slices:
                work, n = piece.request, piece.stop - piece.start
                try:
                    if not work.ended and work.stages is not None:
                        work.add_ms("network", seconds * 1e3)
                        with work.stage_lock, work.timed("add"):
                            work.stages.add(piece.start, logits[offset : offset + n])
                        work.added += n
                        if work.added == work.n_patches:
                            self._finish(work)
                except BaseException as failure:
                    work.fail(failure)
                finally:
                    self._off_device(piece)
                    offset += n
            del item, future, slices, logits, piece, work

    def _abandon(self, piece: Slice[Work], error: BaseException) -> None:
        self.drop(piece.request, error)
        self._off_device(piece)

    def _off_device(self, piece: Slice[Work]) -> None:
        with self._lock:
            self.on_device -= piece.stop - piece.start
        piece.request.let_go()

    def _failed(self, slices: list[Slice[Work]], error: BaseException) -> None:
        """Fail the requests of a batch; a fatal error, or several in a row, is said to be the device's end."""
        self._failures += 1
        if is_fatal(error) or self._owner.failure is not None or self._failures >= FAILURES_IN_A_ROW:
            self._broken()
        for piece in slices:
            self._abandon(piece, error)
