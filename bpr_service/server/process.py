"""One process, one device: start the engine, serve, drain on SIGTERM, exit 0."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import uvicorn

from bpr_service.core.backends import label
from bpr_service.core.images import read_image
from bpr_service.core.label_maps import encode_png
from bpr_service.core.masks import Mask
from bpr_service.errors import BprError, ConfigError
from bpr_service.runtime.device import bound_heap, choose_device
from bpr_service.runtime.dummy import DummyModels
from bpr_service.runtime.engine import Engine
from bpr_service.runtime.work import Lane, Stages
from bpr_service.server.app import create_app
from bpr_service.server.logs import configure_logging, log
from bpr_service.server.metrics import Metrics
from bpr_service.server.models import StoreModels
from bpr_service.server.settings import ServerSettings

CPU_BATCH_PATCHES = 32


class Server(uvicorn.Server):
    """uvicorn with the signals left to `serve`: its own way would exit by the signal and close the door at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(settings: ServerSettings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code: 0 after a clean drain, 1 where the engine failed."""
    configure_logging(settings.log_level)
    device = choose_device(settings.device)
    bound_heap()
    if device == "cpu":
        settings = for_cpu(settings)
    metrics = Metrics()
    models: Any = open_dummy(settings) if settings.dummy else open_models(settings, device)
    named = label(device, settings.backend, settings.precision)
    engine = Engine(models, settings.engine_config(), device=named, warm=warm_stages, events=metrics)
    app = create_app(
        engine,
        settings,
        catalogue=None if settings.dummy else models,
        metrics=metrics,
        job_router=job_router(metrics) if settings.jobs else None,
    )
    if not settings.dummy:
        follow_store(engine, settings)
    return asyncio.run(serve(app, engine, settings))


def follow_store(engine: Engine, settings: ServerSettings) -> None:
    """Serve what retraining jobs, commands and other servers activate in the store; ends with the process."""
    from bpr_service.runtime.follow import StoreFollower
    from bpr_service.runtime.model_store import ModelStore

    StoreFollower(engine, ModelStore(settings.model_store)).start()


def for_cpu(settings: ServerSettings) -> ServerSettings:
    """``settings`` with the batch that a CPU's caches like best, where none was asked for; sets torch's threads."""
    import torch

    if settings.threads:
        torch.set_num_threads(settings.threads)
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


def job_router(metrics: Metrics) -> Any:
    """The routes of ``/v1/jobs``, watched by ``metrics``; `ConfigError` where the extra is missing."""
    try:
        from bpr_service.jobs.engine import JobEngine
        from bpr_service.server.job_routes import create_router
    except ImportError as error:
        raise ConfigError(
            "jobs", expected="the extra jobs", got=str(error), fix="pip install 'bpr-service[jobs]'"
        ) from None
    metrics.watch_jobs(JobEngine(patience_s=0.0))  # a scrape does not wait for a database that restarts
    return create_router()


def warm_stages(lane: Lane) -> Stages:
    """A disc in noise: runs every CPU step, so that numba has compiled them before the first request."""
    ys, xs = np.mgrid[:160, :160]
    disc = ((ys - 80) ** 2 + (xs - 80) ** 2 < 48**2).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    image = read_image(encode_png(noise))
    mask = Mask.from_rle(Mask.from_array(disc).to_rle())
    stages: Stages = lane.refiner.prepare(image, [mask])
    return stages


async def serve(app: Any, engine: Engine, settings: ServerSettings) -> int:
    """Listen at once (not ready), warm up beside, and on a signal drain: refuse, finish what is in flight, leave."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        backlog=2048,
    )
    server = Server(config)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    failure: list[BaseException] = []

    def start() -> None:
        try:
            engine.start()
            log.info(
                "ready", extra={"fields": {"models": [f"{x.preset}: {x.model}@{x.version}" for x in engine.lanes()]}}
            )
        except BaseException as error:
            failure.append(error)
            loop.call_soon_threadsafe(stop.set)

    def on_signal() -> None:
        if stop.is_set():  # a second signal: leave now
            server.should_exit = server.force_exit = True
        engine.drain()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    serving = asyncio.create_task(server.serve())
    threading.Thread(target=start, name="start", daemon=True).start()
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    clean = True
    if not serving.done() and not failure:
        log.info("draining", extra={"fields": {"requests": engine.requests}})
        clean = await asyncio.to_thread(engine.wait_idle, settings.drain_s)
    server.should_exit = True
    with contextlib.suppress(SystemExit):
        await serving
    stopped.cancel()
    await asyncio.to_thread(engine.stop)
    for error in failure:
        reason = str(error) if isinstance(error, BprError) else repr(error)
        log.error("the engine did not start", extra={"fields": {"reason": reason}})
    if not clean:
        log.error(
            "requests were still in flight at the end of the drain", extra={"fields": {"requests": engine.requests}}
        )
    log.info("stopped")
    return 1 if failure or not clean or not server.started else 0
