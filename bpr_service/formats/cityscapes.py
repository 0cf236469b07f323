"""Cityscapes instance results: one text file an image, one line and one PNG an instance.

A line is ``relative/path.png labelId confidence``; any pixel of the PNG that is not zero belongs to the instance.
Source: cityscapesscripts, evalInstanceLevelSemanticLabeling.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import numpy as np

from bpr_service import storage
from bpr_service.errors import BprError, FormatError
from bpr_service.formats.base import Encoded, Instance, InstancePrediction, PredictionFormat, Task, Unit, at
from bpr_service.formats.images import ImageFolder


class CityscapesInstances(PredictionFormat):
    """A folder of Cityscapes instance results. Text files come back as they were; PNGs are rewritten."""

    name: ClassVar[str] = "cityscapes"
    task: ClassVar[Task] = "instance"

    @cached_property
    def _folder(self) -> ImageFolder:
        return ImageFolder(self.paths.images)

    def scan(self) -> Iterator[Unit]:
        names = storage.list_files(self.paths.predictions, (".txt",))
        if not names:
            raise FormatError(
                f"{self.paths.predictions}: another format",
                expected="text files of 'relative/path.png labelId confidence'",
                got="no .txt file",
                fix="check the folder and --format",
            )
        for number, name in enumerate(names):
            try:
                yield Unit(number, self._folder.find(name), name, name)
            except BprError as error:
                yield Unit(number, "", name, name, problem=str(error))

    def _inside(self, relative: str) -> str:
        return storage.join_inside(self.paths.predictions, relative, within=self.paths.within)

    def _lines(self, unit: Unit) -> tuple[bytes, list[tuple[int, str, str, str]]]:
        """The text file, and (line number from 1, PNG relative to the folder, label id, confidence) of each line."""
        data = storage.read_bytes(self._inside(unit.source))
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

    def read(self, unit: Unit) -> InstancePrediction:
        return InstancePrediction(tuple(self._instance(unit, line) for line in self._lines(unit)[1]))

    def _instance(self, unit: Unit, line: tuple[int, str, str, str]) -> Instance:
        from bpr_service.masks.mask import Mask, read_label_map

        number, png, label, confidence = line
        try:
            array = read_label_map(storage.read_bytes(self._inside(png)))
            return Instance(
                number, Mask.from_array(array), int(label), float(confidence), (png, int(array.max()), array.dtype)
            )
        except BprError as error:
            problem = str(at(storage.join(self.paths.predictions, unit.source), f"line {number}", error))
            return Instance(number, None, int(label), float(confidence), (png, 0, None), problem=problem)

    def encode(self, unit: Unit, prediction: InstancePrediction) -> Encoded:
        encoded = self.untouched(unit)
        for item in prediction.instances:
            if item.mask is not None and item.changed:
                png, value, dtype = item.record
                encoded.files[png] = _png(item.mask.to_array(), value or 255, dtype)
        return encoded

    def untouched(self, unit: Unit) -> Encoded:
        files = {unit.source: storage.read_bytes(self._inside(unit.source))}
        try:
            names = [line[1] for line in self._lines(unit)[1]]
        except FormatError:
            names = []
        for name in names:
            try:
                files[name] = storage.read_bytes(self._inside(name))
            except BprError:
                continue  # reading it failed before; the report says so
        return Encoded(files=files)


def _png(array: np.ndarray, value: int, dtype: np.dtype) -> bytes:
    from bpr_service.masks.label_maps import encode_png

    return encode_png(array.astype(dtype) * dtype.type(value))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
