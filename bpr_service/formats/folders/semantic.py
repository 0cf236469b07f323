"""Semantic label maps: a folder of one-channel PNGs, one an image, in five dialects; or of probabilities.

Letters: C is the number of classes; H, W are an image's height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bpr_service import storage
from bpr_service.errors import OWN_FAULTS, FormatError
from bpr_service.formats.base import Encoded, PredictionFormat, SemanticPrediction, Task, Unit, at
from bpr_service.masks.label_maps import is_binary

if TYPE_CHECKING:
    from bpr_service.refine.labels.soft_labels import SoftLabels

BINARY = "values 0 and 255 only: refined as a binary mask; where 255 means ignore, say so with the ignore label"


class SemanticPngs(PredictionFormat):
    """PNGs of any labels, 8 or 16 bit; 255 is ignore. Palettes are kept."""

    name: ClassVar[str] = "png"
    task: ClassVar[Task] = "semantic"
    labels: ClassVar[range | None] = None
    """The labels there can be beside the ignore label; None: any."""
    ignore_label: ClassVar[int] = 255

    def scan(self) -> Iterator[Unit]:
        return self.files(".png", "PNG label maps")

    def read(self, unit: Unit, size: tuple[int, int] | None = None) -> SemanticPrediction:
        from bpr_service.masks.label_maps import read_label_map

        data = self.source(unit)
        where = storage.join(self.paths.predictions, unit.source)
        try:
            label_map = read_label_map(data)
        except OWN_FAULTS as error:
            raise FormatError(f"{where}: {error}") from error
        self._check(label_map, where)
        if self.labels is None and is_binary(label_map, self.ignore_label):
            return SemanticPrediction(label_map, None, data, (f"{unit.source}: {BINARY}",))
        return SemanticPrediction(label_map, self.ignore_label, data)

    def _check(self, label_map: NDArray[np.integer[Any]], path: str) -> None:
        if self.labels is None:
            return
        present = np.flatnonzero(np.bincount(label_map.ravel()))
        wrong = [int(v) for v in present if v not in self.labels and v != self.ignore_label]
        if wrong:
            raise FormatError(
                f"{path}: another kind of labels",
                expected=f"{self.name} labels {self.labels.start}..{self.labels.stop - 1} or {self.ignore_label}",
                got=f"label {wrong[0]}",
                fix="check --format: label ids and train ids are not the same",
            )

    def encode(self, unit: Unit, prediction: SemanticPrediction) -> Encoded:
        from bpr_service.masks.label_maps import picture_like

        return Encoded(files={unit.source: picture_like(prediction.picture, prediction.label_map)})

    def untouched(self, unit: Unit) -> Encoded:
        return Encoded(files={unit.source: self.source(unit)})


class SemanticProbabilities(SemanticPngs):
    """NumPy files of the probabilities (C, H, W) of each class, or of logits; the label of a channel is its number.

    Where the refined map has another label its answer is written, 1 for the new one and 0 for the others; elsewhere the
    probabilities stay as they were. Pixels without any probability are ignored.
    """

    name: ClassVar[str] = "soft"

    def scan(self) -> Iterator[Unit]:
        return self.files((".npy", ".npz"), "NumPy files of the probabilities (C, H, W) of each class")

    def read(self, unit: Unit, size: tuple[int, int] | None = None) -> SemanticPrediction:
        data = self.source(unit)
        try:
            soft = self._soft(data, self.size(unit, size))
        except OWN_FAULTS as error:
            raise at(storage.join(self.paths.predictions, unit.source), "the map", error) from error
        return SemanticPrediction(soft.labels, self.ignore_label, data, soft=soft)

    def encode(self, unit: Unit, prediction: SemanticPrediction) -> Encoded:
        from bpr_service.masks.arrays import array_like, read_array
        from bpr_service.refine.labels.soft_labels import with_labels

        array, logits = read_array(prediction.picture, classes=True), self.options.logits
        soft = prediction.soft or self._soft(prediction.picture)
        new = with_labels(soft, array, prediction.label_map, logits=logits)
        return Encoded(files={unit.source: array_like(prediction.picture, new)})

    def _soft(self, data: bytes, size: tuple[int, int] | None = None) -> SoftLabels:
        from bpr_service.masks.arrays import read_array
        from bpr_service.refine.labels.soft_labels import SoftLabels

        known = None if self.options.classes is None else range(self.options.classes)
        array = read_array(data, classes=True)
        return SoftLabels.from_array(
            array, classes=known, ignore_label=self.ignore_label, logits=self.options.logits, size=size
        )


class CityscapesLabelIds(SemanticPngs):
    """Cityscapes label ids, 0..33 (road is 7, person 24)."""

    name: ClassVar[str] = "cityscapes"
    labels: ClassVar[range | None] = range(34)


class CityscapesTrainIds(SemanticPngs):
    """Cityscapes train ids, 0..18 (road is 0, person 11)."""

    name: ClassVar[str] = "cityscapes-train-ids"
    labels: ClassVar[range | None] = range(19)


class Ade(SemanticPngs):
    """ADE20K (SceneParse150): 1..150; 0 is what has no class, and is ignored."""

    name: ClassVar[str] = "ade"
    labels: ClassVar[range | None] = range(151)
    ignore_label: ClassVar[int] = 0


class Voc(SemanticPngs):
    """Pascal VOC: palette PNGs, 0 background, 1..20; 255 is the void line."""

    name: ClassVar[str] = "voc"
    labels: ClassVar[range | None] = range(21)
