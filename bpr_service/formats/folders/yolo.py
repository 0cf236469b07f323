"""YOLO segmentation: one text file an image, ``class x1 y1 x2 y2 ... [confidence [track]]``, normalised to 0..1.

A line holds one outline. Holes and parts that do not touch are joined to it by slits of no width, as ultralytics joins
the parts of an instance, so nothing of a mask is lost. Images are the upright photographs, as ultralytics loads them.
Source: docs.ultralytics.com, "Instance segmentation datasets"; ``Results.save_txt`` with ``save_conf`` and tracking.

Letters: H, W are an image's height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import numpy as np

from bpr_service import storage
from bpr_service.errors import OWN_FAULTS
from bpr_service.formats.base import Encoded, Instance, InstancePrediction, PredictionFormat, Task, Unit, at
from bpr_service.masks.encoding import Encoding
from bpr_service.masks.images import Exif

_OUTSIDE = 0.01
"""How far a normalised coordinate may lie outside of the image."""


class YoloSegments(PredictionFormat):
    """A folder of YOLO segmentation text files; ``classes.txt`` and the like are left alone."""

    name: ClassVar[str] = "yolo"
    task: ClassVar[Task] = "instance"
    exif: ClassVar[Exif] = "apply"
    encodings: ClassVar[tuple[Encoding, ...]] = ("same", "polygon")

    def scan(self) -> Iterator[Unit]:
        return self.files(".txt", "text files of 'class x1 y1 x2 y2 ...'")

    def is_prediction(self, name: str) -> bool:
        first = storage.read_bytes(storage.join_inside(self.paths.predictions, name, within=self.paths.within)).split(
            b"\n"
        )[0]
        words = first.decode("utf-8", "replace").split()
        return len(words) >= 5 and all(map(_is_number, words))

    def read(self, unit: Unit, size: tuple[int, int] | None = None) -> InstancePrediction:
        size = self.size(unit, size)
        lines = [(n, line) for n, line in enumerate(self._text(unit).splitlines(), 1) if line.strip()]
        tracked = self.options.columns == "confidence+track" or (
            self.options.columns is None and _are_tracked([line.split() for _, line in lines])
        )
        return InstancePrediction(tuple(self._instance(unit, n, line, size, tracked) for n, line in lines))

    def _text(self, unit: Unit) -> str:
        return self.source(unit).decode("utf-8", "surrogateescape")

    def _instance(self, unit: Unit, number: int, line: str, size: tuple[int, int], tracked: bool) -> Instance:
        from bpr_service.masks.mask import Mask

        where = storage.join(self.paths.predictions, unit.source)
        item = Instance(number, None, -1, None, line)
        words = line.lstrip("\ufeff").split()
        try:
            label, points, trailing = _parse(words, 1 if len(words) % 2 == 0 else 2 * tracked)
        except ValueError as error:
            if _is_box(words):
                return replace(item, skipped="a box without a mask")
            problem = at(
                where,
                f"line {number}",
                f"expected 'class x1 y1 x2 y2 x3 y3 ... [confidence [track]]' with coordinates from 0 to 1, "
                f"got {line[:60]!r} ({error})",
                fix="write the coordinates as shares of width and height",
            )
            return replace(item, problem=str(problem))
        height, width = size
        item = replace(item, category=label, score=trailing[0] if trailing and trailing[0] <= 1.0 else None)
        try:
            flat = np.asarray(points) * np.resize([width, height], len(points))
            return replace(item, mask=Mask.from_polygons([flat.tolist()], *size), record=(line, len(trailing)))
        except OWN_FAULTS as error:
            return replace(item, problem=str(at(where, f"line {number}", error)))

    def encode(self, unit: Unit, prediction: InstancePrediction) -> Encoded:
        new = {item.position: item for item in prediction.instances if item.mask is not None and item.changed}
        if not new:
            return self.untouched(unit)
        encoded, lines = Encoded(), []
        for number, line in enumerate(self._text(unit).splitlines(keepends=True), 1):
            item = new.get(number)
            if item is not None and item.mask is not None and item.mask.is_empty:
                encoded.warnings.append(
                    f"{unit.source}: line {number}: YOLO cannot hold an empty mask; the line is as it was"
                )
            elif item is not None:
                line = self._line(item, line)
            lines.append(line)
        encoded.files[unit.source] = "".join(lines).encode("utf-8", "surrogateescape")
        return encoded

    def _line(self, item: Instance, line: str) -> str:
        """`line` with the outline of the mask; its class and the columns behind the points as they were."""
        from bpr_service.masks.encoding import one_outline, parts_of

        mask, trailing = item.mask, item.record[1]
        assert mask is not None
        points = one_outline(item.parts or parts_of(mask)) / [mask.width, mask.height]
        words = line.split()
        ending = line[len(line.rstrip("\r\n")) :]
        coordinates = [f"{value:.6f}" for value in points.reshape(-1)]
        return " ".join([words[0], *coordinates, *words[len(words) - trailing :]]) + ending

    def untouched(self, unit: Unit) -> Encoded:
        return Encoded(files={unit.source: self.source(unit)})


def _parse(words: list[str], columns: int) -> tuple[int, list[float], list[float]]:
    """Class, coordinates, and the values of the ``columns`` behind them. Raises `ValueError`."""
    label = float(words[0])
    if not label.is_integer():
        raise ValueError("the class is a whole number")
    values = [float(word) for word in words[1:]]
    points = values[: len(values) - columns]
    if len(points) < 6 or len(points) % 2:
        raise ValueError(f"{len(points)} coordinates, {columns} columns behind them")
    if not all(-_OUTSIDE <= value <= 1.0 + _OUTSIDE for value in points):
        raise ValueError("a coordinate outside of 0 to 1; confidence and track are declared with --columns")
    return int(label), points, values[len(points) :]


def _are_tracked(lines: list[list[str]]) -> bool:
    """Whether the lines with an even number of values end with confidence and track.

    They do where every last value is a whole number and is none that a coordinate can have, or the two together lie
    further from both ends of the outline than any of its corners from the next.
    """
    found = False
    for words in lines:
        if len(words) % 2 == 0 or len(words) < 9 or not all(map(_is_number, words)):
            continue
        values = np.array(words[1:], float)
        if not values[-1].is_integer() or values[-1] < 0 or not 0.0 <= values[-2] <= 1.0:
            return False
        ring, last = values[:-2].reshape(-1, 2), values[-2:]
        edges = np.hypot(*(ring - np.roll(ring, 1, axis=0)).T)
        if last[1] <= 1.0 and min(np.hypot(*(ring[[0, -1]] - last).T)) <= edges.max():
            return False
        found = True
    return found


def _is_number(word: str) -> bool:
    try:
        float(word.lstrip("\ufeff"))
    except ValueError:
        return False
    return True


def _is_box(words: list[str]) -> bool:
    """``class x y w h [confidence [track]]``: a detection without a mask."""
    if not 5 <= len(words) <= 7 or not all(map(_is_number, words)):
        return False
    return all(0.0 <= float(word) <= 1.0 + _OUTSIDE for word in words[1:5])
