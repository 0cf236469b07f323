"""From a body to an image and its masks; every cap is checked before the step that it guards."""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel

from bpr_service.errors import BodyError, BprError, InputError, LimitError
from bpr_service.masks.images import read_image
from bpr_service.masks.mask import Mask, as_mask
from bpr_service.server.codec.faults import located, validated
from bpr_service.server.codec.memory import MASK_BYTES, PARSER_MAPS, Allowance, json_bytes
from bpr_service.server.codec.multipart import Part, parse_multipart
from bpr_service.server.codec.pictures import check_runs, check_size, read_header
from bpr_service.server.codec.schemas import (
    EncodedFile,
    InstanceRequest,
    MaskIn,
    Options,
    PanopticRequest,
    PngMask,
    Rle,
    SegmentInfo,
    SemanticRequest,
    Task,
)

JSON = "application/json"
MULTIPART = "multipart/form-data"

_M = TypeVar("_M", bound=BaseModel)
_KINDS: dict[Task, type[InstanceRequest] | type[SemanticRequest] | type[PanopticRequest]] = {
    "instance": InstanceRequest,
    "semantic": SemanticRequest,
    "panoptic": PanopticRequest,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """The server's settings that bound what a request may hold."""

    max_pixels: int
    max_masks: int
    max_runs: int
    max_mask_pixels: int
    max_body_bytes: int


@dataclass(slots=True)
class Asked:
    """A request whose shape is right and whose pictures are still files."""

    task: Task
    image: bytes
    masks: list[MaskIn] | None
    options: Options
    map: bytes | None = None
    """The label map or panoptic PNG."""
    segments_info: list[SegmentInfo] | None = None


def parse(body: memoryview, content_type: str, task: Task, allowance: Allowance) -> Asked:
    """What a JSON or multipart body asks for. Raises `BodyError` (400), `InputError` (422), `LimitError` (413)."""
    if content_type.lower().startswith(MULTIPART):
        allowance.take(3 * len(body))
        return _from_parts(parse_multipart(bytes(body), content_type), task, allowance)
    request = validated(_KINDS[task], load_json(body, allowance))
    label_map = getattr(request, "label_map", None) or getattr(request, "segment_map", None)
    return Asked(
        task,
        decode_base64(request.image.data, "/image/data"),
        request.masks,
        request.options,
        decode_base64(label_map.data, f"/{_map_name(task)}/data") if isinstance(label_map, EncodedFile) else None,
        getattr(request, "segments_info", None),
    )


def load_json(body: bytes | memoryview, allowance: Allowance) -> Any:
    """``body`` as JSON. Raises `BodyError` where it is none, or nested too deeply to be read."""
    allowance.take(json_bytes(np.frombuffer(body, np.uint8)))
    try:
        with allowance.room(PARSER_MAPS * len(body)):
            return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        got = f"{len(body)} bytes: {str(error)[:100]}"
        raise BodyError(
            "the body is not JSON", expected="a JSON object", got=got, fix="check how it is written"
        ) from None


def decode_base64(text: str, pointer: str) -> bytes:
    """The bytes of base64 ``text``, with or without a data URI's head; `BodyError` (400) where it is none."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        spaced = any(space in text for space in " \t\r\n")
        plain = text.encode("ascii").translate(None, b" \t\r\n") if spaced else text
        return binascii.a2b_base64(plain, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        got = f"{len(text)} characters: {str(error)[:60]}"
        raise located(
            BodyError("not base64", expected="base64", got=got, fix="encode the file's bytes"), pointer
        ) from None


def _map_name(task: Task) -> str:
    return "label_map" if task == "semantic" else "segment_map"


# ---------------------------------------------------------------- multipart


def _from_parts(parts: list[Part], task: Task, allowance: Allowance) -> Asked:
    """``image`` (a file), ``masks`` (JSON, or PNG files, one a mask; of the other tasks one map),
    ``options``.
    """
    image: bytes | None = None
    options: Any = {}
    pngs: list[bytes] = []
    listed: Any = None
    segments: Any = None
    for part in parts:
        if part.name == "image":
            image = part.data
        elif part.name == "options":
            options = load_json(part.data, allowance)
        elif part.name == "segments_info":
            segments = load_json(part.data, allowance)
        elif part.name in ("masks", "label_map", "segment_map"):
            if part.data.lstrip()[:1] in (b"[", b"{"):
                listed = load_json(part.data, allowance)
            else:
                pngs.append(part.data)
        else:
            raise InputError(
                "an unknown part of the form",
                expected="image, masks, options, segments_info",
                got=repr(part.name[:60]),
                fix="leave it out",
            )
    if image is None:
        got = ", ".join(part.name for part in parts[:8]) or "no parts"
        raise InputError("the form has no image", expected="a part named image", got=got, fix="send the file as image")
    if isinstance(listed, dict):
        segments = listed.get("segments_info", segments)
        listed = listed.get("masks", listed.get("annotations"))
    masks = _list_of(MaskIn, listed, "masks")
    if task == "instance":
        masks = (masks or []) + [_png_mask(data) for data in pngs]
    elif len(pngs) > 1:
        raise InputError(f"{len(pngs)} maps", expected="one PNG", got=str(len(pngs)), fix="send one")
    return Asked(
        task,
        image,
        masks,
        validated(Options, options),
        pngs[0] if pngs and task != "instance" else None,
        _list_of(SegmentInfo, segments, "segments_info"),
    )


class _PngBytes(PngMask):
    """A PNG that came as bytes."""

    raw: bytes


def _png_mask(data: bytes) -> MaskIn:
    return MaskIn.model_construct(segmentation=_PngBytes(png="", raw=data))


def _list_of(kind: type[_M], value: Any, name: str) -> list[_M] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise located(InputError(name, expected="a JSON list", got=type(value).__name__, fix="see /docs"), f"/{name}")
    return [validated(kind, item) for item in value]


# ---------------------------------------------------------------- pictures and masks


def decode_image(data: bytes, limits: Limits, allowance: Allowance) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB. The header is checked and the memory taken before anything is decoded."""
    try:
        read_header(data, limits.max_pixels, allowance)
        return read_image(data, max_pixels=limits.max_pixels)
    except BprError as error:
        raise located(error, "/image") from None


def decode_masks(masks: list[MaskIn], height: int, width: int, limits: Limits, allowance: Allowance) -> list[Mask]:
    """Masks of an (H, W) image. Number and runs are checked first; the boxes' pixels are added up as they
    come.
    """
    check_number(len(masks), limits)
    out: list[Mask] = []
    pixels = 0
    for index, item in enumerate(masks):
        try:
            orjson.dumps(item.model_extra)  # what cannot be sent back must not be worked on
            mask = _decode_mask(item.segmentation, height, width, limits, allowance)
            pixels += mask.crop.size
            if pixels > limits.max_mask_pixels:
                raise LimitError(
                    "the masks are too large together",
                    expected=f"boxes of at most {limits.max_mask_pixels} pixels in all",
                    got=f"more at mask {index}",
                    fix="send fewer at once, or use a job",
                )
            allowance.take(2 * mask.crop.size)
            allowance.last(MASK_BYTES * mask.crop.size)
        except BprError as error:
            raise located(error, f"/masks/{index}/segmentation") from None
        except orjson.JSONEncodeError:
            raise located(
                InputError("a mask's own keys", expected="plain JSON, not deeply nested", fix="leave them out"),
                f"/masks/{index}",
            ) from None
        out.append(mask)
    return out


def check_number(masks: int, limits: Limits) -> None:
    """Raise `LimitError` where there are more masks than a request may have."""
    if masks > limits.max_masks:
        got = str(masks)
        raise LimitError(
            "too many masks", expected=f"at most {limits.max_masks}", got=got, fix="send fewer, or use a job"
        )


def _decode_mask(segmentation: Any, height: int, width: int, limits: Limits, allowance: Allowance) -> Mask:
    """One mask; the frame's pixels are the most that drawing any kind of it takes, a few times over."""
    if isinstance(segmentation, Rle):
        rle = {"size": segmentation.size, "counts": segmentation.counts}
        check_runs(rle, limits.max_runs)
        allowance.at_least(16 * len(segmentation.counts) + 2 * height * width)
        return as_mask(rle, height, width, max_pixels=limits.max_pixels)
    if isinstance(segmentation, list):
        check_runs(segmentation, limits.max_runs)
        allowance.at_least(64 * sum(len(part) for part in segmentation) + 3 * height * width)
        return as_mask(segmentation, height, width, max_pixels=limits.max_pixels)
    soft = isinstance(segmentation, PngMask) and segmentation.soft
    if isinstance(segmentation, _PngBytes):
        data = segmentation.raw
    else:
        data = decode_base64(segmentation.png if isinstance(segmentation, PngMask) else segmentation, "")
    check_size(data, height, width, limits.max_pixels, allowance, "mask")
    return Mask.from_png(data, soft=soft, max_pixels=limits.max_pixels)
