"""Cityscapes instance results: one text file an image, one line and one PNG an instance.

A line is ``relative/path.png labelId confidence``; any pixel of the PNG that is not zero belongs to the instance.
Source: cityscapesscripts, evalInstanceLevelSemanticLabeling.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from bpr_service import storage
from bpr_service.errors import OWN_FAULTS, FormatError
from bpr_service.formats.base import Encoded, Instance, InstancePrediction, PredictionFormat, Task, Unit, at


class CityscapesInstances(PredictionFormat):
    """A folder of Cityscapes instance results. Text files come back as they were; PNGs are rewritten."""

    name: ClassVar[str] = "cityscapes"
    task: ClassVar[Task] = "instance"

    def scan(self) -> Iterator[Unit]:
        return self.files(".txt", "text files of 'relative/path.png labelId confidence'")

    def _inside(self, relative: str) -> str:
        return storage.join_inside(self.paths.predictions, relative, within=self.paths.within)

    def _lines(self, unit: Unit) -> tuple[bytes, list[tuple[int, str, str, str]]]:
        """The text file, and (line number from 1, PNG relative to the folder, label id, confidence) of each line."""
        data = self.source(unit)
        folder = unit.source.rpartition("/")[0]
        lines = []
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            words = line.split()
            if not words:
                continue
            if len(words) != 3 or not words[1].lstrip("-").isdigit() or not _is_number(words[2]):
                raise at(
                    storage.join(self.paths.predictions, unit.source),
                    f"line {number}",
                    f"expected 'path.png labelId confidence', got {line[:80]!r}",
                    fix="paths may have no spaces; label ids are whole numbers (person is 24)",
                )
            lines.append((number, storage.join(folder, words[0]) if folder else words[0], words[1], words[2]))
        return data, lines

    def read(self, unit: Unit, size: tuple[int, int] | None = None) -> InstancePrediction:
        return InstancePrediction(tuple(self._instance(unit, line) for line in self._lines(unit)[1]))

    def _instance(self, unit: Unit, line: tuple[int, str, str, str]) -> Instance:
        from bpr_service.masks.mask import Mask

        number, png, label, confidence = line
        try:
            data = storage.read_bytes(self._inside(png))
            return Instance(number, Mask.from_png(data), int(label), float(confidence), (png, data))
        except OWN_FAULTS as error:
            problem = str(at(storage.join(self.paths.predictions, unit.source), f"line {number}", error))
            return Instance(number, None, int(label), float(confidence), (png, b""), problem=problem)

    def encode(self, unit: Unit, prediction: InstancePrediction) -> Encoded:
        from bpr_service.masks.encoding import mask_picture_like

        encoded = self.untouched(unit)
        for item in prediction.instances:
            if item.mask is not None and item.changed:
                png, data = item.record
                encoded.files[png] = mask_picture_like(data, item.mask)
        return encoded

    def untouched(self, unit: Unit) -> Encoded:
        files = {unit.source: self.source(unit)}
        try:
            names = [line[1] for line in self._lines(unit)[1]]
        except FormatError:
            names = []
        for name in names:
            try:
                files[name] = storage.read_bytes(self._inside(name))
            except OWN_FAULTS:
                continue  # reading it failed before; the report says so
        return Encoded(files=files)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
