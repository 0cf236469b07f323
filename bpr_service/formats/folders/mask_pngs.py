"""Folders of PNGs that hold masks: one binary or soft mask a file, or all instances of an image by their ids.

Letters: H, W are an image's height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from bpr_service import storage
from bpr_service.errors import BprError
from bpr_service.formats.base import (
    Encoded,
    Instance,
    InstancePrediction,
    PredictionFormat,
    SemanticPrediction,
    Task,
    Unit,
    at,
)
from bpr_service.masks.encoding import Encoding


class MaskPngs(PredictionFormat):
    """One mask a PNG, of two values; they come back in the same two values, mode and palette."""

    name: ClassVar[str] = "png"
    task: ClassVar[Task] = "instance"
    soft: ClassVar[bool] = False
    encodings: ClassVar[tuple[Encoding, ...]] = ("same", "png")

    def scan(self) -> Iterator[Unit]:
        return self.files(".png", "PNGs of one mask each")

    def read(self, unit: Unit, size: tuple[int, int] | None = None) -> InstancePrediction:
        from bpr_service.masks.mask import Mask, as_mask

        data, size = self.source(unit), self.size(unit, size)
        try:
            mask = as_mask(Mask.from_png(data, soft=self.soft), *size)
        except BprError as error:
            raise at(storage.join(self.paths.predictions, unit.source), "the mask", error) from error
        return InstancePrediction((Instance(0, mask, -1, None, data),))

    def encode(self, unit: Unit, prediction: InstancePrediction) -> Encoded:
        from bpr_service.masks.encoding import mask_picture_like

        item = prediction.instances[0]
        if item.mask is None or not item.changed:
            return self.untouched(unit)
        return Encoded(files={unit.source: mask_picture_like(item.record, item.mask)})

    def untouched(self, unit: Unit) -> Encoded:
        return Encoded(files={unit.source: self.source(unit)})


class SoftPngs(MaskPngs):
    """One soft mask a PNG: probabilities as 8- or 16-bit gray; written in the same depth.

    Where the refined mask differs from the thresholded one, its answer is written, 0 or 1; elsewhere the probability
    stays as it was.
    """

    name: ClassVar[str] = "soft"
    soft: ClassVar[bool] = True

    def encode(self, unit: Unit, prediction: InstancePrediction) -> Encoded:
        from bpr_service.masks.encoding import soft_picture_like

        item = prediction.instances[0]
        if item.mask is None or not item.changed:
            return self.untouched(unit)
        return Encoded(files={unit.source: soft_picture_like(item.record, item.mask)})


class InstanceIdPngs(PredictionFormat):
    """All instances of an image in one PNG of their ids, 8 or 16 bit or a palette; 0 is background."""

    name: ClassVar[str] = "ids"
    task: ClassVar[Task] = "instance"

    def scan(self) -> Iterator[Unit]:
        return self.files(".png", "PNGs of instance ids")

    def read(self, unit: Unit, size: tuple[int, int] | None = None) -> SemanticPrediction:
        from bpr_service.masks.label_maps import read_label_map

        data = self.source(unit)
        try:
            return SemanticPrediction(read_label_map(data), None, data)
        except BprError as error:
            raise at(storage.join(self.paths.predictions, unit.source), "the instance ids", error) from error

    def encode(self, unit: Unit, prediction: SemanticPrediction) -> Encoded:
        from bpr_service.masks.label_maps import picture_like

        return Encoded(files={unit.source: picture_like(prediction.picture, prediction.label_map)})

    def untouched(self, unit: Unit) -> Encoded:
        return Encoded(files={unit.source: self.source(unit)})
