"""``/v1``: refine, and the models. A route is parse, call, print."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from bpr_service.runtime.engine import Engine
from bpr_service.server.codec.schemas import (
    ActivateRequest,
    ActivateResponse,
    InstanceRequest,
    ModelList,
    PanopticRequest,
    RefineResponse,
    SemanticRequest,
)
from bpr_service.server.http.openapi import problems, refine_docs
from bpr_service.server.http.refine import InstanceCall, PanopticCall, SemanticCall, refine

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
    return await refine(request, InstanceCall)


@router.post(
    "/refine/semantic",
    tags=["refine"],
    response_model=RefineResponse,
    responses=_REFUSALS,
    openapi_extra=refine_docs("semantic", SemanticRequest),
)
async def refine_semantic(request: Request) -> Response:
    """Exact boundaries between the labels of a label map."""
    return await refine(request, SemanticCall)


@router.post(
    "/refine/panoptic",
    tags=["refine"],
    response_model=RefineResponse,
    responses=_REFUSALS,
    openapi_extra=refine_docs("panoptic", PanopticRequest),
)
async def refine_panoptic(request: Request) -> Response:
    """Exact boundaries between the segments of a panoptic map."""
    return await refine(request, PanopticCall)


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


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
