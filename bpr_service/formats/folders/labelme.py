"""LabelMe: one JSON file an image, whose ``shapes`` are polygons or masks.

A file is ``{"shapes": [{"label", "points", "shape_type", "mask", ...}], "imagePath", "imageData", ...}``. A polygon is
one ring; a mask is a PNG (base64) of the box whose corner pixels are the two points. Points are px on the upright
photograph, as LabelMe loads it. Source: labelmeai/labelme, ``LabelFile`` and ``utils.shape``.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from bpr_service import storage
from bpr_service.errors import OWN_FAULTS, FormatError
from bpr_service.formats.base import Encoded, Instance, InstancePrediction, PredictionFormat, Task, Unit, at
from bpr_service.formats.records.splice import Path, splice_at
from bpr_service.formats.records.stream import stream_json
from bpr_service.masks.encoding import Encoding
from bpr_service.masks.images import Exif

WHAT = "LabelMe files: a JSON object with 'shapes'"


class LabelMe(PredictionFormat):
    """A folder of LabelMe files; shapes that are no masks (boxes, lines, points) are left alone."""

    name: ClassVar[str] = "labelme"
    task: ClassVar[Task] = "instance"
    exif: ClassVar[Exif] = "apply"
    encodings: ClassVar[tuple[Encoding, ...]] = ("same", "polygon", "png")

    def scan(self) -> Iterator[Unit]:
        return self.files(".json", WHAT)

    def image_of(self, name: str, wanted: str) -> str:
        said = self._image_path(name) if self.options.match is None else None
        if said is not None:
            with suppress(*OWN_FAULTS):
                return self.folder.find(said)
        return self.folder.find(wanted)

    def _image_path(self, name: str) -> str | None:
        """``imagePath`` without the way to it; reads no farther than that, since the picture itself may follow."""
        with suppress(FormatError), storage.open_read(self._address(name)) as file:
            for event in stream_json(file, name):
                if event.key == "imagePath" and isinstance(event.value, str):
                    return event.value.replace("\\", "/").rpartition("/")[2] or None
        return None

    def is_prediction(self, name: str) -> bool:
        with suppress(FormatError), storage.open_read(self._address(name)) as file:
            return any(event.key == "shapes" for event in stream_json(file, name))
        return True  # broken: it is named

    def _address(self, name: str) -> str:
        return storage.join_inside(self.paths.predictions, name, within=self.paths.within)

    def read(self, unit: Unit, size: tuple[int, int] | None = None) -> InstancePrediction:
        size, data, address = self.size(unit, size), self.source(unit), self._address(unit.source)
        shapes: list[Any] | None = None
        for event in stream_json(io.BytesIO(data), address):
            if event.key == "shapes" and event.kind in ("open", "item"):
                shapes = [] if shapes is None else shapes
                if event.kind == "item":
                    shapes.append(event.value)
        if shapes is None:
            raise FormatError(f"{address}: another format", expected=WHAT, got="no 'shapes'", fix="check --format")
        return InstancePrediction(tuple(self._shape(address, i, shape, size) for i, shape in enumerate(shapes)))

    def _shape(self, address: str, number: int, shape: Any, size: tuple[int, int]) -> Instance:
        item = Instance(number, None, -1, None, shape)
        kind = shape.get("shape_type") or "polygon" if isinstance(shape, dict) else "no object"
        if kind not in ("polygon", "mask"):
            return replace(item, skipped=f"a shape that is no mask: {kind}")
        try:
            return replace(item, mask=_mask(shape, size) if kind == "mask" else _polygon(shape, size))
        except OWN_FAULTS as error:
            return replace(item, problem=str(at(address, f"shape {number}", error)))

    def encode(self, unit: Unit, prediction: InstancePrediction) -> Encoded:
        new: dict[Path, Any] = {}
        encoded = Encoded()
        for item in prediction.instances:
            if item.mask is None:
                continue
            was: Encoding = "png" if item.record.get("shape_type") == "mask" else "polygon"
            if not item.changed and self.options.encoding in ("same", was):
                continue
            if item.mask.is_empty:
                encoded.warnings.append(
                    f"{unit.source}: shape {item.position}: LabelMe cannot hold an empty mask; the shape is as it was"
                )
                continue
            values = _values(item, self.options.encoding)
            known = values.keys() <= item.record.keys()
            new |= (
                {("shapes", item.position, key): value for key, value in values.items()}
                if known
                else {("shapes", item.position): {**item.record, **values}}
            )
        data = self.source(unit)
        encoded.files[unit.source] = splice_at(data, new) if new else data
        return encoded

    def untouched(self, unit: Unit) -> Encoded:
        return Encoded(files={unit.source: self.source(unit)})


def _polygon(shape: dict[str, Any], size: tuple[int, int]) -> Any:
    from bpr_service.masks.mask import Mask

    return Mask.from_polygons([shape.get("points") or []], *size)


def _mask(shape: dict[str, Any], size: tuple[int, int]) -> Any:
    """The PNG of a shape in its place. Raises ``FormatError`` or ``MaskError``."""
    from bpr_service.masks.mask import Mask

    height, width = size
    try:
        part = Mask.from_png(base64.b64decode(shape["mask"], validate=True))
        (x0, y0), (x1, y1) = np.asarray(shape["points"], float).astype(int).tolist()
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError("a mask", expected="two points and a PNG as base64", got=str(error)) from None
    if (part.height, part.width) != (y1 - y0 + 1, x1 - x0 + 1) or min(x0, y0) < 0 or x1 >= width or y1 >= height:
        raise FormatError(
            "a mask does not fit its box",
            expected=f"a PNG of {y1 - y0 + 1} x {x1 - x0 + 1} (height x width) inside {height} x {width}",
            got=f"{part.height} x {part.width} at x={x0}, y={y0}",
        )
    return Mask.from_window(part.to_array(), x0, y0, height, width)


def _values(item: Instance, encoding: Encoding) -> dict[str, Any]:
    """The keys of a shape that hold its mask: a polygon stays one where one ring holds the mask without a slit."""
    from bpr_service.masks.encoding import one_outline, parts_of
    from bpr_service.masks.label_maps import encode_png

    mask = item.mask
    assert mask is not None
    parts = item.parts or parts_of(mask)
    was_mask = item.record.get("shape_type") == "mask"
    plain = len(parts) == 1 and len(parts[0]) == 1
    if encoding == "polygon" or (encoding == "same" and not was_mask and plain):
        kind = {"mask": None, "shape_type": "polygon"} if was_mask else {}
        return {"points": one_outline(parts).tolist(), **kind}
    x0, y0, x1, y1 = mask.box
    png = base64.b64encode(encode_png(mask.window(x0, y0, x1, y1))).decode()
    return {"points": [[x0, y0], [x1 - 1, y1 - 1]], "mask": png, "shape_type": "mask"}
