"""From refined masks and maps to the bytes of an answer, mask by mask."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from bpr_service.formats.records.mask_record import ALONE
from bpr_service.masks.encoding import Encoding, encode_like, form_of
from bpr_service.masks.label_maps import encode_png, panoptic_png, picture_like
from bpr_service.masks.mask import Mask
from bpr_service.refine.labels.regions import LabelRegions
from bpr_service.server.codec.maps import void_label
from bpr_service.server.codec.memory import PARSER_MAPS, Allowance, json_bytes
from bpr_service.server.codec.parse import nothing
from bpr_service.server.codec.shared import Block

REPORTED = ("status", "reason", "patches", "changed_px", "added_px", "removed_px", "confidence", "scale", "uncertain")
HIDDEN = "no pixel of the map has it"


def base64_text(data: bytes) -> str:
    """Bytes as JSON can hold them."""
    return base64.b64encode(data).decode("ascii")


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
    given: Sequence[Sequence[tuple[str, str]]],
    encoding: Encoding,
    allowance: Allowance,
) -> Iterator[bytes]:
    """One JSON entry a mask, in order: the keys it came with, its new outline, and what was done.

    What was not refined keeps its mask, box and area as they came. ``given`` are the masks' (key, value) in JSON.
    """
    for mask, report, pairs in zip(masks, reports, given, strict=True):
        own: dict[str, str] = dict(pairs)
        came, alone = own.get(SEGMENTATION), report["reason"] in ALONE
        refined = report["status"] == "refined"
        new: dict[str, Any] = {} if alone else {"bbox": mask.bbox, "area": mask.area}
        if not alone and (refined or came is None or encoding != "same"):
            new["segmentation"] = _segmentation(mask, came, encoding, allowance)
        told = {_key(key): orjson.dumps(value).decode() for key, value in new.items()}
        if not refined:
            told = {key: value for key, value in told.items() if key == SEGMENTATION or key not in own}
        said = {_key(key): orjson.dumps(report[key]).decode() for key in REPORTED}
        entry = {**dict.fromkeys(MEASURED, "null"), **own, **told, **said}
        yield ("{" + ",".join(f"{key}:{value}" for key, value in entry.items()) + "}").encode()


def found_entries(found: Sequence[dict[str, Any]], given: Sequence[Sequence[tuple[str, str]]]) -> Iterator[bytes]:
    """One JSON entry a mask of an audit, in order: the keys it came with, but for its outline, and what was found."""
    for told, pairs in zip(found, given, strict=True):
        own = {key: value for key, value in dict(pairs).items() if key != SEGMENTATION}
        entry = {**own, **{_key(key): orjson.dumps(value).decode() for key, value in told.items()}}
        yield ("{" + ",".join(f"{key}:{value}" for key, value in entry.items()) + "}").encode()


def _key(name: str) -> str:
    return f'"{name}"'


SEGMENTATION, MEASURED = _key("segmentation"), (_key("bbox"), _key("area"))


def _segmentation(mask: Mask, came: str | None, encoding: Encoding, allowance: Allowance) -> Any:
    """A mask in the encoding asked for, or in that of the JSON that came."""
    text = (came or "null").encode()
    shape_bytes = json_bytes(np.frombuffer(text, np.uint8))
    allowance.at_least(shape_bytes)
    with allowance.room(PARSER_MAPS * len(text)):
        shape = orjson.loads(text)
    form = form_of(shape) if encoding == "same" else encoding
    allowance.at_least(shape_bytes + most_bytes(mask, form))
    return encode_like(mask, shape, encoding)


def most_bytes(mask: Mask, kind: str) -> int:
    """Passing bytes that writing a mask takes, by how often its rows and columns change; known before it is written."""
    if kind == "png":
        return 16 * mask.height * mask.width
    crop = mask.crop
    changes = int(np.count_nonzero(crop[1:] != crop[:-1])) + int(np.count_nonzero(crop[:, 1:] != crop[:, :-1]))
    return 4 * crop.size + 160 * (changes + 2 * sum(crop.shape) + 64)


def frame(out: Writer, said: dict[str, Any], started: float, parts: Iterator[tuple[str, Any]]) -> None:
    """What every answer says, after the ``parts`` that are its task's own; ``said`` has the milliseconds until now."""
    for name, value in parts:
        out.write(b"," + orjson.dumps(name) + b":" + value)
    spent_ms = (time.perf_counter() - started) * 1e3
    timings = {**said["timings_ms"], "encode": spent_ms, "total": said["total_ms"] + spent_ms}
    rest: dict[str, Any] = {name: said[name] for name in ("model", "device", "segmenter") if name in said}
    rest["timings_ms"] = {step: round(ms, 3) for step, ms in timings.items()}
    out.write(b"," + orjson.dumps(rest)[1:])


def map_parts(
    task: str, array: NDArray[Any], meta: dict[str, Any], came: memoryview | None, allowance: Allowance
) -> tuple[list[Mask], list[dict[str, Any]], list[list[tuple[str, str]]], Iterator[tuple[str, bytes]]]:
    """Masks, reports and own keys of a refined map, and the parts of the answer that hold the map itself.

    The map is written in the file type, mode and palette in which it ``came``.
    """
    allowance.at_least(8 * array.size)
    reports = {report["label"]: report for report in meta["reports"]}
    labels = meta["labels"] if came is None else list(reports)
    regions = LabelRegions(array, None)
    at = {label: i for i, label in enumerate(regions.labels)}
    masks = [regions[at[label]] if label in at else nothing(*array.shape) for label in labels]
    hidden: dict[str, Any] = dict.fromkeys(REPORTED, 0) | {
        "status": "unchanged",
        "reason": HIDDEN,
        "confidence": None,
        "scale": None,
        "uncertain": [],
    }
    said = [reports.get(label) or hidden for label in labels]
    return masks, said, [_named(task, label, meta) for label in labels], _map_of(task, array, meta, came)


def _named(task: str, label: int, meta: dict[str, Any]) -> list[tuple[str, str]]:
    """What the answer calls a label that came in a map, as (key, value) in JSON."""
    if task == "semantic":
        return [(_key("category_id"), str(label))]
    if task == "instance":
        return [(_key("id"), str(label))]
    category = next((info["category_id"] for info in meta["asked_info"] if info["id"] == label), None)
    return [(_key("id"), str(label)), (_key("category_id"), orjson.dumps(category).decode())]


def _map_of(
    task: str, array: NDArray[Any], meta: dict[str, Any], came: memoryview | None
) -> Iterator[tuple[str, bytes]]:
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
    data = encode_png(array) if came is None else picture_like(bytes(came), array)
    yield "label_map", orjson.dumps({"data": base64_text(data)})
    yield "vanished", orjson.dumps([label for label in meta["vanished"] if label != background])
