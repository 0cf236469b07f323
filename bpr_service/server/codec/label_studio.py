"""Label Studio's tasks: what of them is to be refined, and its brush masks both ways."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import orjson
from pydantic import BaseModel, ConfigDict, Field

from bpr_service.errors import BprError, ForbiddenError, InputError, LimitError
from bpr_service.masks.brush_rle import decode_brush, encode_brush
from bpr_service.masks.mask import Mask
from bpr_service.server.codec.bodies import decode_base64, json_text, load_json
from bpr_service.server.codec.faults import located, validated
from bpr_service.server.codec.memory import MASK_BYTES, VALUE_BYTES, Allowance
from bpr_service.server.codec.parse import Limits, check_number, decode_image
from bpr_service.server.codec.schemas import RequestOptions
from bpr_service.server.codec.shared import Block, pack_array, pack_masks, pack_meta, unpack_masks, unpack_meta
from bpr_service.server.codec.write import Writer

MAX_TASKS = 32
MAX_ADDRESS = 1024
_IN_ADDRESS = "/:?#[]@!$&()*+,;=%~"


class _Loose(BaseModel):
    model_config = ConfigDict(extra="allow")


class Region(_Loose):
    """One entry of an annotation's result; brush masks have ``value.rle``."""

    type: str = ""
    value: dict[str, Any] = Field(default_factory=dict)
    original_width: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    original_height: Annotated[int, Field(ge=1, le=1 << 20)] | None = None

    @property
    def is_brush(self) -> bool:
        return isinstance(self.value.get("rle"), list)


class Annotation(_Loose):
    """What an annotator or a model drew on a task."""

    result: Annotated[list[Region], Field(fail_fast=True)] = Field(default_factory=list)


class LabelTask(_Loose):
    """A task: its data, and what was annotated or predicted so far."""

    data: dict[str, Any]
    drafts: Annotated[list[Annotation], Field(fail_fast=True)] = Field(default_factory=list)
    annotations: Annotated[list[Annotation], Field(fail_fast=True)] = Field(default_factory=list)
    predictions: Annotated[list[Annotation], Field(fail_fast=True)] = Field(default_factory=list)


class Interactive(_Loose):
    """What is drawn while an annotator works."""

    result: Annotated[list[Region], Field(fail_fast=True)] = Field(default_factory=list)


class PredictParams(_Loose):
    """How Label Studio asks."""

    context: Interactive | None = None


class PredictRequest(_Loose):
    """What Label Studio posts to ``/predict``."""

    tasks: Annotated[list[LabelTask], Field(max_length=MAX_TASKS, fail_fast=True)]
    model_version: str | None = None
    project: str | None = None
    label_config: str | None = None
    params: PredictParams | None = None


def split(message: dict[str, Any], block: Block, allowance: Allowance) -> tuple[dict[str, Any], Block]:
    """A body of ``/predict`` to one piece a task: its data, and the brush masks to refine."""
    asked = validated(PredictRequest, load_json(block.view(), allowance))
    out, pieces = Block(), []
    allowance.last(block.size)
    for task in asked.tasks:
        regions = [region.model_dump(exclude_unset=True) for region in _regions(task, asked)]
        piece = json_text({"data": task.data, "regions": regions}).encode()
        start = out.append(piece)
        address = picture_address(task.data) if regions else None
        address = None if address is None or address.startswith("data:") else quote(address[:MAX_ADDRESS], _IN_ADDRESS)
        pieces.append([start, start + len(piece), address])
    return {"pieces": pieces}, out


def _regions(task: LabelTask, asked: PredictRequest) -> list[Region]:
    """The brush masks to refine: what the annotator sees now goes before what was saved."""
    context = asked.params.context if asked.params else None
    sources = [context.result if context else []]
    sources += [group[-1].result for group in (task.drafts, task.annotations, task.predictions) if group]
    for source in sources:
        if brushes := [region for region in source if region.is_brush]:
            return brushes
    return []


def read(message: dict[str, Any], block: Block, allowance: Allowance) -> tuple[dict[str, Any], Block]:
    """One piece of `split` to its image and masks."""
    limits, index = Limits(**message["limits"]), message["index"]
    task = load_json(block.view(*message["piece"]), allowance)
    check_number(len(task["regions"]), limits)
    options = RequestOptions(exif="apply")  # what an annotator draws on is upright
    try:
        if message["media"] is not None:
            data = bytes(block.view(*message["media"]))
        else:
            data = _image_bytes(task["data"], message["media_dir"], limits, allowance)
        image = decode_image(data, options, limits, allowance).pixels
    except BprError as error:
        error.pointer = f"/tasks/{index}/data"  # type: ignore[attr-defined]
        raise
    height, width = image.shape[:2]
    allowance.last(image.size)
    out = Block()
    meta: dict[str, Any] = {"options": options.model_dump(), "image": pack_array(out, image)}
    masks = []
    for region in task["regions"]:
        masks.append(_mask(Region(**region), height, width, index, limits, allowance))
        allowance.take(2 * masks[-1].crop.size)
        allowance.last(MASK_BYTES * masks[-1].crop.size)
    meta |= {"masks": pack_masks(out, masks), "given": json_text(task["regions"])}
    meta |= {"map": None, "alone": [None] * len(masks), "kept": []}
    return pack_meta(out, meta), out


def _mask(region: Region, height: int, width: int, index: int, limits: Limits, allowance: Allowance) -> Mask:
    size = (region.original_height or height, region.original_width or width)
    if size != (height, width):
        raise located(
            InputError(
                "a region of another size than the image",
                expected=f"{height} x {width} (height x width)",
                got=f"{size[0]} x {size[1]}",
                fix="send original_height and original_width of this image",
            ),
            f"/tasks/{index}",
        )
    allowance.at_least(6 * height * width + 32 * len(region.value["rle"]))
    return Mask.from_array(decode_brush(region.value["rle"], height, width), max_pixels=limits.max_pixels)


def write(message: dict[str, Any], block: Block, allowance: Allowance) -> tuple[dict[str, Any], Block]:
    """A result to the JSON of one task's prediction."""
    meta = unpack_meta(message, block)
    height, width = meta["size"]
    masks = unpack_masks(block, meta["masks"], height, width)
    out = Writer(allowance)
    changed = [report["status"] == "refined" for report in meta["reports"]]
    head = {"model_version": meta["said"]["version"], "score": sum(changed) / max(1, len(changed))}
    out.write(orjson.dumps(head)[:-1] + b',"result":[')
    for at, (entry, mask, report) in enumerate(zip(json.loads(meta["given"]), masks, meta["reports"], strict=True)):
        if report["status"] == "refined":
            allowance.at_least(12 * height * width + VALUE_BYTES * mask.crop.size)
            entry["value"] = {**entry["value"], "format": "rle", "rle": encode_brush(mask.to_array())}
        entry.update(type=entry.get("type") or "brushlabels", original_width=width, original_height=height)
        entry["meta"] = {**_dict(entry.get("meta")), "text": [f"{report['status']}: {report['changed_px']} px changed"]}
        out.write((b"," if at else b"") + json_text(entry).encode())
    out.write(b"]}")
    return {}, out.block


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _image_bytes(data: dict[str, Any], media_dir: str | None, limits: Limits, allowance: Allowance) -> bytes:
    """The task's picture: the first value that is a data URI or a path of Label Studio's media folder."""
    value = picture_address(data) or ""
    if value.startswith("data:image/"):
        return decode_base64(value, "/data")
    if (path := media_path(value)) is not None:
        return _read_media(path, media_dir, limits, allowance)
    raise InputError(
        "the task's image",
        expected="a data URI, /data/upload/... or /data/local-files/?d=...",
        got=", ".join(f"{key[:20]}: {str(value)[:40]}" for key, value in list(data.items())[:3]) or "no data",
        fix="addresses are not fetched, but Label Studio's own: set BPR_LABEL_STUDIO_URL, or mount its media folder",
    )


def picture_address(data: dict[str, Any]) -> str | None:
    """The value of a task's data that is its picture: a data URI or a file of the media folder, else any address."""
    texts = [value for value in data.values() if isinstance(value, str)]
    here = (value for value in texts if value.startswith("data:image/") or media_path(value) is not None)
    far = (value for value in texts if value.startswith(("http://", "https://", "/")))
    return next(here, None) or next(far, None)


def media_path(value: str) -> str | None:
    """Where a local address of Label Studio points inside its media folder; None where it is another address."""
    parts = urlsplit(value)
    if parts.scheme or parts.netloc:
        return None
    if parts.path.rstrip("/") == "/data/local-files":
        return (parse_qs(parts.query).get("d") or [""])[0]
    if parts.path.startswith("/data/"):
        return unquote(parts.path.removeprefix("/data/"))
    return None


def _read_media(relative: str, media_dir: str | None, limits: Limits, allowance: Allowance) -> bytes:
    """The bytes of a file of the media folder; `ForbiddenError` outside of it."""
    if media_dir is None:
        raise InputError(
            "the task's image is a file of Label Studio",
            expected="the setting BPR_LABEL_STUDIO_MEDIA_DIR",
            got="unset",
            fix="mount the media folder here, or send the image as a data URI",
        )
    root = Path(media_dir).resolve()
    try:
        path = (root / relative.lstrip("/")).resolve()
        if not path.is_relative_to(root):
            raise ForbiddenError("the task's image lies outside the media folder", fix="correct the task's data")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limits.max_body_bytes or not path.is_file():
                raise LimitError("the task's image", expected=f"a file of at most {limits.max_body_bytes} bytes")
            allowance.take(size)
            return file.read(size)
    except (OSError, ValueError):
        raise InputError("the task's image", expected="a file in the media folder", got=repr(relative[:80])) from None
