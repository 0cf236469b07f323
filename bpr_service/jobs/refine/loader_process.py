"""Inside a loader process: read, prepare, cut patches, put masks together and encode; the network runs elsewhere.

Letters: n patches of a batch, S ``network_size_px``, C output maps.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import DeviceError
from bpr_service.formats import PredictionFormat, Unit, open_predictions
from bpr_service.jobs.refine.shared_buffer import SharedBuffer
from bpr_service.jobs.refine.unit import refine_unit
from bpr_service.network.backends import Forward
from bpr_service.refine.refiner import Refiner

THREADS = 2
"""Units that a loader works on at once."""


@dataclass(frozen=True, slots=True)
class RefinerSpec:
    """What a Refiner is loaded from, so that loaders load the same: a preset, a model folder, settings."""

    preset: str = "balanced"
    model: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def load(self, kind: type[Refiner] = Refiner, device: str = "cpu") -> Refiner:
        return kind.load(self.preset, model=self.model, device=device, **self.settings)


class RemoteRefiner(Refiner):
    """A Refiner whose network runs in the process that owns the device."""

    exchange: Callable[[NDArray[np.uint8]], NDArray[np.float32]]

    def _open(self, folder: Path | None) -> Forward:
        """Nothing is opened: a backend for another device, or each loader's own copy of a compiled network, would be
        time and memory for nothing.
        """
        return lambda patches: patches

    def predict(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        if crops.shape[0] == 0:
            return super().predict(crops)
        return self.exchange(crops)


def loader_main(connection: Connection, spec: RefinerSpec, buffers: list[SharedBuffer]) -> None:
    """Body of a loader process: it ends when the owner closes the pipe, or is gone."""
    import os
    import signal

    import cv2
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner decides
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    sending = threading.Lock()

    def send(message: Any) -> None:
        with sending:
            connection.send(message)

    units: queue.SimpleQueue[tuple[Any, Unit]] = queue.SimpleQueue()
    workers = [_LoaderThread(i, buffer, spec, units, send) for i, buffer in enumerate(buffers)]
    try:
        while True:
            message = connection.recv()
            if message[0] == "logits":
                workers[message[1]].replies.put(None)
            else:
                units.put((message[1], message[2]))
    except (EOFError, OSError):
        os._exit(0)


class _LoaderThread:
    """One of a loader's threads, with a buffer of shared memory of its own."""

    def __init__(
        self,
        number: int,
        buffer: SharedBuffer,
        spec: RefinerSpec,
        units: queue.SimpleQueue[tuple[Any, Unit]],
        send: Callable[[Any], None],
    ) -> None:
        self.number, self.spec, self.units, self.send = number, spec, units, send
        self.buffer = buffer
        self.replies: queue.SimpleQueue[None] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def _exchange(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Crops (n, S, S, 4) into the buffer, logits (n, C, S, S) out of it."""
        count, side = crops.shape[:2]
        memory = self.buffer.memory
        np.frombuffer(memory, np.uint8, crops.size)[:] = crops.ravel()
        self.send(("predict", self.number, count))
        self.replies.get()
        shape = (count, self.refiner.card.outputs, side, side)
        return np.frombuffer(memory, np.float32, int(np.prod(shape))).reshape(shape).copy()

    def _work(self) -> None:
        import os
        import traceback

        try:
            self.refiner = self.spec.load(RemoteRefiner)
            assert isinstance(self.refiner, RemoteRefiner)
            self.refiner.exchange = self._exchange
            self._serve()
        except Exception:
            traceback.print_exc()
            os._exit(1)  # the owner sees it

    def _serve(self) -> None:
        opened: tuple[Any, PredictionFormat] | None = None
        while True:
            job, unit = self.units.get()
            if opened is None or opened[0] != job:
                task, name, paths, _ = job
                opened = (job, open_predictions(task, name, paths))
            try:
                outcome: Any = refine_unit(self.refiner, opened[1], unit, job[3])
            except (DeviceError, OSError) as error:
                outcome = error
            self.send(("done", unit.number, outcome))
