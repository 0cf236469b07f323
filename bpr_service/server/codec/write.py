"""From refined masks and maps to the bytes of an answer, mask by mask."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from bpr_service.masks.label_maps import encode_png, panoptic_png
from bpr_service.masks.mask import Mask
from bpr_service.refine.labels.regions import LabelRegions
from bpr_service.server.codec.maps import void_label
from bpr_service.server.codec.memory import Allowance
from bpr_service.server.codec.schemas import MaskIn, PngMask, Rle
from bpr_service.server.codec.shared import Block

REPORTED = ("status", "reason", "patches", "changed_px", "added_px", "removed_px", "confidence", "scale")
OWN_KEYS = ("segmentation", "bbox", "area", *REPORTED)
HIDDEN = "no pixel of the map has it"


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


ENCODERS: dict[str, Callable[[Mask], Any]] = {
    "rle": Mask.to_rle,
    "uncompressed_rle": lambda mask: mask.to_rle(compressed=False),
    "polygon": Mask.to_polygons,
    "png": lambda mask: {"png": base64_text(mask.to_png())},
    "png_text": lambda mask: base64_text(mask.to_png()),
}


def encoding_of(item: MaskIn) -> str:
    """How a mask came, as a name of `ENCODERS`."""
    came = item.segmentation
    if isinstance(came, Rle):
        return "rle" if isinstance(came.counts, str) else "uncompressed_rle"
    if isinstance(came, PngMask):
        return "png"
    return "png_text" if isinstance(came, str) else "polygon"


def own_keys(item: MaskIn) -> str:
    """JSON of the keys of a mask as they came; those that the answer sets itself are left to it."""
    named: dict[str, Any] = {
        name: getattr(item, name) for name in ("id", "category_id", "score") if name in item.model_fields_set
    }
    extra = {key: value for key, value in (item.model_extra or {}).items() if key not in OWN_KEYS}
    return orjson.dumps({**named, **extra}).decode()


class Writer:
    """An answer that grows in a block; its memory is taken as it does."""

    def __init__(self, allowance: Allowance) -> None:
        self.block = Block()
        self._allowance = allowance

    def write(self, data: bytes) -> None:
        self._allowance.last(len(data))
        self.block.append(data)


def write_masks(out: Writer, entries: Iterator[bytes]) -> None:
    """``"masks": [...]`` of the entries."""
    out.write(b'"masks":[')
    for index, entry in enumerate(entries):
        out.write(b"," + entry if index else entry)
    out.write(b"]")


def entries(
    masks: Sequence[Mask],
    reports: Sequence[dict[str, Any]],
    given: Sequence[tuple[str, str]],
    encoding: str,
    allowance: Allowance,
) -> Iterator[bytes]:
    """One JSON entry a mask, in order: the keys it came with, its new outline, and what was done.

    ``given`` are the mask's own keys and how it came.
    """
    for mask, report, (own, came) in zip(masks, reports, given, strict=True):
        kind = came if encoding == "same" else encoding
        allowance.at_least(most_bytes(mask, kind))
        area = {"bbox": mask.bbox, "area": mask.area}
        said = {key: report[key] for key in REPORTED}
        yield orjson.dumps({**_parts(own), "segmentation": ENCODERS[kind](mask), **area, **said})


def most_bytes(mask: Mask, kind: str) -> int:
    """Passing bytes that writing a mask takes, by how often its rows and columns change; known before it is written."""
    if kind.startswith("png"):
        return 8 * mask.height * mask.width
    crop = mask.crop
    changes = int(np.count_nonzero(crop[1:] != crop[:-1])) + int(np.count_nonzero(crop[:, 1:] != crop[:, :-1]))
    return 4 * crop.size + 160 * (changes + 2 * sum(crop.shape) + 64)


def _parts(own: str) -> dict[str, Any]:
    """The keys of a JSON object, their values as they stand."""
    return {key: orjson.Fragment(orjson.dumps(value)) for key, value in orjson.loads(own).items()}


def frame(out: Writer, said: dict[str, Any], started: float, parts: Iterator[tuple[str, Any]]) -> None:
    """What every answer says, after the ``parts`` that are its task's own; ``said`` has the milliseconds until now."""
    for name, value in parts:
        out.write(b"," + orjson.dumps(name) + b":" + value)
    spent_ms = (time.perf_counter() - started) * 1e3
    timings = {**said["timings_ms"], "encode": spent_ms, "total": said["total_ms"] + spent_ms}
    rest = {"model": said["model"], "device": said["device"]}
    rest["timings_ms"] = {step: round(ms, 3) for step, ms in timings.items()}
    out.write(b"," + orjson.dumps(rest)[1:])


def map_parts(
    task: str, array: NDArray[Any], meta: dict[str, Any], allowance: Allowance
) -> tuple[list[Mask], list[dict[str, Any]], list[tuple[str, str]], Iterator[tuple[str, bytes]]]:
    """Masks, reports and given keys of a refined map, and the parts of the answer that hold the map itself."""
    allowance.at_least(8 * array.size)
    reports = {report["label"]: report for report in meta["reports"]}
    labels = meta["labels"] if meta["given"] is not None else list(reports)
    regions = LabelRegions(array, None)
    at = {label: i for i, label in enumerate(regions.labels)}
    nothing = Mask(array.shape[0], array.shape[1], 0, 0, np.zeros((0, 0), np.uint8))
    masks = [regions[at[label]] if label in at else nothing for label in labels]
    hidden = dict.fromkeys(REPORTED, 0) | {"status": "unchanged", "reason": HIDDEN, "confidence": None, "scale": None}
    said = [reports.get(label) or hidden for label in labels]
    given = meta["given"] or [(_map_item(task, label, meta), "rle") for label in labels]
    return masks, said, given, _map_of(task, array, meta)


def _map_item(task: str, label: int, meta: dict[str, Any]) -> str:
    """What the answer calls a label that came in a map."""
    if task == "semantic":
        return orjson.dumps({"category_id": label}).decode()
    category = next(info["category_id"] for info in meta["asked_info"] if info["id"] == label)
    return orjson.dumps({"id": label, "category_id": category}).decode()


def _map_of(task: str, array: NDArray[Any], meta: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    if task == "panoptic":
        yield "segment_map", orjson.dumps({"data": base64_text(panoptic_png(array))})
        yield "segments_info", orjson.dumps(meta["segments_info"])
        yield "vanished", orjson.dumps([info["id"] for info in meta["vanished"]])
        return
    if (background := meta["background"]) is not None:
        void = void_label(meta["options"]["ignore_label"])
        if void > 255:
            array = array.astype(np.uint16)
        array = np.where(array == background, array.dtype.type(void), array)
    yield "label_map", orjson.dumps({"data": base64_text(encode_png(array))})
    yield "vanished", orjson.dumps([label for label in meta["vanished"] if label != background])
