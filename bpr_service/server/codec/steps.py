"""The steps that a worker can take, by name: reading a request and writing an answer of each task.

A step takes a message and a block and gives a message and a block. What may be long is in the block: the body or the
answer, or pixels followed by a JSON object, ``meta``, whose place the message says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from bpr_service.errors import UnknownName
from bpr_service.masks.mask import Mask
from bpr_service.server.codec import label_studio
from bpr_service.server.codec.bodies import load_json
from bpr_service.server.codec.maps import Map, read_map
from bpr_service.server.codec.memory import Allowance
from bpr_service.server.codec.parse import Asked, Limits, decode_image, decode_masks, parse, parse_picture
from bpr_service.server.codec.schemas import RequestOptions, examples
from bpr_service.server.codec.shared import (
    Block,
    pack_array,
    pack_masks,
    pack_meta,
    unpack_array,
    unpack_masks,
    unpack_meta,
)
from bpr_service.server.codec.write import (
    REPORTED,
    Writer,
    entries,
    found_entries,
    frame,
    map_parts,
    write_masks,
)


def read(message: dict[str, Any], block: Block, allowance: Allowance) -> tuple[dict[str, Any], Block]:
    """A body of a refine route to its image, and its masks or map."""
    limits = Limits(**message["limits"])
    asked = parse(block.view(), message["content_type"], message["task"], limits, allowance)
    _check_preset(asked.options, message)
    picture = decode_image(asked.image, asked.options, limits, allowance)
    image, warnings = picture.pixels, picture.warnings
    height, width = image.shape[:2]
    allowance.last(image.size)
    out = Block()
    meta: dict[str, Any] = {"options": asked.options.model_dump(), "image": pack_array(out, image)}
    meta["valid"] = None
    if picture.valid is not None:
        allowance.last(2 * picture.valid.size)
        meta["valid"] = pack_array(out, picture.valid)
    del image, picture
    if asked.task == "instance" and asked.map is None:
        masks, reasons = decode_masks(asked, height, width, limits, allowance)
        meta |= {"masks": pack_masks(out, masks), "alone": reasons, "map": None}
    else:
        found: Map = read_map(asked, height, width, limits, allowance)
        meta["map"] = pack_array(out, found.array)
        meta |= {"labels": found.labels, "background": found.background, "asked_info": found.segments_info}
        meta |= {"ignore_label": found.ignore_label, "soft": None}
        if found.soft is not None:
            meta["soft"] = [pack_array(out, found.soft.levels), found.soft.classes]
        warnings = [*warnings, *found.warnings]
    meta |= {"warnings": warnings, "kept": _kept(out, asked, allowance)}
    return pack_meta(out, meta), out


def read_picture(message: dict[str, Any], block: Block, allowance: Allowance) -> tuple[dict[str, Any], Block]:
    """A body of a segment route to its image."""
    limits = Limits(**message["limits"])
    data, options = parse_picture(block.view(), message["content_type"], allowance)
    _check_preset(options, message)
    picture = decode_image(data, options, limits, allowance)
    allowance.last(picture.pixels.size)
    out = Block()
    meta = {"options": options.model_dump(), "image": pack_array(out, picture.pixels), "map": None}
    meta |= {"masks": [], "alone": [], "warnings": picture.warnings, "kept": [None, None]}
    return pack_meta(out, meta), out


def _check_preset(options: RequestOptions, message: dict[str, Any]) -> None:
    if options.preset is not None and options.preset not in message["presets"]:
        raise UnknownName("preset", options.preset, message["presets"])


def _kept(out: Block, asked: Asked, allowance: Allowance) -> list[list[int] | None]:
    """Where the masks lie as they came, and the map's file; None for what did not come."""
    places: list[list[int] | None] = []
    for data in (asked.kept, asked.map):
        if data is not None:
            allowance.last(len(data))
        start = 0 if data is None else out.append(data)
        places.append(None if data is None else [start, start + len(data)])
    return places


def write(message: dict[str, Any], block: Block, allowance: Allowance) -> tuple[dict[str, Any], Block]:
    """A result to the JSON of its answer."""
    started = time.perf_counter()
    meta = unpack_meta(message, block)
    said, task, encoding = meta["said"], meta["task"], meta["options"]["encoding"]
    out = Writer(allowance)
    height, width = meta["size"]
    kept, map_file = (None if place is None else block.view(*place) for place in meta["kept"])
    given: list[Any] = [] if kept is None else load_json(kept, allowance)
    parts: Iterator[tuple[str, bytes]] = iter(())
    if meta["map"] is None:
        masks: list[Mask] = unpack_masks(block, meta["masks"], height, width)
        reports = meta["reports"]
    else:
        found = unpack_array(block, meta["map"])
        masks, reports, labelled, parts = map_parts(task, found, meta, map_file, allowance)
        given = given or labelled
    head = {"request_id": said["request_id"], "task": task, "size": [height, width], "warnings": meta["warnings"]}
    out.write(orjson.dumps(head)[:-1] + b",")
    write_masks(out, entries(masks, reports, given, encoding, allowance))
    frame(out, said, started, parts)
    return {}, out.block


def write_audit(message: dict[str, Any], block: Block, allowance: Allowance) -> tuple[dict[str, Any], Block]:
    """What was found of masks to the JSON of its answer."""
    started = time.perf_counter()
    meta = unpack_meta(message, block)
    kept = meta["kept"][0]
    own: list[Any] = (
        [[('"id"', str(label))] for label in meta["labels"]]
        if kept is None
        else load_json(block.view(*kept), allowance)
    )
    out = Writer(allowance)
    height, width = meta["size"]
    said = {"request_id": meta["said"]["request_id"], "size": [height, width], "warnings": meta["warnings"]}
    out.write(orjson.dumps(said)[:-1] + b",")
    write_masks(out, found_entries(meta["reports"], own))
    frame(out, meta["said"], started, iter(()))
    return {}, out.block


Step = Callable[[dict[str, Any], Block, Allowance], tuple[dict[str, Any], Block]]
STEPS: dict[str, Step] = {
    "read": read,
    "read_picture": read_picture,
    "write": write,
    "write_audit": write_audit,
    "label_studio_split": label_studio.split,
    "label_studio_read": label_studio.read,
    "label_studio_write": label_studio.write,
}


def try_all() -> None:
    """Every step once on a small request, so that kernels are compiled before workers are forked."""
    allowance = Allowance(lambda lasting, passing: None, limit=False)
    limits = {"max_pixels": 1 << 20, "max_masks": 9, "max_runs": 1 << 16, "max_mask_pixels": 1 << 20}
    limits["max_body_bytes"] = 1 << 20
    for task in ("instance", "semantic", "panoptic"):
        block = Block()
        block.append(orjson.dumps(examples()[task]))
        asked = {"task": task, "content_type": "application/json", "presets": ["balanced"], "limits": limits}
        answer, read_block = read(asked, block, allowance)
        meta = unpack_meta(answer, read_block)
        height, width = meta["image"][1][:2]
        for encoding in ("rle", "uncompressed_rle", "polygon", "png"):
            result = Block()
            report = dict.fromkeys(REPORTED) | {"status": "unchanged", "patches": 0}
            kept = read_block.view(*meta["kept"][0]) if meta["kept"][0] else b""
            map_file = read_block.view(*meta["kept"][1]) if meta["kept"][1] else b""
            if task == "instance":
                masks = unpack_masks(read_block, meta["masks"], height, width)
                meta["masks"] = pack_masks(result, masks)
                meta["reports"] = [report] * len(masks)
            else:
                array: NDArray[Any] = np.array(unpack_array(read_block, meta["map"]))
                meta["map"] = pack_array(result, array)
                meta["reports"] = [{**report, "label": int(label)} for label in np.unique(array) if label]
            meta |= {"vanished": [], "segments_info": [], "size": [height, width], "task": task}
            meta["said"] = {"request_id": "", "model": {}, "device": "", "timings_ms": {}, "total_ms": 0.0}
            places = [(data, result.append(data)) for data in (kept, map_file)]
            meta["kept"] = [[start, start + len(data)] if data else None for data, start in places]
            meta["options"]["encoding"] = encoding
            write(pack_meta(result, meta), result, allowance)
            read_block = result
