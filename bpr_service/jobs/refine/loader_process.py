"""Inside a loader process: read, prepare, cut patches, put masks together and encode; the network runs elsewhere.

Letters: n patches of a batch, S ``network_size_px``, C output maps.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import RefineConfig, get_preset
from bpr_service.errors import BprError, DeviceError, StorageError
from bpr_service.formats import PredictionFormat, Unit, open_predictions
from bpr_service.jobs.refine.shared_buffer import SharedBuffer
from bpr_service.jobs.refine.unit import audit_unit, refine_unit
from bpr_service.network.model import Predict
from bpr_service.network.weights import ModelCard, find_model, read_card
from bpr_service.refine.prepared import Prepared
from bpr_service.refine.refiner import R, Refiner
from bpr_service.storage import Answers, ask_ahead, holding

THREADS = 2
"""Units that a loader works on at once."""
AHEAD = 16
"""Units more for which a loader has asked object storage, so that it need not wait: their files as they are stored."""


@dataclass(frozen=True, slots=True)
class RefinerSpec:
    """What a Refiner is loaded from: a preset, a model folder, settings."""

    preset: str = "balanced"
    model: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def load(self, device: str = "cpu") -> Refiner:
        return Refiner.load(self.preset, model=self.model, device=device, **self.settings)

    def card(self) -> ModelCard:
        """What its model is. Raises as `read_card`."""
        return read_card(find_model(self.model or get_preset(self.preset).model))


class Told(NamedTuple):
    """What a loader needs to know of the owner's Refiner: no network is loaded to prepare an image."""

    card: ModelCard
    config: RefineConfig
    resides: str | None
    """The owner's accelerator, in whose memory patches are cut and averaged; None for the host's."""


class RemoteModel:
    """A model whose network runs in the process that owns the device."""

    def __init__(self, told: Told, exchange: Predict) -> None:
        """`exchange` gives logits for crops, both in the host's memory."""
        self.card, self._exchange = told.card, exchange
        self.device = told.resides or "cpu"
        self.accelerator = told.resides is not None

    @property
    def name(self) -> str:
        """Name and version."""
        return f"{self.card.name}@{self.card.version}"

    def settle(self, config: RefineConfig) -> RefineConfig:
        """The owner has settled it."""
        return config

    def predictor(self, config: RefineConfig) -> Predict:
        """See `Runs.predictor`."""
        return self._exchange


class RemoteRefiner(Refiner):
    """A Refiner whose patches are cut and averaged on the device of another process: it gets prepared images."""

    def __init__(self, model: RemoteModel, config: RefineConfig, hand_over: Callable[[Prepared[Any]], Any]) -> None:
        super().__init__(model, config)
        self._hand_over = hand_over

    def run(self, prepared: Prepared[R]) -> R:
        """See `Refiner.run`."""
        result: R = self._hand_over(prepared)
        return result


def loader_main(connection: Connection, told: Told, buffers: list[SharedBuffer]) -> None:
    """Body of a loader process: it ends when the owner closes the pipe, or is gone."""
    import os
    import signal

    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner decides
    cv2.setNumThreads(1)
    sending = threading.Lock()

    def send(message: Any) -> None:
        with sending:
            connection.send(message)

    units: queue.SimpleQueue[Given] = queue.SimpleQueue()
    opened = Opened()
    workers = [_LoaderThread(i, buffer, told, units, send) for i, buffer in enumerate(buffers)]
    try:
        while True:
            message = connection.recv()
            if message[0] == "answer":
                workers[message[1]].replies.put(message[2])
            else:
                units.put((message[1], message[2], opened.ask_ahead(message[1], message[2])))
    except (EOFError, OSError):
        os._exit(0)


class Opened:
    """The prediction file of a job, opened once as long as the job is the same."""

    def __init__(self) -> None:
        self._job: Any = None

    def file(self, job: Any) -> PredictionFormat:
        if self._job != job:
            self._job, self._file = job, open_predictions(*job[:3])
        return self._file

    def ask_ahead(self, job: Any, unit: Unit) -> Answers:
        """Ask object storage for what the unit needs; where that cannot be said, the unit's reading will."""
        with suppress(BprError):
            return ask_ahead(self.file(job).reads(unit))
        return {}


Given = tuple[Any, Unit, Answers]
"""A job, one of its units, and what was asked of object storage for it."""


class _LoaderThread:
    """One of a loader's threads, with a buffer of shared memory of its own."""

    def __init__(
        self,
        number: int,
        buffer: SharedBuffer,
        told: Told,
        units: queue.SimpleQueue[Given],
        send: Callable[[Any], None],
    ) -> None:
        self.number, self.units, self.send = number, units, send
        self.buffer, self.outputs = buffer, told.card.outputs
        model = RemoteModel(told, self._exchange)
        plain = told.resides is None
        self.refiner = Refiner(model, told.config) if plain else RemoteRefiner(model, told.config, self._hand_over)
        self.replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def _exchange(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Crops (n, S, S, 4) into the buffer, logits (n, C, S, S) out of it."""
        count, side = crops.shape[:2]
        memory = self.buffer.memory
        np.frombuffer(memory, np.uint8, crops.size)[:] = crops.ravel()
        self.send(("predict", self.number, count))
        self.replies.get()
        shape = (count, self.outputs, side, side)
        return np.frombuffer(memory, np.float32, int(np.prod(shape))).reshape(shape).copy()

    def _hand_over(self, prepared: Prepared[Any]) -> Any:
        """A prepared image to the owner, its result back."""
        self.send(("run", self.number, prepared))
        return self.replies.get()

    def _work(self) -> None:
        import os
        import traceback

        try:
            self._serve()
        except Exception:
            traceback.print_exc()
            os._exit(1)  # the owner sees it

    def _serve(self) -> None:
        opened = Opened()
        while True:
            job, unit, answers = self.units.get()
            try:
                do = audit_unit if job[4] else refine_unit
                with holding(answers):
                    outcome: Any = do(self.refiner, opened.file(job), unit, job[3])
            except (DeviceError, StorageError, OSError) as error:
                outcome = error
            self.send(("done", unit.number, outcome))
