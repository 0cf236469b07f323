"""From a body to an image and its masks; every cap is checked before the step that it guards."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from bpr_service.errors import BprError, InputError, LimitError
from bpr_service.formats.records.mask_record import left_alone
from bpr_service.masks.images import ReadImage, open_image
from bpr_service.masks.mask import Mask, as_mask
from bpr_service.server.codec.bodies import decode_base64, json_text, load_json, parse_multipart
from bpr_service.server.codec.faults import located, validated
from bpr_service.server.codec.form import MASK_KEYS, Form, masks_of, read_form
from bpr_service.server.codec.memory import MASK_BYTES, PARSER_MAPS, WINDOW_BYTES, Allowance
from bpr_service.server.codec.pictures import check_runs, check_size, read_header
from bpr_service.server.codec.schemas import (
    EncodedFile,
    InstanceRequest,
    MaskIn,
    PanopticRequest,
    PngMask,
    RequestOptions,
    Rle,
    SegmentInfo,
    SemanticRequest,
    Task,
)

JSON = "application/json"
MULTIPART = "multipart/form-data"
KEPT_COPIES = 8
"""Copies of a body's text that `keep` makes on its way to one."""

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


class SegmentOptions(RequestOptions):
    """How to segment; the refinement's own options count where masks are refined too."""

    min_score: Annotated[float, Field(ge=0.0, le=1.0, strict=False)] = Field(
        default=0.5, description="masks that score less are left out"
    )


class SegmentRequest(BaseModel):
    """A picture to be segmented."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: EncodedFile
    options: SegmentOptions = SegmentOptions()


@dataclass(slots=True)
class Asked:
    """A request whose shape is right and whose pictures are still files."""

    task: Task
    image: bytes
    masks: list[MaskIn] | None
    options: RequestOptions
    map: bytes | None = None
    """The label map or panoptic PNG."""
    segments_info: list[SegmentInfo] | None = None
    kept: bytes | None = None
    """The masks as they came: see `keep`."""


def parse(body: memoryview, content_type: str, task: Task, limits: Limits, allowance: Allowance) -> Asked:
    """What a JSON or multipart body asks for. Raises `BodyError` (400), `InputError` (422), `LimitError` (413)."""
    allowance.at_least(KEPT_COPIES * len(body))
    if content_type.lower().startswith(MULTIPART):
        allowance.take(3 * len(body))
        return _from_parts(read_form(parse_multipart(bytes(body), content_type), allowance), task, limits)
    document = load_json(body, allowance)
    given = document.get("masks") if isinstance(document, dict) else None
    if isinstance(given, list):
        options = document.get("options")
        chosen = masks_of(given, "", options.get("image_id") if isinstance(options, dict) else None)
        given = _plain_entries(chosen, limits)  # numbered before each is checked
        document["masks"] = [_known(mask) for mask in given]
    request = validated(_KINDS[task], document)
    with allowance.room(PARSER_MAPS * len(body)):  # what the parser gave back is used again
        kept = None if request.masks is None else keep(given or [])
    label_map = getattr(request, "label_map", None) or getattr(request, "segment_map", None)
    return Asked(
        task,
        decode_base64(request.image.data, "/image/data"),
        request.masks,
        request.options,
        decode_base64(label_map.data, f"/{_map_name(task)}/data") if isinstance(label_map, EncodedFile) else None,
        getattr(request, "segments_info", None),
        kept,
    )


def parse_picture(body: memoryview, content_type: str, allowance: Allowance) -> tuple[bytes, SegmentOptions]:
    """The image file and the options of a body without masks; raises as `parse`."""
    if not content_type.lower().startswith(MULTIPART):
        request = validated(SegmentRequest, load_json(body, allowance))
        return decode_base64(request.image.data, "/image/data"), request.options
    allowance.take(3 * len(body))
    form = read_form(parse_multipart(bytes(body), content_type), allowance)
    if form.masks is not None or form.pngs or form.segments is not None:
        raise InputError("masks", expected="an image alone", got="masks too", fix="send masks to /v1/refine/instance")
    assert form.image is not None
    return form.image, validated(SegmentOptions, form.options)


def _map_name(task: Task) -> str:
    return "label_map" if task == "semantic" else "segment_map"


# ---------------------------------------------------------------- multipart


def _from_parts(form: Form, task: Task, limits: Limits) -> Asked:
    """What a form asks for."""
    options = validated(RequestOptions, form.options)
    if isinstance(form.masks, dict):
        form.segments = form.masks.get("segments_info", form.segments)
    given = None
    if form.masks is not None and not (isinstance(form.masks, dict) and form.masks.keys() == {"segments_info"}):
        given = _plain_entries(masks_of(form.masks, form.name, options.image_id), limits)
    masks = None if given is None else [validated(MaskIn, _known(item)) for item in given]
    if task == "instance" and not form.is_map:
        masks = (masks or []) + [_png_mask(data) for data in form.pngs]
        given = (given or []) + [{"segmentation": {"png": base64.b64encode(data).decode()}} for data in form.pngs]
    elif len(form.pngs) > 1:
        raise InputError(f"{len(form.pngs)} maps", expected="one PNG", got=str(len(form.pngs)), fix="send one")
    assert form.image is not None
    return Asked(
        task,
        form.image,
        masks,
        options,
        form.pngs[0] if form.pngs and (form.is_map or task != "instance") else None,
        _list_of(SegmentInfo, form.segments, "segments_info"),
        None if given is None else keep(given),
    )


def _plain_entries(masks: list[Any], limits: Limits) -> list[Any]:
    """The masks, what is a mask without ``segmentation`` (an RLE by itself) put under that key."""
    check_number(len(masks), limits)
    return [_under_its_key(mask) if isinstance(mask, dict) else mask for mask in masks]


def _under_its_key(mask: dict[str, Any]) -> dict[str, Any]:
    keys = [key for key in ("size", "counts", "png", "soft") if key in mask]
    if "segmentation" in mask or not MASK_KEYS.intersection(keys):
        return mask
    return {**{key: mask[key] for key in mask if key not in keys}, "segmentation": {key: mask[key] for key in keys}}


def _known(mask: Any) -> Any:
    """What of a mask is read; its other keys are kept as they came."""
    return {key: mask[key] for key in MaskIn.model_fields if key in mask} if isinstance(mask, dict) else mask


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


def decode_image(data: bytes, options: RequestOptions, limits: Limits, allowance: Allowance) -> ReadImage:
    """The image as the options have it. The header is checked and the memory taken before anything is decoded."""
    try:
        header = read_header(data, limits.max_pixels, allowance)
        if options.window is not None or options.no_data is not None:
            allowance.at_least(header.decode_bytes + WINDOW_BYTES * header.height * header.width)
        window: Any = tuple(options.window) if isinstance(options.window, list) else options.window
        return open_image(
            data,
            max_pixels=limits.max_pixels,
            exif=options.exif,
            page=options.page,
            window=window,
            no_data=options.no_data,
        )
    except BprError as error:
        raise located(error, "/image") from None


def decode_masks(
    asked: Asked, height: int, width: int, limits: Limits, allowance: Allowance
) -> tuple[list[Mask], list[str | None]]:
    """Masks of an (H, W) image, and of each why it is left alone: None, or it has no mask, or is a crowd.

    Number and runs are checked first; the boxes' pixels are added up as they come.
    """
    items = asked.masks or []
    check_number(len(items), limits)
    masks: list[Mask] = []
    reasons: list[str | None] = []
    pixels = 0
    for index, item in enumerate(items):
        try:
            reason = left_alone({"iscrowd": item.iscrowd}, item.segmentation, asked.options.crowds)
            mask = nothing(height, width)
            if reason is None:
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
        masks.append(mask)
        reasons.append(reason)
    return masks, reasons


def nothing(height: int, width: int) -> Mask:
    """A mask of an (H, W) image without a pixel."""
    return Mask(height, width, 0, 0, np.zeros((0, 0), np.uint8))


def keep(entries: list[dict[str, Any]]) -> bytes:
    """Masks as they came, each as a list of (key, value) in JSON, to be written back without being read again.

    Raises:
        InputError: keys that cannot be sent back.
    """
    kept = []
    for index, entry in enumerate(entries):
        try:
            kept.append([(json_text(key), json_text(value)) for key, value in entry.items()])
        except (ValueError, RecursionError):
            raise located(
                InputError("a mask's own keys", expected="plain JSON, not deeply nested", fix="leave them out"),
                f"/masks/{index}",
            ) from None
    return json_text(kept).encode()


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
