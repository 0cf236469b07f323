"""From a result to the bytes of an answer, in a pool thread."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from bpr_service.masks.mask import Mask
from bpr_service.runtime.work import Work
from bpr_service.server.codec.schemas import MaskIn, PngMask, Rle

OWN_KEYS = (
    "segmentation",
    "bbox",
    "area",
    "status",
    "reason",
    "patches",
    "changed_px",
    "added_px",
    "removed_px",
    "confidence",
)


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _rle(mask: Mask) -> Any:
    return mask.to_rle()


def _uncompressed(mask: Mask) -> Any:
    return mask.to_rle(compressed=False)


def _polygons(mask: Mask) -> Any:
    return mask.to_polygons()


def _png(mask: Mask) -> Any:
    return {"png": base64_text(mask.to_png())}


def _png_text(mask: Mask) -> Any:
    return base64_text(mask.to_png())


ENCODERS: dict[str, Callable[[Mask], Any]] = {
    "rle": _rle,
    "uncompressed_rle": _uncompressed,
    "polygon": _polygons,
    "png": _png,
}


def encoder(encoding: str, given: MaskIn | None) -> Callable[[Mask], Any]:
    """How to write a mask: as asked, or ("same") as it came; RLE where it came as part of a map."""
    if encoding != "same":
        return ENCODERS[encoding]
    came = getattr(given, "segmentation", None)  # what came as part of a map has none
    if isinstance(came, Rle):
        return _rle if isinstance(came.counts, str) else _uncompressed
    if isinstance(came, PngMask):
        return _png
    if isinstance(came, str):
        return _png_text
    return _polygons if isinstance(came, list) else _rle


def mask_entries(
    masks: Sequence[Mask], reports: Sequence[Any], given: Sequence[MaskIn] | None, encoding: str
) -> list[dict[str, Any]]:
    """One entry a mask, in order: the keys it came with, its new outline, and what was done."""
    entries = []
    for index, (mask, report) in enumerate(zip(masks, reports, strict=True)):
        item = given[index] if given is not None else None
        entry = _own(item) if item is not None else {}
        entry.update(
            segmentation=encoder(encoding, item)(mask),
            bbox=mask.bbox,
            area=mask.area,
            status=report.status,
            reason=report.reason,
            patches=report.patches,
            changed_px=report.changed_px,
            added_px=report.added_px,
            removed_px=report.removed_px,
            confidence=report.confidence,
        )
        entries.append(entry)
    return entries


def _own(item: MaskIn) -> dict[str, Any]:
    """The keys of a mask as they came; those that the answer sets itself are left to it."""
    named: dict[str, Any] = {
        name: getattr(item, name) for name in ("id", "category_id", "score") if name in item.model_fields_set
    }
    extra = {key: value for key, value in (item.model_extra or {}).items() if key not in OWN_KEYS}
    return {**named, **{key: orjson.Fragment(orjson.dumps(value)) for key, value in extra.items()}}


def frame(work: Work, rid: str, task: str, device: str, size: tuple[int, int], **parts: Any) -> bytes:
    """The answer's JSON: ``parts`` (masks, maps) inside what every answer says. Sets ``timings_ms.total``."""
    lane = work.lane
    assert lane is not None
    work.add_ms("total", max(0.0, _since(work)))
    return orjson.dumps(
        {
            "request_id": rid,
            "task": task,
            "size": list(size),
            **parts,
            "model": {"name": lane.model, "version": lane.version, "preset": lane.preset},
            "device": device,
            "timings_ms": {step: round(ms, 3) for step, ms in work.timings_ms.items()},
        }
    )


def _since(work: Work) -> float:
    import time

    return (time.monotonic() - work.started_at) * 1e3
