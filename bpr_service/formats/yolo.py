"""YOLO segmentation: one text file an image, ``class x1 y1 x2 y2 ... [confidence]``, normalised to 0..1.

A line holds one polygon, so holes and separate parts cannot be written; each loss is a warning.
Source: docs.ultralytics.com, "Instance segmentation datasets", and ``save_txt`` with ``save_conf``.

Letters: H, W are an image's height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bpr_service import storage
from bpr_service.errors import BprError, FormatError
from bpr_service.formats.base import Encoded, Instance, InstancePrediction, PredictionFormat, Task, Unit, at
from bpr_service.formats.images import ImageFolder, image_size

if TYPE_CHECKING:
    from bpr_service.masks.mask import Mask


class YoloSegments(PredictionFormat):
    """A folder of YOLO segmentation text files; ``classes.txt`` and the like are left alone."""

    name: ClassVar[str] = "yolo"
    task: ClassVar[Task] = "instance"

    @cached_property
    def _folder(self) -> ImageFolder:
        return ImageFolder(self.paths.images)

    def scan(self) -> Iterator[Unit]:
        names = storage.list_files(self.paths.predictions, (".txt",))
        names = [name for name in names if name.rpartition("/")[2] not in ("classes.txt", "README.txt")]
        if not names:
            raise FormatError(
                f"{self.paths.predictions}: another format",
                expected="text files of 'class x1 y1 x2 y2 ...'",
                got="no .txt file",
                fix="check the folder and --format",
            )
        for number, name in enumerate(names):
            try:
                yield Unit(number, self._folder.find(name), name, name)
            except BprError as error:
                yield Unit(number, "", name, name, problem=str(error))

    def _text(self, unit: Unit) -> bytes:
        path = storage.join_inside(self.paths.predictions, unit.source, within=self.paths.within)
        return storage.read_bytes(path)

    def read(self, unit: Unit) -> InstancePrediction:
        size = unit.size or image_size(self.image_path(unit))
        lines = enumerate(self._text(unit).decode("utf-8", "replace").splitlines(), 1)
        return InstancePrediction(tuple(self._instance(unit, n, line, size) for n, line in lines if line.strip()))

    def _instance(self, unit: Unit, number: int, line: str, size: tuple[int, int]) -> Instance:
        from bpr_service.masks.mask import Mask

        height, width = size
        words = line.split()
        try:
            values = [float(word) for word in words[1:]]
            label = int(words[0])
            odd = len(values) % 2
            score = values.pop() if odd else None
            if len(values) < 6 or not all(-0.01 <= v <= 1.01 for v in values):
                raise ValueError("three points or more, of values from 0 to 1")
        except ValueError as error:
            problem = at(
                storage.join(self.paths.predictions, unit.source),
                f"line {number}",
                f"expected 'class x1 y1 x2 y2 x3 y3 ...' with values from 0 to 1, got {line[:60]!r} ({error})",
                fix="boxes (five values) have no mask to refine",
            )
            return Instance(number, None, -1, None, line, problem=str(problem))
        try:
            mask = Mask.from_polygons([list(np.array(values) * ([width, height] * (len(values) // 2)))], *size)
        except BprError as error:
            problem = at(storage.join(self.paths.predictions, unit.source), f"line {number}", error)
            return Instance(number, None, label, score, line, problem=str(problem))
        return Instance(number, mask, label, score, line)

    def encode(self, unit: Unit, prediction: InstancePrediction) -> Encoded:
        encoded, lines = Encoded(), []
        for item in prediction.instances:
            if item.mask is None or not item.changed:
                lines.append(item.record)
                continue
            line, lost = _line(item.mask, item.record.split())
            lines.append(line)
            if lost:
                encoded.warnings.append(f"{unit.source}: line {item.position}: YOLO cannot hold {lost}")
        encoded.files[unit.source] = ("\n".join(lines) + "\n").encode() if lines else b""
        return encoded

    def untouched(self, unit: Unit) -> Encoded:
        return Encoded(files={unit.source: self._text(unit)})


def _line(mask: Mask, words: list[str]) -> tuple[str, str]:
    """A line for ``mask`` with the class and confidence of ``words``, and what it could not hold."""
    parts = mask.to_polygons()
    if not parts:
        return " ".join(words), "an empty mask; the line is as it was"
    areas = [abs(_area(part)) for part in parts]
    largest = int(np.argmax(areas))
    lost = []
    if len(parts) > 1:
        lost.append(f"{len(parts) - 1} smaller part(s), {sum(areas) - areas[largest]:.0f} px")
    if sum(areas) > mask.area:
        lost.append(f"holes, {sum(areas) - mask.area:.0f} px")
    scale = np.tile([mask.width, mask.height], len(parts[largest]) // 2)
    points = [f"{value:.6f}" for value in np.asarray(parts[largest]) / scale]
    confidence = words[-1:] if len(words) % 2 == 0 else []
    return " ".join([words[0], *points, *confidence]), " and ".join(lost)


def _area(part: list[float]) -> float:
    """Signed area of a flat polygon, px^2 (shoelace formula)."""
    x, y = np.asarray(part[0::2]), np.asarray(part[1::2])
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
