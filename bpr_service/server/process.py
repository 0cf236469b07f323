"""One process, one device: start the engine, serve, drain on SIGTERM, exit 0. `fleet` runs several of them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import uvicorn

from bpr_service.errors import BprError, ConfigError, FatalDeviceError
from bpr_service.masks.images import read_image
from bpr_service.masks.label_maps import encode_png
from bpr_service.masks.mask import Mask
from bpr_service.network.backends import label
from bpr_service.runtime.device import bound_heap, choose_device
from bpr_service.runtime.dummy import DummyModels
from bpr_service.runtime.engine import Engine
from bpr_service.runtime.work import Lane, Stages
from bpr_service.server.app import create_app
from bpr_service.server.fleet import BACKLOG, Member, run_fleet
from bpr_service.server.logs import configure_logging, log
from bpr_service.server.metrics import Metrics
from bpr_service.server.models import StoreModels
from bpr_service.server.settings import ServerSettings

CPU_BATCH_PATCHES = 32
FAILED_LOOK_S = 0.5


class Server(uvicorn.Server):
    """uvicorn with the signals left to `serve`: its own way would exit by the signal and close the door at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for door in sockets or []:
            door.listen(BACKLOG)  # what waits may be many; one that is shared is taken from one at a time


def run(settings: ServerSettings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code: 0 after a clean drain, 1 where the engine failed."""
    if settings.devices:
        return run_fleet(settings)
    configure_logging(settings.log_level)
    app, engine, settings = build(settings)
    return asyncio.run(serve(app, engine, settings))


def run_member(settings: ServerSettings, member: Member, listener: socket.socket, own: socket.socket) -> int:
    """`run` for a process of a fleet: on the fleet's ``listener``, and for its siblings on the Unix socket ``own``."""
    configure_logging(settings.log_level, process=member.process)
    app, engine, settings = build(settings)
    app.state.member = member

    def open_doors() -> list[socket.socket]:
        own.bind(str(member.socket_path(member.process)))
        return [listener, own]

    return asyncio.run(serve(app, engine, settings, open_doors))


def build(settings: ServerSettings) -> tuple[Any, Engine, ServerSettings]:
    """The application, its engine (to be started by `serve`), and the settings as the device wants them."""
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
    return app, engine, settings


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


async def serve(
    app: Any, engine: Engine, settings: ServerSettings, doors: Callable[[], list[socket.socket]] | None = None
) -> int:
    """Listen at once (not ready), warm up beside, and on a signal drain: refuse, finish what is in flight, leave.

    With ``doors``, of a fleet, listen only once ready, so that requests go to processes that are; and leave where the
    device fails for good, so that another process takes its place.
    """
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
        backlog=1 if doors else BACKLOG,  # asyncio takes so many connections at a time
    )
    server = Server(config)
    loop = asyncio.get_running_loop()
    stop, ready = asyncio.Event(), asyncio.Event()
    failure: list[BaseException] = []

    def start() -> None:
        try:
            engine.start()
            log.info(
                "ready", extra={"fields": {"models": [f"{x.preset}: {x.model}@{x.version}" for x in engine.lanes()]}}
            )
            loop.call_soon_threadsafe(ready.set)
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

    async def listen() -> None:
        if doors is not None:
            await ready.wait()
        await server.serve(doors() if doors else None)

    serving = asyncio.create_task(listen())
    threading.Thread(target=start, name="start", daemon=True).start()
    stopped = asyncio.create_task(stop.wait())
    watching = asyncio.create_task(leave_when_failed(engine, failure, stop)) if doors else None
    await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    clean = True
    if not serving.done() and not failure:
        log.info("draining", extra={"fields": {"requests": engine.requests}})
        clean = await asyncio.to_thread(engine.wait_idle, settings.drain_s)
    server.should_exit = True
    never = doors is not None and not ready.is_set()
    if never:
        serving.cancel()
    with contextlib.suppress(SystemExit, asyncio.CancelledError):
        await serving
    stopped.cancel()
    if watching:
        watching.cancel()
    await asyncio.to_thread(engine.stop)
    for error in failure:
        reason = str(error) if isinstance(error, BprError) else repr(error)
        log.error(
            "the engine failed" if ready.is_set() else "the engine did not start", extra={"fields": {"reason": reason}}
        )
    if not clean:
        log.error(
            "requests were still in flight at the end of the drain", extra={"fields": {"requests": engine.requests}}
        )
    log.info("stopped")
    return 1 if failure or not clean or not (server.started or never) else 0


async def leave_when_failed(engine: Engine, failure: list[BaseException], stop: asyncio.Event) -> None:
    """Stop once the device has failed for good."""
    while engine.alive:
        await asyncio.sleep(FAILED_LOOK_S)
    failure.append(FatalDeviceError("the device has failed"))
    stop.set()
