"""Loader processes feed the device: they read, prepare, cut patches, put masks together and encode.

The process that owns the device runs nothing but the network, in a thread of its own, and writes down outcomes. Where
the device is an accelerator, patches are cut and averaged there too, as they are from Python: the same bits.
A loader works on two units at once, so while one waits for the network the other uses the processor. Patches and
logits change places in shared memory: a `SharedBuffer` holds the crops of one batch and then its logits. Batches never
mix images, so what comes out of an image does not depend on its neighbours.

Letters: n patches of a batch, S ``network_size_px``, C output maps.
"""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from bpr_service.config import RefineConfig
from bpr_service.errors import BprError, DeviceError
from bpr_service.formats import PredictionFormat, Unit
from bpr_service.jobs.refine.loader_process import AHEAD, THREADS, RefinerSpec, Told, loader_main
from bpr_service.jobs.refine.shared_buffer import SharedBuffer
from bpr_service.jobs.refine.unit import Outcome, audit_unit, refine_unit, untouched
from bpr_service.network.devices import wait_for
from bpr_service.network.model import Predict, Runs
from bpr_service.refine.prepared import Prepared
from bpr_service.refine.refiner import Refiner

MAX_STILLBORN = 3
"""Loaders in a row that may be killed before they were ready."""


@dataclass(slots=True)
class Busy:
    """How long the network ran, and on what."""

    seconds: float = 0.0
    patches: int = 0
    batches: list[tuple[float, float, int]] = field(default_factory=list)
    """(begin, end, patches) of each batch on the clock of `time.perf_counter`."""
    keep_batches: bool = False

    def add(self, begin: float, end: float, patches: int) -> None:
        self.seconds += end - begin
        self.patches += patches
        if self.keep_batches:
            self.batches.append((begin, end, patches))


class TimedModel:
    """A model that writes down when its network ran; it waits for the device to know."""

    def __init__(self, model: Runs, busy: Busy) -> None:
        self.card, self.device, self.accelerator = model.card, model.device, model.accelerator
        self.name, self.settle = model.name, model.settle
        self.model, self._busy = model, busy

    def predictor(self, config: RefineConfig) -> Predict:
        """See `Runs.predictor`."""
        run = self.model.predictor(config)

        def predict(crops: Any) -> Any:
            begin = time.perf_counter()
            logits = run(crops)
            wait_for(self.device)
            self._busy.add(begin, time.perf_counter(), len(crops))
            return logits

        return predict


class RefinerPool:
    """A Refiner on one device and ``workers`` loader processes; none: all in this process, one unit at a time.

    Keep it: loading the model and starting the loaders is the slow part.
    """

    def __init__(self, spec: RefinerSpec, *, device: str = "cpu", workers: int = 0, busy: Busy | None = None) -> None:
        self.spec, self.workers, self.busy = spec, workers, busy or Busy()
        loaded = spec.load(device=device)
        self.refiner = Refiner(TimedModel(loaded.model, self.busy), loaded.config)
        self._loaders: list[_Loader] = []
        self._asked: queue.SimpleQueue[tuple[_Loader, int, int | Prepared[Any]] | None] = queue.SimpleQueue()
        self._device_error: BaseException | None = None
        self._device_thread: threading.Thread | None = None
        self._stillborn = 0

    def __enter__(self) -> RefinerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        file: PredictionFormat,
        units: Iterable[Unit],
        *,
        ignore_label: int | None = None,
        audit: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Outcome]:
        """Refine units, or `audit` them; outcomes come as they are ready.

        Ends early, without those under way, once ``stop()``.

        Raises:
            DeviceError: the device failed, or loaders die one after the other.
        """
        job = (file.task, file.name, file.paths, ignore_label, audit)
        if self.workers:
            yield from self._run(file, job, units, stop)
            return
        do = audit_unit if audit else refine_unit
        for unit in units:
            if stop():
                return
            yield do(self.refiner, file, unit, ignore_label)

    def _run(
        self, file: PredictionFormat, job: Any, units: Iterable[Unit], stop: Callable[[], bool]
    ) -> Iterator[Outcome]:
        self._start()
        try:
            yield from self._exchange(file, job, units, stop)
        finally:
            if any(loader.under_way for loader in self._loaders):
                self.close()  # what they would still send belongs to nobody

    def _exchange(
        self, file: PredictionFormat, job: Any, units: Iterable[Unit], stop: Callable[[], bool]
    ) -> Iterator[Outcome]:
        waiting, suspects, source = deque[Unit](), deque[Unit](), iter(units)
        retried: set[int] = set()
        given = THREADS + (AHEAD if file.is_remote else 0)
        while True:
            for loader in self._loaders:
                if suspects and not loader.under_way and not stop():
                    loader.give(job, suspects.popleft())
                if suspects or retried & loader.under_way.keys():
                    continue  # one that may have killed a loader has its second try alone
                while len(loader.under_way) <= given and not stop():
                    unit = waiting.popleft() if waiting else next(source, None)
                    if unit is None:
                        break
                    loader.give(job, unit)
            if not any(loader.under_way for loader in self._loaders):
                return
            for loader in self._ready():
                message = loader.receive()
                if message is None:  # it died of one of those that it worked on
                    had = self._replace(loader)
                    waiting.extend(had[THREADS:])
                    for unit in had[:THREADS]:
                        if unit.number in retried:
                            why = f"{unit.name}: a loader process died on it twice (out of memory?)"
                            yield Outcome(unit.number, unit.image, failed=[why], encoded=untouched(file, unit))
                        else:
                            retried.add(unit.number)
                            suspects.append(unit)
                elif message[0] in ("predict", "run"):
                    self._asked.put((loader, message[1], message[2]))
                else:
                    outcome: Outcome | BaseException = message[2]
                    loader.under_way.pop(message[1], None)
                    if isinstance(outcome, BaseException):
                        raise outcome
                    yield outcome
            if self._device_error is not None:
                raise self._device_error
            if stop():
                return

    def _ready(self) -> Iterator[_Loader]:
        """Loaders that have sent something or died."""
        by_end = {loader.connection: loader for loader in self._loaders}
        for end in wait(list(by_end), timeout=0.5):
            yield by_end[end]  # type: ignore[index]

    # --- the device ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._loaders:
            return
        self._device_error = None
        self._loaders = [self._new_loader() for _ in range(self.workers)]
        self._device_thread = threading.Thread(target=self._serve_loaders, name="device", daemon=True)
        self._device_thread.start()

    def _new_loader(self) -> _Loader:
        config = self.refiner.config
        buffer_bytes = config.batch_size * config.patch.network_size_px**2 * 4 * self.refiner.card.outputs
        return _Loader(Told(self.refiner.card, config, self.refiner.resides), buffer_bytes)

    def _replace(self, loader: _Loader) -> list[Unit]:
        index = self._loaders.index(loader)
        units = list(loader.under_way.values())
        loader.close()
        self._stillborn = 0 if loader.was_ready else self._stillborn + 1
        killed = (loader.process.exitcode or 0) < 0  # by a signal, so perhaps not of its own fault
        if self._stillborn > (MAX_STILLBORN if killed else 0):
            raise DeviceError(
                "loader processes cannot start",
                expected="a process that prepares images",
                got=f"exit code {loader.process.exitcode}",
                fix="see the log above; where they are killed for memory, take fewer workers",
            )
        self._loaders[index] = self._new_loader()
        return units

    def _serve_loaders(self) -> None:
        """The device thread: crops in a buffer become logits in the same buffer, a prepared image its result."""
        while (asked := self._asked.get()) is not None:
            loader, buffer, what = asked
            try:
                if isinstance(what, Prepared):
                    loader.send(("answer", buffer, self.refiner.run(what)))
                else:
                    self._predict(loader.buffers[buffer], what)
                    loader.send(("answer", buffer, None))
            except (OSError, ValueError):
                continue  # the loader died and is replaced
            except Exception as error:
                failure = error if isinstance(error, BprError) else DeviceError("the network failed", got=repr(error))
                self._device_error = failure
                return

    def _predict(self, buffer: SharedBuffer, count: int) -> None:
        side = self.refiner.config.patch.network_size_px
        crops = np.frombuffer(buffer.memory, np.uint8, count * side * side * 4).reshape(count, side, side, 4)
        logits = self.refiner.predict(crops)
        np.frombuffer(buffer.memory, np.float32, logits.size)[:] = logits.ravel()

    def close(self) -> None:
        """End the loaders and free what is shared."""
        if self._device_thread is not None:
            self._asked.put(None)
            self._device_thread.join()
            self._device_thread = None
        for loader in self._loaders:
            loader.close()
        self._loaders = []
        self._asked = queue.SimpleQueue()


class _Loader:
    """The owner's side of one loader process."""

    def __init__(self, told: Told, buffer_bytes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.buffers = [SharedBuffer(buffer_bytes) for _ in range(THREADS)]
        self.connection, other = context.Pipe()
        self.process = context.Process(target=loader_main, args=(other, told, self.buffers), daemon=True)
        self.process.start()
        other.close()
        self.under_way: dict[int, Unit] = {}
        self.was_ready = False
        self._sending = threading.Lock()

    def give(self, job: Any, unit: Unit) -> None:
        self.under_way[unit.number] = unit
        self.send(("unit", job, unit))

    def send(self, message: Any) -> None:
        with self._sending:
            try:
                self.connection.send(message)
            except OSError:
                return  # it died, which receive() finds

    def receive(self) -> Any:
        """The next message, None when the process is dead."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            return None
        self.was_ready = True
        return message

    def close(self) -> None:
        self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
        for buffer in self.buffers:
            buffer.close()
