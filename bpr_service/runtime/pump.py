"""From the queue to the device and back: fair batches, one ready while the device works on the one before."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from bpr_service.errors import CancelledError, DeviceError
from bpr_service.network.devices import wait_for
from bpr_service.runtime.batching import FairQueue, Slice
from bpr_service.runtime.device import DeviceOwner, is_fatal, is_out_of_memory
from bpr_service.runtime.settings import EngineConfig, EngineEvents
from bpr_service.runtime.work import Predictor, Work

log = logging.getLogger(__name__)
FAILURES_IN_A_ROW = 5
"""Batches that may fail one after the other before the device is taken for broken."""


def joined(parts: list[Any]) -> Any:
    """Patches of several requests as one batch: arrays, or tensors on a device."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(parts)


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
        clock: Callable[[], float] = time.monotonic,
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
        self._clock = clock
        self._moved_at = clock()
        """When patches last moved, or nothing waited."""
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("feeder", self._feed), ("collector", self._collect))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def works(self) -> bool:
        """Whether patches move: both threads are there, and what waits does not wait for too long."""
        if self._stopped or not self._threads[0].ident:  # not started yet
            return True
        with self._lock:
            waits = bool(self.on_device or len(self.queue))
        if not waits:
            self._moved_at = self._clock()
        late = self._clock() - self._moved_at > self._config.stalled_s
        return self._owner.is_alive and all(thread.is_alive() for thread in self._threads) and not late

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
        while not self._stopped:
            batch: list[Slice[Work]] = []
            self._permits.acquire()
            try:
                batch = self._next_batch()
                if self._to_device(batch):
                    continue
            except BaseException as error:  # no memory, most likely: the next batch may fit
                log.exception("a batch could not be cut")
                for piece in batch:
                    self._abandon(piece, DeviceError("a batch could not be cut", got=type(error).__name__))
            self._permits.release()
            del batch

    def _to_device(self, batch: list[Slice[Work]]) -> bool:
        """Cut the patches of a batch and hand them to the device; False where nobody waits for any."""
        parts, slices = [], []
        for piece in list(batch):
            work = piece.request
            try:
                if work.ended or work.stages is None:
                    raise CancelledError("ended before its patches were cut")
                with work.stage_lock, work.timed("crop"):
                    parts.append(work.stages.crops(piece.start, piece.stop))
                slices.append(piece)
            except BaseException as error:
                batch.remove(piece)
                self._abandon(piece, error)
        if not slices:
            return False
        crops = joined(parts)
        refiner = slices[0].request.lane.refiner  # type: ignore[union-attr]
        done = self._owner.call(partial(self._predict, refiner, crops, len(slices)))
        done.add_done_callback(partial(self._computed, slices))
        return True

    def _computed(self, slices: list[Slice[Work]], future: Future[Any]) -> None:
        self._results.put((slices, future))

    def _next_batch(self) -> list[Slice[Work]]:
        """Wait for patches, then up to ``max_batch_wait_ms`` for more while requests are being decoded.

        Nothing where the pump was stopped.
        """
        room = self._config.max_batch_patches
        with self._lock:
            while True:
                if self._stopped:
                    return []
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

    def _predict(self, refiner: Predictor, crops: Any, requests: int) -> tuple[Any, float]:
        """On the device thread. Returns the logits, computed, and the seconds they took."""
        self._permits.release()
        start = time.perf_counter()
        logits = self._in_halves(refiner, crops)
        wait_for(str(logits.device))
        seconds = time.perf_counter() - start
        pace = len(crops) / max(seconds, 1e-6)
        self.pace += 0.1 * (pace - self.pace) if self.pace else pace
        self._events.batch(len(crops), requests, self._config.max_batch_patches, seconds)
        return logits, seconds

    def _in_halves(self, refiner: Predictor, crops: Any) -> Any:
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
        while (item := self._results.get()) is not None:
            self._moved_at = self._clock()
            slices, future = item
            try:
                self._hand_back(slices, future)
            except BaseException:  # whatever it was, others wait for their results too
                log.exception("results could not be handed back")
            del item, future, slices

    def _hand_back(self, slices: list[Slice[Work]], future: Future[Any]) -> None:
        """Hand results back, in the order of the batches: sums of floats must not depend on the load."""
        error = future.exception()
        if error is not None:
            self._failed(slices, error)
            return
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
