"""Semantic label maps: a folder of one-channel PNGs, one an image, in five dialects.

Letters: H, W are an image's height and width in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bpr_service import storage
from bpr_service.errors import BprError, FormatError
from bpr_service.formats.base import Encoded, PredictionFormat, SemanticPrediction, Task, Unit
from bpr_service.formats.images import ImageFolder


class SemanticPngs(PredictionFormat):
    """PNGs of any labels, 8 or 16 bit; 255 is ignore. Palettes are kept."""

    name: ClassVar[str] = "png"
    task: ClassVar[Task] = "semantic"
    labels: ClassVar[range | None] = None
    """The labels there can be beside the ignore label; None: any."""
    ignore_label: ClassVar[int] = 255

    @cached_property
    def _folder(self) -> ImageFolder:
        return ImageFolder(self.paths.images)

    def scan(self) -> Iterator[Unit]:
        names = storage.list_files(self.paths.predictions, (".png",))
        if not names:
            raise FormatError(
                f"{self.paths.predictions}: another format",
                expected="PNG label maps",
                got="no .png file",
                fix="check the folder and --format",
            )
        for number, name in enumerate(names):
            try:
                yield Unit(number, self._folder.find(name), name, name)
            except BprError as error:
                yield Unit(number, "", name, name, problem=str(error))

    def _path(self, unit: Unit) -> str:
        return storage.join_inside(self.paths.predictions, unit.source, within=self.paths.within)

    def read(self, unit: Unit) -> SemanticPrediction:
        from bpr_service.masks.mask import read_label_map

        path = self._path(unit)
        data = storage.read_bytes(path)
        try:
            label_map = read_label_map(data)
        except BprError as error:
            raise FormatError(f"{path}: {error}") from error
        self._check(label_map, path)
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
        return Encoded(files={unit.source: _like(prediction.picture, prediction.label_map)})

    def untouched(self, unit: Unit) -> Encoded:
        return Encoded(files={unit.source: storage.read_bytes(self._path(unit))})


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


def _like(data: bytes, label_map: NDArray[np.integer[Any]]) -> bytes:
    """A PNG of ``label_map`` (H, W) in the mode of the PNG ``data``; ``data`` itself when no pixel is new."""
    from PIL import Image

    from bpr_service.masks.label_maps import encode_png

    with Image.open(io.BytesIO(data)) as picture:
        old = np.asarray(picture)
        if old.shape == label_map.shape and np.array_equal(old, label_map):
            return data
        if picture.mode != "P":
            return encode_png(label_map)
        new = Image.fromarray(label_map.astype(np.uint8))
        new.putpalette(picture.getpalette() or [])
        out = io.BytesIO()
        kept = {key: picture.info[key] for key in ("transparency",) if key in picture.info}
        new.save(out, format="PNG", **kept)
        return out.getvalue()
