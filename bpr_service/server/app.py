"""The application: its parts put together."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from bpr_service.errors import BprError
from bpr_service.runtime.engine import Engine
from bpr_service.server.codec.label_studio import PredictRequest
from bpr_service.server.codec.pool import Pool
from bpr_service.server.http import health, label_studio, routes
from bpr_service.server.http.auth import Keys
from bpr_service.server.http.gate import Gate
from bpr_service.server.http.openapi import install_openapi, problems
from bpr_service.server.http.problems import problem_response
from bpr_service.server.metrics import Metrics
from bpr_service.server.models import Catalogue, ServedModels
from bpr_service.server.page import routes as page
from bpr_service.server.settings import ServerSettings


def create_app(
    engine: Engine,
    config: ServerSettings | None = None,
    *,
    catalogue: Catalogue | None = None,
    keys: Keys | None = None,
    metrics: Metrics | None = None,
    job_router: APIRouter | None = None,
    pool: Pool | None = None,
) -> FastAPI:
    """The service around a running (or starting) ``engine``.

    ``catalogue`` lists and activates models (by default only what the engine serves), ``keys`` guard the routes (by
    default those of ``config.api_keys_file``), ``job_router`` adds ``/v1/jobs``. Starting, draining and stopping the
    engine is the caller's: see `bpr_service.server.server_commands`.
    """
    settings = config or ServerSettings()
    metrics = metrics or Metrics()
    metrics.watch(engine)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, responses=problems(422))
    if keys is None:
        keys = Keys(path=settings.api_keys_file)
    app.state.engine, app.state.settings, app.state.metrics = engine, settings, metrics
    app.state.pool = pool or Pool(2 * settings.cpu_workers)
    app.state.fleet_text = None  # the metrics of all processes, where this one is of a fleet
    app.state.catalogue = catalogue or ServedModels()
    for router in (health.router, routes.router, label_studio.router, page.router):
        app.include_router(router)
    if job_router is not None:
        app.include_router(job_router)
    for kind in (BprError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _problem)
    app.add_middleware(Gate, keys=keys, metrics=metrics, settings=settings)
    install_openapi(app, PredictRequest)
    if settings.otel:
        from bpr_service.server.telemetry import instrument

        instrument(app)
    return app


async def _problem(request: Request, error: Exception) -> Response:
    if isinstance(error, BprError):
        metrics: Metrics = request.app.state.metrics
        metrics.rejected.labels(error.code).inc()
    return problem_response(error)
