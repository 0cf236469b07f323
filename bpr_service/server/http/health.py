"""Probes and metrics: liveness, readiness, version, and the Open Inference Protocol's names of the probes."""

from __future__ import annotations

import platform
from typing import Any, Literal

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from bpr_service import __version__
from bpr_service.errors import NotFoundError, NotReadyError
from bpr_service.runtime.engine import Engine
from bpr_service.runtime.work import Lane
from bpr_service.server.http.openapi import problems

OPEN = "NO KEYS: whoever reaches this address may refine, run jobs and swap models"
"""What a server says in its log and on its page where that is so."""

router = APIRouter()
_UNREADY = problems(503)
_MISSING = problems(404)


def engine_of(request: Request) -> Engine:
    """The engine behind the application."""
    engine: Engine = request.app.state.engine
    return engine


def _check_live(engine: Engine) -> None:
    if not engine.alive:
        raise NotReadyError("the device has failed", fix="replace this process", retry_after_s=10.0)


def check_ready(engine: Engine) -> None:
    """Raise NotReadyError unless the engine takes work."""
    if engine.state != "ready":
        raise NotReadyError(f"the server is {engine.state}", fix="try again later", retry_after_s=2.0)


@router.get("/livez", tags=["health"], responses=_UNREADY)
async def livez(request: Request) -> dict[str, str]:
    """200 unless the device has failed for good."""
    _check_live(engine_of(request))
    return {"status": "alive"}


@router.get("/readyz", tags=["health"], responses=_UNREADY)
async def readyz(request: Request) -> dict[str, str]:
    """200 while requests are admitted: not before the models are warm, not once a shutdown began."""
    check_ready(engine_of(request))
    return {"status": "ready"}


@router.get("/version", tags=["health"])
async def version(request: Request) -> dict[str, Any]:
    """The release, and what serves."""
    engine = engine_of(request)
    lanes, segmenter = engine.lanes(), request.app.state.segmenter
    return {
        "version": __version__,
        "python": platform.python_version(),
        "device": lanes[0].refiner.runs_on if lanes else engine.device,
        "presets": {lane.preset: {"model": lane.model, "version": lane.version} for lane in lanes},
        "segmenter": None if segmenter is None else f"{segmenter.card.name}@{segmenter.card.version}",
        "notice": OPEN if request.app.state.settings.is_open else None,
    }


@router.get("/metrics", tags=["health"], response_class=Response)
async def metrics(request: Request, only: Literal["this"] | None = None) -> Response:
    """Prometheus text format; of all processes where there are several, `only=this` of the one that answers."""
    own, fleet = request.app.state.metrics.text, request.app.state.fleet_text
    text = await run_in_threadpool(own if only == "this" or fleet is None else fleet)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


# ---------------------------------------------------------------- Open Inference Protocol v2 (KServe, Triton)


@router.get("/v2/health/live", tags=["open inference protocol"], responses=_UNREADY)
async def oip_live(request: Request) -> dict[str, bool]:
    """`/livez`."""
    _check_live(engine_of(request))
    return {"live": True}


@router.get("/v2/health/ready", tags=["open inference protocol"], responses=_UNREADY)
async def oip_ready(request: Request) -> dict[str, bool]:
    """`/readyz`."""
    check_ready(engine_of(request))
    return {"ready": True}


def _find(engine: Engine, name: str, model_version: str | None) -> Lane:
    for lane in engine.lanes():
        if name in (lane.model, lane.preset) and model_version in (None, lane.version):
            return lane
    served = ", ".join(sorted({f"{lane.model} {lane.version}" for lane in engine.lanes()})) or "none"
    got = name if model_version is None else f"{name} {model_version}"
    raise NotFoundError("no such model is served", expected=served, got=repr(got[:100]), fix="see /v1/models")


@router.get("/v2/models/{name}/ready", tags=["open inference protocol"], responses={**_UNREADY, **_MISSING})
@router.get(
    "/v2/models/{name}/versions/{model_version}/ready",
    tags=["open inference protocol"],
    responses={**_UNREADY, **_MISSING},
)
async def oip_model_ready(request: Request, name: str, model_version: str | None = None) -> dict[str, Any]:
    """Ready where the server is and this model (or preset) is served."""
    check_ready(engine_of(request))
    return {"name": _find(engine_of(request), name, model_version).model, "ready": True}
