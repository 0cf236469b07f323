"""Label Studio's export (JSON): a list of tasks, each with the regions that were annotated and predicted on an image.

A brush's mask is ``value.rle`` (see `bpr_service.masks.brush_rle`); a polygon is one ring, ``value.points``, in
percent of the image's width and height. Regions lie on the upright photograph, as browsers show it.
Source: labelstud.io, "Export annotations" and "Units of image annotations".

Letters: H, W are an image's height and width in pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from bpr_service.errors import OWN_FAULTS, FormatError
from bpr_service.formats.base import Encoded, Instance, InstancePrediction, Paths, PredictionFormat, Task, Unit, at
from bpr_service.formats.records.record_file import Record, RecordFile, parse
from bpr_service.formats.records.splice import Path, splice_at
from bpr_service.masks.encoding import Encoding
from bpr_service.masks.images import Exif

WHAT = "a JSON list of tasks with data and annotations"
_GROUPS = ("annotations", "predictions")
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")


class LabelStudio(PredictionFormat):
    """Label Studio's export; brushes and polygons of all annotations and predictions, the other regions stay."""

    name: ClassVar[str] = "label-studio"
    task: ClassVar[Task] = "instance"
    result_is_folder: ClassVar[bool] = False
    has_records: ClassVar[bool] = True
    exif: ClassVar[Exif] = "apply"
    encodings: ClassVar[tuple[Encoding, ...]] = ("same", "polygon")

    def __init__(self, paths: Paths) -> None:
        super().__init__(paths)
        self.file = RecordFile(paths.predictions, (), WHAT)

    def scan(self) -> Iterator[Unit]:
        for position, start, length, record in self.file.scan():
            where = f"task {position} (byte {start})"
            if not isinstance(record.get("data"), dict):
                got = f"keys {', '.join(map(str, list(record)[:6]))}"
                raise FormatError(f"{self.file.address}: {where}", expected=WHAT, got=got, fix="export it as JSON")
            name, source = str(record.get("id", position)), [[position, start, length]]
            try:
                yield Unit(position, self._image(record["data"]), name, source)
            except OWN_FAULTS as error:
                yield Unit(position, "", name, source, problem=str(at(self.file.address, where, error)))

    def _image(self, data: Record) -> str:
        """The image among the values of a task's data: by its own name, then without the mark of an upload."""
        names = [name for value in data.values() if isinstance(value, str) and (name := file_name(value))]
        for name in [*names, *(_UPLOADED.sub("", name.rpartition("/")[2]) for name in names)]:
            with suppress(*OWN_FAULTS):
                return self.folder.find(name)
        raise FormatError(
            "the task's image",
            expected=f"the name of an image in {self.paths.images}",
            got=", ".join(name[:80] for name in names[:3]) or "none",
            fix="copy the images of the project there",
        )

    def _task(self, unit: Unit) -> tuple[bytes, list[tuple[Path, Record]]]:
        """The bytes of a task, and its regions that are masks with their paths in it."""
        data = self.file.raw([(unit.source[0][1], unit.source[0][2])])[0]
        record = parse(data)
        found: list[tuple[Path, Record]] = [
            ((group, i, "result", j), region)
            for group in _GROUPS
            for i, annotation in enumerate(_list(record.get(group)))
            for j, region in enumerate(_list(annotation.get("result") if isinstance(annotation, dict) else None))
            if isinstance(region, dict) and _is_mask(region.get("value"))
        ]
        return data, found

    def read(self, unit: Unit, size: tuple[int, int] | None = None) -> InstancePrediction:
        size = self.size(unit, size)
        regions = self._task(unit)[1]
        return InstancePrediction(tuple(self._region(unit, i, *each, size) for i, each in enumerate(regions)))

    def _region(self, unit: Unit, number: int, path: Path, region: Record, size: tuple[int, int]) -> Instance:
        from bpr_service.masks.brush_rle import decode_brush
        from bpr_service.masks.mask import Mask

        item = Instance(number, None, -1, None, (path, region))
        if region.get("image_rotation"):
            return replace(item, skipped="drawn on an image that was turned by hand")
        try:
            stated = tuple(
                region.get(f"original_{side}", own) for side, own in zip(("height", "width"), size, strict=True)
            )
            if stated != size:
                got = f"{stated[0]} x {stated[1]}"
                raise FormatError("another size than the image", expected=f"{size[0]} x {size[1]}", got=got)
            value = region["value"]
            if "rle" in value:
                return replace(item, mask=Mask.from_array(decode_brush(value["rle"], *size)))
            return replace(item, mask=Mask.from_polygons([_pixels(value["points"], size)], *size))
        except OWN_FAULTS as error:
            where = f"task {unit.name}: region {region.get('id', number)}"
            return replace(item, problem=str(at(self.file.address, where, error)))

    def encode(self, unit: Unit, prediction: InstancePrediction) -> Encoded:
        from bpr_service.masks.brush_rle import encode_brush
        from bpr_service.masks.encoding import one_outline, parts_of

        new: dict[Path, Any] = {}
        encoded = Encoded()
        for item in prediction.instances:
            mask, (path, region) = item.mask, item.record
            if mask is None or not item.changed:
                continue
            if "rle" in region["value"]:
                new[(*path, "value", "rle")] = encode_brush(mask.to_array())
            elif mask.is_empty:
                encoded.warnings.append(
                    f"task {unit.name}: a polygon cannot be empty; region {item.position} is as it was"
                )
            else:
                ring = one_outline(item.parts or parts_of(mask)) / [mask.width, mask.height] * 100.0
                new[(*path, "value", "points")] = ring.tolist()
        data = self._task(unit)[0]
        encoded.records[unit.source[0][0]] = splice_at(data, new) if new else data
        return encoded

    def untouched(self, unit: Unit) -> Encoded:
        return Encoded(records={unit.source[0][0]: self._task(unit)[0]})

    def write(self, out: str, records: Iterable[bytes]) -> None:
        self.file.write(out, records)


def file_name(value: str) -> str | None:
    """The file that a value of a task's data names: an upload, a local file, an address; None for other text."""
    if value.startswith("data:"):
        return None
    parts = urlsplit(value)
    if parts.path.rstrip("/") == "/data/local-files":
        return (parse_qs(parts.query).get("d") or [""])[0] or None
    return unquote(parts.path).removeprefix("/data/").lstrip("/") or None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_mask(value: Any) -> bool:
    return isinstance(value, dict) and (isinstance(value.get("rle"), list) or isinstance(value.get("points"), list))


def _pixels(points: list[Any], size: tuple[int, int]) -> list[float]:
    """Flat corners in px of points in percent. Raises ``FormatError``."""
    try:
        ring = np.asarray(points, np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise FormatError("points", expected="[[x, y], ...] in percent", got=str(points)[:60]) from None
    flat: list[float] = (ring * [size[1], size[0]] / 100.0).reshape(-1).tolist()
    return flat
