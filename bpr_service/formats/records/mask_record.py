"""A JSON record with a mask: ``{"segmentation": ..., "bbox": ..., "area": ...}``, read, and written as it came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bpr_service.errors import OWN_FAULTS
from bpr_service.formats.base import Instance, at
from bpr_service.formats.options import FileOptions
from bpr_service.formats.records.record_file import dump, is_crowd
from bpr_service.formats.records.splice import splice
from bpr_service.masks.encoding import encode_like, form_of
from bpr_service.masks.polygons import covers_nothing, joined
from bpr_service.masks.simplify import drawn

NO_MASK, CROWD, NO_AREA = "no segmentation", "a crowd", "an outline that covers nothing"
ALONE = (NO_MASK, CROWD, NO_AREA)
"""Why a mask is not even looked at: it has none, or needs asking for."""


def read_mask(
    item: Instance, given: Any, size: tuple[int, int], file: str, where: str, options: FileOptions
) -> Instance:
    """`item` with the mask that its record gives for an image of ``size`` (H, W), or with why it has none."""
    from bpr_service.masks.mask import as_mask

    reason = left_alone(item.record, given, options.crowds)
    if reason is not None:
        return replace(item, skipped=reason)
    try:
        return replace(item, mask=as_mask(mask_value(given), *size))
    except OWN_FAULTS as error:
        return replace(item, problem=str(at(file, where, error)))


def left_alone(record: Mapping[str, Any], given: Any, crowds: bool) -> str | None:
    """Why a record's mask is not refined: it has none, or is a crowd, which needs asking for; None where it is."""
    counts = given.get("counts", 0) if isinstance(given, Mapping) else getattr(given, "counts", 0)
    if given is None or given in ([], "", {}) or given != given or counts in (None, "", []):  # NaN: pandas has no null
        return NO_MASK
    if isinstance(given, list) and all(covers_nothing(part) for part in given):
        return NO_AREA
    return CROWD if is_crowd(record) and not crowds else None


def mask_value(given: Any) -> Any:
    """What `as_mask` takes, of what JSON holds: a PNG as base64 becomes bytes."""
    import base64
    import binascii

    png = given.get("png") if isinstance(given, dict) else given
    if not isinstance(png, str):
        return given
    text = png.partition(",")[2] if png.startswith("data:") else png
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return text.encode()


def encode_record(item: Instance, data: bytes, options: FileOptions) -> bytes:
    """The record with its new mask, box and area, every other byte as it was; all of it where nothing is new.

    A record without ``segmentation`` is a mask itself (an RLE with keys of its own, ``{"png": ...}``).
    """
    record, mask = item.record, item.mask
    given = record.get("segmentation", record)
    if mask is None or not (item.changed or options.encoding not in ("same", form_of(given))):
        return data
    mine = encode_like(mask, given, options.encoding)
    if item.parts is not None:
        mine = [joined(rings).reshape(-1).tolist() for rings in item.parts]
        mask = drawn(item.parts, mask.height, mask.width)
    new: dict[str, Any] = {"segmentation": mine}
    if "segmentation" not in record:
        if not isinstance(mine, dict) or not mine.keys() <= record.keys():
            rest = {key: value for key, value in record.items() if key not in ("size", "counts", "png")}
            return dump({**rest, "segmentation": mine})
        new = mine
    if item.changed or item.parts is not None:
        box = mask.bbox
        new["bbox"] = [int(v) for v in box] if _whole(record.get("bbox")) else box
        new["area"] = float(mask.area) if isinstance(record.get("area"), float) else mask.area
    return splice(data, new)


def _whole(box: Any) -> bool:
    return isinstance(box, list) and bool(box) and all(isinstance(value, int) for value in box)
