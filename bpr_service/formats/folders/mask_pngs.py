"""Folders of files that hold masks: one binary or soft mask a file, or all instances of an image by their ids.

Letters: H, W are an image's height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from bpr_service import storage
from bpr_service.errors import OWN_FAULTS
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

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".npy", ".npz")


class MaskPngs(PredictionFormat):
    """One mask a PNG, TIFF, BMP or NumPy file, of two values or of floats.

    It comes back in the same values, mode and palette. Floats are probabilities: see `SoftPngs`.
    """

    name: ClassVar[str] = "png"
    task: ClassVar[Task] = "instance"
    soft: ClassVar[bool] = False
    encodings: ClassVar[tuple[Encoding, ...]] = ("same", "png")

    def scan(self) -> Iterator[Unit]:
        return self.files(MASK_SUFFIXES, "files of one mask each")

    def read(self, unit: Unit, size: tuple[int, int] | None = None) -> InstancePrediction:
        from bpr_service.masks.encoding import read_mask_file
        from bpr_service.masks.mask import as_mask

        data, size = self.source(unit), self.size(unit, size)
        try:
            mask = as_mask(read_mask_file(data, soft=self.soft, logits=self.options.logits), *size)
        except OWN_FAULTS as error:
            raise at(storage.join(self.paths.predictions, unit.source), "the mask", error) from error
        return InstancePrediction((Instance(0, mask, -1, None, data),))

    def encode(self, unit: Unit, prediction: InstancePrediction) -> Encoded:
        from bpr_service.masks.encoding import mask_file_like

        item = prediction.instances[0]
        if item.mask is None or not item.changed:
            return self.untouched(unit)
        new = mask_file_like(item.record, item.mask, soft=self.soft, logits=self.options.logits)
        return Encoded(files={unit.source: new})

    def untouched(self, unit: Unit) -> Encoded:
        return Encoded(files={unit.source: self.source(unit)})


class SoftPngs(MaskPngs):
    """One soft mask a file: probabilities as 8- or 16-bit gray, or as a NumPy file, also of logits.

    Where the refined mask differs from the one that is cut at one half, its answer is written, 0 or 1; elsewhere the
    probability stays as it was.
    """

    name: ClassVar[str] = "soft"
    soft: ClassVar[bool] = True


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
        except OWN_FAULTS as error:
            raise at(storage.join(self.paths.predictions, unit.source), "the instance ids", error) from error

    def encode(self, unit: Unit, prediction: SemanticPrediction) -> Encoded:
        from bpr_service.masks.label_maps import picture_like

        return Encoded(files={unit.source: picture_like(prediction.picture, prediction.label_map)})

    def untouched(self, unit: Unit) -> Encoded:
        return Encoded(files={unit.source: self.source(unit)})
