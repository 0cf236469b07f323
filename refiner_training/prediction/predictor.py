"""A trained segmenter on one device or several: pictures in, predictions out, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bpr_service.errors import DeviceError
from bpr_service.masks.images import read_image
from refiner_training.prediction.images import ImageRecord
from refiner_training.prediction.options import Options
from refiner_training.prediction.views import merged, mirrored_back, views
from refiner_training.run.segmenter import load_segmenter
from refiner_training.segmenters.base import Segmenter
from refiner_training.segmenters.data.sets import to_tensor

AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}
Found = tuple[ImageRecord, tuple[int, int], Any]
"""An image, its height and width in pixels, and its :class:`Detections` or its (C, H, W) class probabilities."""


class Predictor:
    """The model of a checkpoint, a copy on each device.

    Attributes:
        record: what the checkpoint says of itself: ``arch``, ``head``, ``config``, ``class_names``, ``class_ids``.
    """

    def __init__(self, checkpoint: Path, options: Options) -> None:
        """Load the model; see `load_segmenter` for what it raises.

        Raises:
            DeviceError: a device that is not there.
        """
        self.options = options
        self._free: SimpleQueue[tuple[Segmenter, torch.device]] = SimpleQueue()
        for name in options.devices:
            model, self.record = load_segmenter(checkpoint, changed=options.applied)
            device = torch.device(name)
            try:
                self._free.put((model.to(device), device))
            except (RuntimeError, AssertionError) as error:
                raise DeviceError(
                    f"device {name}", expected="a device of this machine", got=str(error)[:200], fix="name another one"
                ) from None

    def run(self, records: Sequence[ImageRecord]) -> Iterator[Found]:
        """Predict every image, batches on whatever device is free, results in the order of the records.

        A few batches are under way at a time, so memory does not grow with the number of images.
        """
        count, size = len(self.options.devices), self.options.batch
        waiting: deque[Future[list[Found]]] = deque()
        pool = ThreadPoolExecutor(count)
        try:
            for start in range(0, len(records), size):
                waiting.append(pool.submit(self._batch, records[start : start + size]))
                if len(waiting) > count:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(self, records: Sequence[ImageRecord]) -> list[Found]:
        images = [read_image(each.path) for each in records]
        model, device = self._free.get()
        try:
            found = self._predict(model, device, images)
        finally:
            self._free.put((model, device))
        sizes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
        return list(zip(records, sizes, found, strict=True))

    @torch.inference_mode()
    def _predict(self, model: Segmenter, device: torch.device, images: Sequence[NDArray[np.uint8]]) -> list[Any]:
        tensors = [to_tensor(image).to(device) for image in images]
        precision = AUTOCAST.get(self.options.precision, torch.float32)
        every: list[list[Any]] = [[] for _ in images]
        for scale, mirrored in views(self.options):
            model.set_scale(scale)
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                seen = model([image.flip(-1) for image in tensors] if mirrored else tensors)
            for own, found, image in zip(every, seen, images, strict=True):
                own.append(mirrored_back(found, image.shape[1]) if mirrored else found)
        return [merged(own, model.nms_threshold, model.most) for own in every]
