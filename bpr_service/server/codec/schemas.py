"""Requests and answers of the refine routes, as OpenAPI shows them.

Base64 fields take a data URI (``data:image/png;base64,...``) as well.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from bpr_service.masks.encoding import Encoding
from bpr_service.masks.images import Exif

Task = Literal["instance", "semantic", "panoptic"]


def _whole(value: Any) -> Any:
    """17.0 as 17."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Side = Annotated[int, Field(ge=1, le=1 << 20), BeforeValidator(_whole)]
_Id = int | Annotated[float, Field(allow_inf_nan=False)] | Annotated[str, Field(max_length=256)] | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class EncodedFile(_Strict):
    """A picture file."""

    data: str = Field(description="the file's bytes, base64", examples=["iVBORw0KGgo..."])


def _counts_kind(value: Any) -> str:
    return "runs" if isinstance(value, list) else "text"


class Rle(_Strict):
    """COCO run-length encoding, compressed (a string) or not (integers, zeros first, down the columns)."""

    size: Annotated[list[_Side], Field(min_length=2, max_length=2, description="[height, width] in px")]
    counts: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[Annotated[int, Field(ge=0, le=1 << 40)]], Field(fail_fast=True), Tag("runs")],
        Discriminator(_counts_kind),
    ]


class PngMask(_Strict):
    """A PNG of the image's size, non-zero is foreground."""

    png: str = Field(description="base64")
    soft: bool = Field(default=False, description="the values are probabilities (8- or 16-bit gray)")


def _rings(value: Any) -> Any:
    """Outlines as flat lists: of ``[[x, y], ...]``, of one outline without the outer list; null outlines left out."""
    if not isinstance(value, list):
        return value
    if value and all(isinstance(each, int | float) for each in value):
        return [value]
    return [_flat(part) for part in value if part is not None]


def _flat(part: Any) -> Any:
    if isinstance(part, list) and part and all(isinstance(point, list) for point in part):
        return [number for point in part for number in point]
    return part


_Coordinate = Annotated[float, Field(strict=False, allow_inf_nan=False)]
Polygon = Annotated[list[_Coordinate], Field(fail_fast=True)]


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "png" if "png" in value else "rle"
    if isinstance(value, Rle | PngMask):
        return "png" if isinstance(value, PngMask) else "rle"
    return "polygons" if isinstance(value, list) else "base64"


Segmentation = Annotated[
    Annotated[Rle, Tag("rle")]
    | Annotated[PngMask, Tag("png")]
    | Annotated[list[Polygon], Field(fail_fast=True), BeforeValidator(_rings), Tag("polygons")]
    | Annotated[str, Field(description="a PNG, base64"), Tag("base64")],
    Discriminator(_kind),
]


def _nothing(value: Any) -> Any:
    """A segmentation that is empty as None."""
    return None if value in ([], "", {}) else value


class MaskIn(BaseModel):
    """A mask. Keys that are not known come back as they were, and a mask that is not refined with all it had.

    Without a `segmentation` (none, null, empty), or with `iscrowd` 1, it is left alone.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    id: Any = Field(default=None, description="a number or a text; comes back as it is")
    category_id: Any = Field(default=None, description="comes back as it is; of maps: the label, 0 to 65535")
    score: Annotated[float, Field(strict=False, allow_inf_nan=False)] | None = None
    iscrowd: Any = None
    segmentation: Annotated[Segmentation | None, BeforeValidator(_nothing)] = None

    @property
    def label(self) -> int | None:
        """`category_id` where it is a label that a map can have."""
        value = _whole(self.category_id)
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535 else None


class RequestOptions(_Strict):
    """How to refine, and how to answer."""

    preset: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="fast, lean, balanced (default) or best", examples=["balanced"]
    )
    nms_threshold: Annotated[float, Field(ge=0.0, lt=1.0, strict=False)] | None = Field(
        default=None, description="overlap (IoU) up to which patches are kept; higher is denser, slower, better"
    )
    gate: bool | None = Field(default=None, description="keep the coarse mask where the model itself expects no gain")
    encoding: Encoding = Field(default="same", description="how masks are answered; `same`: as they came")
    timeout_s: Annotated[float, Field(gt=0.0, le=3600.0, strict=False)] | None = Field(
        default=None, description="deadline; the server's own where left out"
    )
    ignore_label: Annotated[int, Field(ge=-1, le=65535)] = Field(
        default=255,
        description="semantic: the label that is never rewritten; a map of 0 and 255 alone is a mask, unless it is set",
    )
    exif: Exif = Field(default="ignore", description="apply: masks are of the upright photograph; ignore: as stored")
    page: Annotated[int, Field(ge=1)] | None = Field(default=None, description="which page of a TIFF, from 1")
    window: Literal["auto"] | Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="auto, or [low, high]: the values of the image that become black and white"
    )
    no_data: Literal["auto"] | float | None = Field(default=None, description="see docs/api.md: where nothing changes")
    crowds: bool = Field(default=False, description="refine masks with `iscrowd` 1 too")
    image_id: _Id = Field(default=None, description="of masks of several images: those of the image with this id")


class InstanceRequest(_Strict):
    """Masks that know nothing of each other and may overlap, or a PNG of instance ids."""

    image: EncodedFile
    masks: Annotated[list[MaskIn], Field(fail_fast=True)] | None = None
    label_map: EncodedFile | None = Field(
        default=None, description="instead of masks: a PNG of instance ids, 0 is background"
    )
    options: RequestOptions = RequestOptions()


class SemanticRequest(_Strict):
    """One label a pixel: a label map, or masks painted over each other; of `soft` ones the likeliest, or the rest."""

    image: EncodedFile
    label_map: EncodedFile | None = Field(default=None, description="a PNG of labels, gray or palette")
    masks: Annotated[list[MaskIn], Field(fail_fast=True)] | None = Field(
        default=None,
        description="instead of label_map; `category_id` is the label; the rest is answered as ignore_label",
    )
    options: RequestOptions = RequestOptions()


class SegmentInfo(BaseModel):
    """A segment of a panoptic map (COCO panoptic). Keys that are not known come back as they were."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: Annotated[int, Field(ge=1, lt=1 << 24)]
    category_id: Annotated[int, Field(ge=0, le=1 << 31)]


class PanopticRequest(_Strict):
    """One segment a pixel: a COCO panoptic PNG with its segments, or masks (with `id` and `category_id`)."""

    image: EncodedFile
    segment_map: EncodedFile | None = Field(default=None, description="an RGB PNG, id = R + 256 G + 65536 B, 0 is void")
    segments_info: Annotated[list[SegmentInfo], Field(fail_fast=True)] | None = None
    masks: Annotated[list[MaskIn], Field(fail_fast=True)] | None = None
    options: RequestOptions = RequestOptions()


class MaskOut(BaseModel):
    """A mask as it was sent, with its new outline and what was done."""

    model_config = ConfigDict(extra="allow")

    id: int | float | str | None = None
    category_id: int | None = None
    score: float | None = None
    segmentation: Rle | PngMask | list[list[float]] | str | None
    bbox: list[float] | None = Field(description="COCO box [x, y, width, height], px")
    area: float | None = Field(description="foreground, px")
    status: Literal["refined", "unchanged"]
    reason: str | None = Field(description="why it is unchanged")
    patches: int
    changed_px: int
    added_px: int
    removed_px: int
    confidence: float | None = Field(
        default=None, description="expected boundary F at 2 px, 0 to 1; null where the model has no estimate"
    )
    scale: float | None = Field(
        default=None, description="what its patches measured over what the model was trained at; null where it had none"
    )
    uncertain: list[list[int]] = Field(
        default_factory=list,
        description="boxes [x, y, width, height], px, where the network expects many of its decisions to be wrong",
    )


class ModelOut(BaseModel):
    """What answered."""

    name: str
    version: str
    preset: str


class RefineResponse(BaseModel):
    """`masks` are in the order in which they came."""

    request_id: str
    task: Task
    size: list[int] = Field(description="[height, width] in px")
    masks: list[MaskOut]
    label_map: EncodedFile | None = Field(default=None, description="the map that came, refined")
    segment_map: EncodedFile | None = Field(default=None, description="panoptic: an RGB PNG of segment ids")
    segments_info: list[dict[str, Any]] | None = Field(default=None, description="panoptic, as COCO has it")
    vanished: list[int] | None = Field(default=None, description="labels or segment ids with no pixel left")
    warnings: list[str] = Field(description="what a person should know of how the picture was read")
    model: ModelOut
    device: str
    timings_ms: dict[str, float] = Field(description="decode, prepare, queue, crop, network, add, finish, encode")


class PlaceOut(BaseModel):
    """A run of a mask's boundary that is off."""

    box: list[int] = Field(description="[x, y, width, height], px")
    line: list[list[int]] = Field(description="[[x, y], ...] along the mask's boundary, px")
    px: float = Field(description="how far, at its worst; above 0: the mask ends too early; below: it goes too far")
    length_px: int


class FoundOut(BaseModel):
    """A mask as it was sent, but for its outline, and what was found of it."""

    model_config = ConfigDict(extra="allow")

    id: int | float | str | None = None
    suspicion: float | None = Field(description="probability that it is wrong; null where it was left alone")
    expected_iou: float | None = Field(default=None, description="with the truth; null where it cannot be judged")
    expected_boundary_f: float | None = Field(default=None, description="against the truth, at 2 px")
    bbox: list[float] | None = Field(default=None, description="COCO box [x, y, width, height], px")
    area: float | None = Field(default=None, description="foreground, px")
    kinds: list[str] = Field(default_factory=list, description="of error, the likeliest first")
    where: list[PlaceOut] = Field(default_factory=list, description="the worst first")
    replacement: Rle | None = Field(default=None, description="the refined mask, where it is expected to be better")
    reason: str | None = Field(default=None, description="why it was left alone")


class AuditResponse(BaseModel):
    """`masks` are in the order in which they came."""

    request_id: str
    size: list[int] = Field(description="[height, width] in px")
    masks: list[FoundOut]
    warnings: list[str]
    model: ModelOut
    device: str
    timings_ms: dict[str, float]


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    expected: str | None = None
    got: str | None = None
    fix: str | None = None
    pointer: str | None = Field(default=None, description="where in the request, a JSON pointer")
    faults: list[dict[str, str]] | None = None


class VersionInfo(BaseModel):
    """A version, as a person chooses between them."""

    version: str
    label: str = Field(default="", description="the version's name in its card")
    source: Literal["bundled", "store"]
    created: str | None = Field(default=None, description="when it came into the store")
    figures: dict[str, Any] = Field(default_factory=dict, description="what was measured, by its card or its training")
    previous: bool = Field(default=False, description="served before the active one: what a rollback goes to")


class ModelInfo(BaseModel):
    """A model that is served or could be."""

    name: str
    active: str | None = Field(description="the version that is served")
    versions: list[str]
    presets: list[str]
    card: dict[str, Any] | None = Field(default=None, description="of the served version: data, metrics, sizes")
    details: list[VersionInfo] = Field(default_factory=list, description="of each version")


class ModelList(BaseModel):
    """Every model that is served."""

    default_preset: str
    models: list[ModelInfo]


class ActivateRequest(_Strict):
    """Which version is to be served."""

    version: str | None = Field(default=None, min_length=1, max_length=128, description="the newest where left out")


class ActivateResponse(BaseModel):
    """What is served now, and behind which presets."""

    name: str
    version: str
    presets: list[str]


@cache
def examples() -> dict[str, Any]:
    """A small request of each task, by its name; each runs."""
    data: dict[str, Any] = json.loads((Path(__file__).parent / "examples.json").read_bytes())
    return data
