"""Label Studio's ML backend protocol: brush masks of a task come back with exact boundaries.

Connect it as a model in Label Studio: ``/health``, ``/setup`` and ``/predict`` are what it calls. A task's image must
be a data URI, or lie in Label Studio's media folder mounted at ``BPR_LABEL_STUDIO_MEDIA_DIR``; addresses are
never fetched.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from bpr_service.errors import BprError, ForbiddenError, InputError, LimitError
from bpr_service.masks.mask import Mask
from bpr_service.runtime.work import Slot, Work
from bpr_service.server.codec.faults import located, validated
from bpr_service.server.codec.parse import BYTES_PER_MASK_PIXEL, JSON, Call, decode_base64, decode_image, load_json
from bpr_service.server.codec.plans import InstancePlan, Plan
from bpr_service.server.codec.schemas import Options
from bpr_service.server.http.body import media_type
from bpr_service.server.http.health import check_ready, engine_of
from bpr_service.server.http.openapi import problems
from bpr_service.server.http.routes import admitted, through_engine
from bpr_service.server.label_studio.brush_rle import decode_brush, encode_brush
from bpr_service.server.settings import ServerSettings

router = APIRouter(tags=["label studio"])
MAX_TASKS = 32


class _Loose(BaseModel):
    model_config = ConfigDict(extra="allow")


class BrushValue(_Loose):
    format: str = "rle"
    rle: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(fail_fast=True)]


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
    result: Annotated[list[Region], Field(fail_fast=True)] = Field(default_factory=list)


class LabelTask(_Loose):
    """A task: its data, and what was annotated or predicted so far."""

    data: dict[str, Any]
    drafts: Annotated[list[Annotation], Field(fail_fast=True)] = Field(default_factory=list)
    annotations: Annotated[list[Annotation], Field(fail_fast=True)] = Field(default_factory=list)
    predictions: Annotated[list[Annotation], Field(fail_fast=True)] = Field(default_factory=list)


class Context(_Loose):
    result: Annotated[list[Region], Field(fail_fast=True)] = Field(default_factory=list)


class PredictParams(_Loose):
    context: Context | None = None


class PredictRequest(_Loose):
    """What Label Studio posts to ``/predict``."""

    tasks: Annotated[list[LabelTask], Field(max_length=MAX_TASKS, fail_fast=True)]
    model_version: str | None = None
    project: str | None = None
    label_config: str | None = None
    params: PredictParams | None = None


class Prediction(BaseModel):
    model_version: str
    score: float
    result: list[dict[str, Any]]


class PredictResponse(BaseModel):
    results: list[Prediction]
    model_version: str


@router.get("/health", responses=problems(503))
async def health(request: Request) -> dict[str, str]:
    """Label Studio asks this before it connects."""
    check_ready(engine_of(request))
    return {"status": "UP", "model_class": "BoundaryPatchRefinement"}


@router.post("/setup", responses=problems(400, 401, 403, 422, 429, 503))
async def setup(request: Request, body: dict[str, Any]) -> dict[str, str]:
    """Label Studio tells of a project; the answer is the model version."""
    engine = engine_of(request)
    check_ready(engine)
    return {"model_version": _version(engine.lane(None))}


@router.post(
    "/predict",
    response_model=PredictResponse,
    responses=problems(400, 401, 403, 413, 415, 422, 429, 503, 504),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/PredictRequest"}}},
        }
    },
)
async def predict(request: Request) -> dict[str, Any]:
    """Refine brush masks: of the interactive context, else of a task's latest draft, annotation or prediction."""
    media_type(request, (JSON,))
    started = time.monotonic()
    slot, body = await admitted(request, started)
    try:
        asked = await run_in_threadpool(_parse, body)
        del body
        if not asked.tasks:
            slot.release()
    except BaseException:
        slot.release()
        raise
    engine = engine_of(request)
    results = []
    for index, task in enumerate(asked.tasks):
        slot = slot if index == 0 else engine.admit()
        job = _Job(task, _regions(task, asked), request.app.state.settings, index)
        answer, _ = await through_engine(request, slot, started, job.build, job.encode)
        results.append(answer)
    return {"results": results, "model_version": _version(engine.lane(None))}


def _version(lane: Any) -> str:
    return f"{lane.model}@{lane.version}"


def _parse(body: bytes) -> PredictRequest:
    return validated(PredictRequest, load_json(body))


def _regions(task: LabelTask, asked: PredictRequest) -> list[Region]:
    """The brush masks to refine: what the annotator sees now goes before what was saved."""
    context = asked.params.context if asked.params else None
    sources = [context.result if context else []]
    sources += [group[-1].result for group in (task.drafts, task.annotations, task.predictions) if group]
    for source in sources:
        if brushes := [region for region in source if region.is_brush]:
            return brushes
    return []


class _Job:
    """One task through the engine."""

    def __init__(self, task: LabelTask, regions: list[Region], settings: ServerSettings, index: int) -> None:
        self._task, self._regions, self._settings, self._index = task, regions, settings, index

    def build(self, slot: Slot) -> tuple[Options, Plan]:
        settings, options = self._settings, Options()
        try:
            call = Call("instance", _image_bytes(self._task.data, settings), None, options)
            image = decode_image(call, settings, slot)
        except BprError as error:
            raise located(error, f"/tasks/{self._index}/data") from None
        height, width = image.shape[:2]
        masks = [self._mask(region, height, width, slot) for region in self._regions]
        if len(masks) > settings.max_masks:
            raise LimitError("too many masks", expected=f"at most {settings.max_masks}", got=str(len(masks)))
        return options, InstancePlan((height, width), image, [], masks, options)

    def _mask(self, region: Region, height: int, width: int, slot: Slot) -> Mask:
        told = (region.original_height or height, region.original_width or width)
        if told != (height, width):
            raise located(
                InputError(
                    "a region of another size than the image",
                    expected=f"{height} x {width} (height x width)",
                    got=f"{told[0]} x {told[1]}",
                    fix="send original_height and original_width of this image",
                ),
                f"/tasks/{self._index}",
            )
        slot.reserve(BYTES_PER_MASK_PIXEL * height * width)
        return Mask.from_array(decode_brush(region.value["rle"], height, width), max_pixels=self._settings.max_pixels)

    def encode(self, work: Work, plan: Plan, result: Any) -> dict[str, Any]:
        height, width = plan.size
        regions = []
        for region, mask, report in zip(self._regions, result.masks, result.reports, strict=True):
            entry = region.model_dump(exclude_unset=True)
            entry["value"] = {**region.value, "format": "rle", "rle": encode_brush(mask.to_array())}
            entry.update(type=region.type or "brushlabels", original_width=width, original_height=height)
            entry["meta"] = {**_dict(entry.get("meta")), "text": [f"{report.status}: {report.changed_px} px changed"]}
            regions.append(entry)
        changed = [report.status == "refined" for report in result.reports]
        score = float(np.mean(changed)) if changed else 0.0
        return {"model_version": _version(work.lane), "score": score, "result": regions}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _image_bytes(data: dict[str, Any], settings: ServerSettings) -> bytes:
    """The task's picture: the first value that is a data URI or a path of Label Studio's media folder."""
    for value in data.values():
        if isinstance(value, str) and value.startswith("data:image/"):
            return decode_base64(value, "/data")
        if isinstance(value, str) and (path := _media_path(value)) is not None:
            return _read_media(path, settings)
    raise InputError(
        "the task's image",
        expected="a data URI, /data/upload/... or /data/local-files/?d=...",
        got=", ".join(f"{key[:20]}: {str(value)[:40]}" for key, value in list(data.items())[:3]) or "no data",
        fix="addresses are not fetched: mount Label Studio's media folder",
    )


def _media_path(value: str) -> str | None:
    """Where a local address of Label Studio points inside its media folder; None where it is another address."""
    parts = urlsplit(value)
    if parts.scheme or parts.netloc:
        return None
    if parts.path.rstrip("/") == "/data/local-files":
        return (parse_qs(parts.query).get("d") or [""])[0]
    if parts.path.startswith("/data/"):
        return unquote(parts.path.removeprefix("/data/"))
    return None


def _read_media(relative: str, settings: ServerSettings) -> bytes:
    """The bytes of a file of the media folder; `ForbiddenError` outside of it."""
    if settings.label_studio_media_dir is None:
        raise InputError(
            "the task's image is a file of Label Studio",
            expected="the setting BPR_LABEL_STUDIO_MEDIA_DIR",
            got="unset",
            fix="mount the media folder here, or send the image as a data URI",
        )
    root = settings.label_studio_media_dir.resolve()
    try:
        path = (root / Path(relative.lstrip("/"))).resolve()
        if not path.is_relative_to(root):
            raise ForbiddenError("the task's image lies outside the media folder", fix="correct the task's data")
        if path.stat().st_size > settings.max_body_bytes:
            raise LimitError("the task's image", expected=f"at most {settings.max_body_bytes} bytes", got="more")
        return path.read_bytes()
    except (OSError, ValueError):
        raise InputError("the task's image", expected="a file in the media folder", got=repr(relative[:80])) from None
