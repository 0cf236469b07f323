"""The parts of a server, put together from its settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bpr_service.errors import ConfigError
from bpr_service.masks.mask import Mask
from bpr_service.network.devices import set_threads
from bpr_service.network.segmenter import Segmenter
from bpr_service.runtime.device import bound_heap, choose_device
from bpr_service.runtime.dummy import DummyModels
from bpr_service.runtime.engine import Engine
from bpr_service.runtime.follow import StoreFollower
from bpr_service.runtime.work import Lane, Stages
from bpr_service.server.app import Beside, create_app
from bpr_service.server.http.auth import Keys
from bpr_service.server.http.health import OPEN
from bpr_service.server.logs import log
from bpr_service.server.metrics import JobFigures, Metrics
from bpr_service.server.models import StoreModels
from bpr_service.server.settings import ServerSettings

CPU_BATCH_PATCHES = 32


def build(settings: ServerSettings, processes: int = 1) -> tuple[Any, Engine, ServerSettings]:
    """The application, its engine (to be started by `serve`), and the settings as the device wants them.

    ``processes`` share the rates of the keys between them.
    """
    warn_if_open(settings)
    device = choose_device(settings.device)
    bound_heap()
    if device == "cpu":
        settings = for_cpu(settings)
    metrics = Metrics()
    models: Any = open_dummy(settings) if settings.dummy else open_models(settings, device)
    engine = Engine(models, settings, device=device, warm=warm_stages, events=metrics)
    beside: list[Beside] = [StoreFollower(engine, models.chosen)] if isinstance(models, StoreModels) else []
    router = None
    if settings.jobs:
        router, figures = open_jobs(metrics)
        beside.append(figures)
    app = create_app(
        engine,
        settings,
        catalogue=None if settings.dummy else models,
        keys=Keys(path=settings.api_keys_file, processes=processes),
        metrics=metrics,
        job_router=router,
        beside=beside,
        segmenter=None if settings.segmenter is None else Segmenter(settings.segmenter),
    )
    return app, engine, settings


def warn_if_open(settings: ServerSettings) -> None:
    """Say it loudly where anybody who reaches the address may do everything."""
    if settings.is_open:
        fields = {"host": settings.host, "fix": "set BPR_API_KEYS_FILE (bpr keys makes one)"}
        log.warning(OPEN, extra={"fields": fields})


def for_cpu(settings: ServerSettings) -> ServerSettings:
    """``settings`` with the batch that a CPU's caches like best, where none was asked for; sets threads."""
    if settings.threads:
        set_threads(settings.threads)
    if "max_batch_patches" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"max_batch_patches": CPU_BATCH_PATCHES})


def open_dummy(settings: ServerSettings) -> DummyModels:
    """The network of load tests, with the cost that the settings give it."""
    return DummyModels(settings.presets, call_ms=settings.dummy_call_ms, patch_ms=settings.dummy_patch_ms)


def open_models(settings: ServerSettings, device: str) -> StoreModels:
    """The bundled models, and those of the store."""
    from bpr_service.runtime.model_store import ModelStore

    store = ModelStore(settings.model_store)
    return StoreModels(settings.presets, device, store, backend=settings.backend, precision=settings.precision)


def open_jobs(metrics: Metrics) -> tuple[Any, JobFigures]:
    """The routes of ``/v1/jobs``, and the figures of the jobs that ``metrics`` shows.

    Raises:
        ConfigError: the extra is missing.
    """
    try:
        from bpr_service.jobs.engine import JobEngine
        from bpr_service.server.http.jobs import create_router
    except ImportError as error:
        raise ConfigError(
            "jobs", expected="the extra jobs", got=str(error), fix="pip install 'bpr-service[jobs]'"
        ) from None
    return create_router(), metrics.watch_jobs(JobEngine(patience_s=0.0))


def warm_stages(lane: Lane) -> Iterator[Stages]:
    """A disc in noise as masks, a label map and a segment map: every CPU step, so that numba has compiled them.

    Compiled between requests, they would keep the event loop waiting for seconds.
    """
    import cv2

    ys, xs = np.mgrid[:160, :160]
    disc = ((ys - 80) ** 2 + (xs - 80) ** 2 < 48**2).astype(np.uint8)
    image = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    soft = cv2.GaussianBlur(disc.astype(np.float32), (9, 9), 2.0)
    yield lane.refiner.prepare(image, [Mask.from_array(disc), Mask.from_array(soft)])
    yield lane.refiner.prepare_semantic(image, disc, None)
    ids = disc.astype(np.int32) * 70_000  # as large as the colours of a panoptic PNG are
    yield lane.refiner.prepare_panoptic(image, ids, [{"id": 70_000, "category_id": 1}])
