"""The application: its parts put together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Protocol

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from bpr_service.errors import BprError
from bpr_service.network.segmenter import Segmenter
from bpr_service.runtime.engine import Engine
from bpr_service.server.codec.label_studio import PredictRequest
from bpr_service.server.codec.parse import SegmentRequest
from bpr_service.server.codec.pool import Pool
from bpr_service.server.http import audit, health, label_studio, routes, segment
from bpr_service.server.http.auth import Keys
from bpr_service.server.http.gate import Gate
from bpr_service.server.http.openapi import install_openapi, problems
from bpr_service.server.http.problems import problem_response
from bpr_service.server.metrics import Metrics
from bpr_service.server.models import Catalogue, ServedModels
from bpr_service.server.page import routes as page
from bpr_service.server.settings import ServerSettings


class Beside(Protocol):
    """What runs in threads of its own while the service does; neither call waits."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


def create_app(
    engine: Engine,
    config: ServerSettings | None = None,
    *,
    catalogue: Catalogue | None = None,
    keys: Keys | None = None,
    metrics: Metrics | None = None,
    job_router: APIRouter | None = None,
    segmenter: Segmenter | None = None,
    pool: Pool | None = None,
    beside: Sequence[Beside] = (),
) -> FastAPI:
    """The service around an ``engine``, which starts and stops with it: see `lifespan`.

    Args:
        engine: not started yet.
        config: by default that of the environment.
        catalogue: lists and activates models; by default only what the engine serves.
        keys: guard the routes; by default those of ``config.api_keys_file``.
        metrics: what ``/metrics`` shows.
        job_router: adds ``/v1/jobs``.
        segmenter: adds ``/v1/segment`` and ``/v1/segment-refine``.
        pool: processes that read and write, started and stopped by the caller; by default the service's own.
        beside: what else runs while the service does.
    """
    settings = config or ServerSettings()
    metrics = metrics or Metrics()
    metrics.watch(engine)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, responses=problems(422), lifespan=lifespan)
    if keys is None:
        keys = Keys(path=settings.api_keys_file)
    app.state.engine, app.state.settings, app.state.metrics = engine, settings, metrics
    app.state.pool, app.state.owns_pool = pool or Pool(2 * settings.cpu_workers), pool is None
    app.state.started, app.state.beside, app.state.keys = Future(), beside, keys
    app.state.fleet_text = None  # the metrics of all processes, where this one is of a fleet
    app.state.catalogue = catalogue or ServedModels()
    for router in (health.router, routes.router, audit.router, label_studio.router, page.router):
        app.include_router(router)
    if job_router is not None:
        app.include_router(job_router)
    app.state.segmenter = segmenter
    if segmenter is not None:
        app.include_router(segment.router)
    for kind in (BprError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _problem)
    app.add_middleware(Gate, keys=keys, metrics=metrics, settings=settings)
    install_openapi(app, PredictRequest, *([SegmentRequest] if segmenter is not None else []))
    if settings.otel:
        from bpr_service.server.telemetry import instrument

        instrument(app)
    return app


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start all that runs, the engine beside the first answers (they say that it is not ready); stop it after the last.

    ``app.state.started`` is done when the engine is ready, or has the error for which it did not start. To let
    requests in flight end first, drain the engine before the server is stopped, as `bpr serve` does.
    """
    engine: Engine = app.state.engine
    pool: Pool = app.state.pool
    started: Future[None] = app.state.started
    started.set_running_or_notify_cancel()  # who waits for it and gives up does not cancel it

    def start() -> None:
        try:
            if app.state.owns_pool:
                pool.start()
            engine.start()
        except BaseException as error:
            started.set_exception(error)
        else:
            started.set_result(None)

    threading.Thread(target=start, name="start", daemon=True).start()  # a server that leaves does not wait for it
    for each in app.state.beside:
        each.start()
    try:
        yield
    finally:
        for each in (*app.state.beside, app.state.keys):
            each.stop()
        await asyncio.to_thread(engine.stop)
        if app.state.owns_pool:
            pool.stop()


async def _problem(request: Request, error: Exception) -> Response:
    if isinstance(error, BprError):
        metrics: Metrics = request.app.state.metrics
        metrics.rejected.labels(error.code).inc()
    return problem_response(error)
