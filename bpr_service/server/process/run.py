"""One process, one device: start the engine, serve, drain on SIGTERM, exit 0."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import uvicorn

from bpr_service.errors import BprError, ConfigError, FatalDeviceError
from bpr_service.runtime.engine import Engine
from bpr_service.server.http.connection import guarded, room_for_connections
from bpr_service.server.logs import configure_logging, log
from bpr_service.server.process.build import build
from bpr_service.server.process.fleet_metrics import fleet_metrics
from bpr_service.server.process.member import BACKLOG, Member
from bpr_service.server.settings import ServerSettings

FAILED_LOOK_S = 0.5
LAST_ANSWERS_S = 1
"""What answers may still take to leave once the drain is over."""


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
    check_free(settings.host, settings.port)
    configure_logging(settings.log_level, settings.log_format)
    app, engine, settings = build(settings)
    return asyncio.run(serve(app, engine, settings))


def run_member(settings: ServerSettings, member: Member, listener: socket.socket, own: socket.socket) -> int:
    """`run` for a process of a fleet: on the fleet's ``listener``, and for its siblings on the Unix socket ``own``."""
    configure_logging(settings.log_level, settings.log_format, process=member.process)
    app, engine, settings = build(settings, processes=len(member.devices))
    app.state.fleet_text = partial(fleet_metrics, member, app.state.metrics.text)

    def open_doors() -> list[socket.socket]:
        own.bind(str(member.socket_path(member.process)))
        return [listener, own]

    return asyncio.run(serve(app, engine, settings, open_doors))


def check_free(host: str, port: int) -> None:
    """Raise ConfigError where something listens at the address already, or where it is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"the address {host}:{port}",
                expected="a free port of this machine",
                got=error.strerror.lower() if error.strerror else str(error),
                fix="choose another with --host and --port, or stop what listens there",
            ) from None


def ready_lines(engine: Engine, settings: ServerSettings) -> dict[str, Any]:
    """What a ready server says, as fields and as the lines of a terminal: where its page is, what it runs on what."""
    lanes = engine.lanes()
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    address = f"http://{host}:{settings.port}"
    models = {lane.preset: f"{lane.model}@{lane.version}" for lane in lanes}
    runs_on = sorted({getattr(lane.refiner, "runs_on", engine.device) for lane in lanes})
    lines = [
        f"page   {address}/",
        f"docs   {address}/docs",
        f"ready  {', '.join(f'{preset} ({model})' for preset, model in models.items())} on {', '.join(runs_on)}",
    ]
    return {"fields": {"models": [f"{preset}: {model}" for preset, model in models.items()]}, "lines": lines}


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
        http=guarded(room_for_connections(settings.max_connections), settings.header_s),
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
            app.state.pool.start()
            engine.start()
            log.info("ready", extra=ready_lines(engine, settings))
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
    if not clean:
        fields = {"requests": engine.requests}
        log.error("requests were still in flight at the end of the drain", extra={"fields": fields})
        engine.abandon()
        server.config.timeout_graceful_shutdown = LAST_ANSWERS_S
    server.should_exit = True
    never = doors is not None and not ready.is_set()
    if never:
        serving.cancel()
    with contextlib.suppress(SystemExit, asyncio.CancelledError):
        await serving
    stopped.cancel()
    if watching:
        watching.cancel()
    if not clean:  # threads that are still at work would be waited for
        log.info("stopped")
        logging.shutdown()
        os._exit(1)
    await asyncio.to_thread(engine.stop)
    app.state.pool.stop()
    for error in failure:
        reason = str(error) if isinstance(error, BprError) else repr(error)
        log.error(
            "the engine failed" if ready.is_set() else "the engine did not start", extra={"fields": {"reason": reason}}
        )
    log.info("stopped")
    return 1 if failure or not (server.started or never) else 0


async def leave_when_failed(engine: Engine, failure: list[BaseException], stop: asyncio.Event) -> None:
    """Stop once the device has failed for good."""
    while engine.alive:
        await asyncio.sleep(FAILED_LOOK_S)
    failure.append(FatalDeviceError("the device has failed"))
    stop.set()
