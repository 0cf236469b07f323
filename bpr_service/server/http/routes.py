"""``/v1``: refine, and the models. A route is parse, call, print."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from bpr_service.runtime.engine import Engine
from bpr_service.runtime.work import Hold, Lane, Slot, Stages, Work
from bpr_service.server.codec.answer import frame
from bpr_service.server.codec.parse import JSON, MULTIPART, decode_image, parse_call
from bpr_service.server.codec.plans import Plan, make_plan
from bpr_service.server.codec.schemas import (
    ActivateRequest,
    ActivateResponse,
    InstanceRequest,
    ModelList,
    Options,
    PanopticRequest,
    RefineResponse,
    SemanticRequest,
    Task,
)
from bpr_service.server.http.body import disconnected, media_type, read_body
from bpr_service.server.http.openapi import problems, refine_docs
from bpr_service.server.logs import request_id
from bpr_service.server.metrics import Metrics
from bpr_service.server.settings import ServerSettings
from bpr_service.server.telemetry import record_steps

router = APIRouter(prefix="/v1")
_REFUSALS = problems(400, 401, 403, 413, 415, 422, 429, 503, 504)


@router.post(
    "/refine/instance",
    tags=["refine"],
    response_model=RefineResponse,
    responses=_REFUSALS,
    openapi_extra=refine_docs("instance", InstanceRequest),
)
async def refine_instance(request: Request) -> Response:
    """Exact boundaries for masks that may overlap."""
    return await _refine(request, "instance")


@router.post(
    "/refine/semantic",
    tags=["refine"],
    response_model=RefineResponse,
    responses=_REFUSALS,
    openapi_extra=refine_docs("semantic", SemanticRequest),
)
async def refine_semantic(request: Request) -> Response:
    """Exact boundaries between the labels of a label map."""
    return await _refine(request, "semantic")


@router.post(
    "/refine/panoptic",
    tags=["refine"],
    response_model=RefineResponse,
    responses=_REFUSALS,
    openapi_extra=refine_docs("panoptic", PanopticRequest),
)
async def refine_panoptic(request: Request) -> Response:
    """Exact boundaries between the segments of a panoptic map."""
    return await _refine(request, "panoptic")


async def _refine(request: Request, task: Task) -> Response:
    """Read the body, let the engine work in its threads, answer."""
    engine, settings = _engine(request), _settings(request)
    media_type(request, (JSON, MULTIPART))
    content_type, rid = request.headers["content-type"], request_id.get()
    started = time.monotonic()
    slot, body = await admitted(request, started)
    held = [body]
    del body

    def build(slot: Slot) -> tuple[Options, Plan]:
        call = parse_call(held.pop(), content_type, task)
        engine.lane(call.options.preset)  # an unknown preset is said before anything is decoded
        return call.options, make_plan(call, decode_image(call, settings, slot), settings, slot)

    def encode(work: Work, plan: Plan, result: Any) -> bytes:
        with work.timed("encode"):
            parts = plan.answer(result)
        return frame(work, rid, task, result.device, plan.size, **parts)

    answer, timings = await through_engine(request, slot, started, build, encode)
    timing = ", ".join(f"{step};dur={ms:.1f}" for step, ms in timings.items())
    return Response(answer, media_type=JSON, headers={"Server-Timing": timing})


async def admitted(request: Request, started: float) -> tuple[Slot, bytes]:
    """The body, and then a slot, so that a body that comes slowly keeps nobody out.

    What could not be worked on now is not even read.
    """
    settings, engine = _settings(request), _engine(request)
    engine.check_room()
    hold = Hold(engine.memory)
    try:
        body = await read_body(request, hold, settings, started + settings.timeout_s)
        return engine.admit(hold), body
    except BaseException:
        hold.release()
        raise


async def through_engine(
    request: Request,
    slot: Slot,
    started: float,
    build: Callable[[Slot], tuple[Options, Plan]],
    encode: Callable[[Work, Plan, Any], Any],
) -> tuple[Any, dict[str, float]]:
    """One refinement: ``build`` decodes, ``encode`` writes the answer; both run in pool threads.

    Returns the answer and the milliseconds of each step.
    """
    engine, settings = _engine(request), _settings(request)
    plans: list[Plan] = []
    kept: list[Callable[[], None]] = []
    timings: dict[str, float] = {"receive": (time.monotonic() - started) * 1e3}

    def decode(work: Work) -> tuple[Lane, Stages]:
        work.timings_ms = timings
        with work.timed("decode"):
            options, plan = build(work.slot)
        if options.timeout_s is not None:
            work.deadline = started + min(options.timeout_s, settings.max_timeout_s)
        work.check()
        lane = engine.lane(options.preset)
        with work.timed("prepare"):
            stages = plan.prepare(lane.refiner)
        plans.append(plan)
        return lane, stages

    def finish(work: Work, result: Any) -> Any:
        answer = encode(work, plans[0], result)
        if isinstance(answer, bytes):  # stays until its last byte has been sent
            work.slot.reserve(len(answer))
            kept.append(work.slot.hold.split(len(answer)).release)
        _count(request, plans[0], result, timings)
        return answer

    answer = await engine.run(slot, decode, finish, deadline=started + settings.timeout_s, gone=disconnected(request))
    request.state.frees = [*getattr(request.state, "frees", ()), *kept]
    record_steps(request.app, timings)
    return answer, timings


def _count(request: Request, plan: Plan, result: Any, timings: dict[str, float]) -> None:
    metrics: Metrics = request.app.state.metrics
    for step, ms in timings.items():
        metrics.steps.labels(step).observe(ms / 1e3)
    for report in result.reports:
        metrics.masks.labels(report.status).inc()
    request.state.log = {
        "masks": len(result.reports),
        "pixels": plan.size[0] * plan.size[1],
        "steps_ms": {step: round(ms, 1) for step, ms in timings.items()},
    }


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


def _settings(request: Request) -> ServerSettings:
    settings: ServerSettings = request.app.state.settings
    return settings


# ---------------------------------------------------------------- models


@router.get(
    "/models",
    tags=["models"],
    response_model=ModelList,
    responses=problems(401, 403, 429),
)
async def list_models(request: Request) -> Any:
    """Models that are served or could be."""
    engine = _engine(request)
    return {
        "default_preset": engine.default_preset,
        "models": await run_in_threadpool(request.app.state.catalogue.describe, engine.lanes()),
    }


@router.post(
    "/models/{name}/activate",
    tags=["models"],
    response_model=ActivateResponse,
    responses=problems(400, 401, 403, 404, 409, 413, 415, 422, 429, 503),
)
async def activate_model(request: Request, name: str, body: ActivateRequest | None = None) -> Any:
    """Serve a version: it is loaded and warmed first, then swapped in at once; where that fails nothing changes."""
    engine, catalogue = _engine(request), request.app.state.catalogue
    version = body.version if body else None
    lanes = await run_in_threadpool(catalogue.activate, engine, name, version)
    return {"name": name, "version": lanes[0].version, "presets": [lane.preset for lane in lanes]}
