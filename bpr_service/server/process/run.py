"""One process, one device: start the engine, serve, drain on SIGTERM, exit 0."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import uvicorn
from fastapi import FastAPI

from bpr_service.errors import BprError, ConfigError, FatalDeviceError
from bpr_service.runtime.engine import Engine
from bpr_service.server.http.connection import guarded, room_for_connections
from bpr_service.server.logs import configure_logging, log
from bpr_service.server.process.build import build
from bpr_service.server.process.fleet_metrics import fleet_metrics
from bpr_service.server.process.member import BACKLOG, Member
from bpr_service.server.settings import ServerSettings

FAILED_LOOK_S = 0.5
SWITCH_S = 0.001
"""How long a thread that computes may keep the interpreter from the event loop: probes are answered meanwhile."""
LAST_ANSWERS_S = 0.4
"""What answers may still take to leave once the drain is over."""
LEAVE_S = 0.8
"""When the process ends after the drain, whatever is still under way in it."""


class Server(uvicorn.Server):
    """uvicorn with the signals left to `serve`: its own way would exit by the signal and close the door at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for door in sockets or []:
            door.listen(BACKLOG)  # what waits may be many; one that is shared is taken from one at a time


def run(settings: ServerSettings) -> NoReturn:
    """Serve until SIGTERM or SIGINT; the process ends, with 0 after a clean drain and 1 where the engine failed."""
    check_free(settings.host, settings.port)
    sys.setswitchinterval(SWITCH_S)
    configure_logging(settings.log_level, settings.log_format)
    app, engine, settings = build(settings)
    end(asyncio.run(serve(app, engine, settings)))


def run_member(settings: ServerSettings, member: Member, listener: socket.socket, own: socket.socket) -> NoReturn:
    """`run` for a process of a fleet: on the fleet's ``listener``, and for its siblings on the Unix socket ``own``."""
    sys.setswitchinterval(SWITCH_S)
    configure_logging(settings.log_level, settings.log_format, process=member.process)
    app, engine, settings = build(settings, processes=len(member.devices))
    app.state.fleet_text = partial(fleet_metrics, member, app.state.metrics.text)

    def open_doors() -> list[socket.socket]:
        own.bind(str(member.socket_path(member.process)))
        return [listener, own]

    end(asyncio.run(serve(app, engine, settings, open_doors)))


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


def uvicorn_config(app: FastAPI, settings: ServerSettings, *, shared: bool) -> uvicorn.Config:
    """uvicorn as every server here runs it; ``shared``: its socket is a fleet's."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        http=guarded(room_for_connections(settings.max_connections), settings.header_s),
        ws="none",  # nothing here speaks it, and such connections would leave the protocol that bounds them
        lifespan="off",  # `serve` enters it
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        backlog=1 if shared else BACKLOG,  # asyncio takes so many connections at a time
    )


async def serve(
    app: FastAPI, engine: Engine, settings: ServerSettings, doors: Callable[[], list[socket.socket]] | None = None
) -> int:
    """Listen at once (not ready), warm up beside, and on a signal drain: refuse, finish what is in flight, leave.

    With ``doors``, of a fleet, listen only once ready, so that requests go to processes that are; and leave where the
    device fails for good, so that another process takes its place.
    """
    async with app.router.lifespan_context(app):
        code = await _serve(app, engine, settings, doors)
    log.info("stopped")
    return code


async def _serve(
    app: FastAPI, engine: Engine, settings: ServerSettings, doors: Callable[[], list[socket.socket]] | None
) -> int:
    """`serve`, while the engine lives."""
    server = Server(uvicorn_config(app, settings, shared=doors is not None))
    stop = asyncio.Event()
    started = asyncio.wrap_future(app.state.started)

    def on_signal() -> None:
        if stop.is_set():  # a second signal: leave now
            server.should_exit = server.force_exit = True
        else:
            leave_within(settings.drain_s + LEAVE_S)
        engine.drain()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)

    async def listen() -> None:
        if doors is None:
            await server.serve()
            return
        await asyncio.wait({started})
        if started.exception() is None:
            await server.serve(doors())

    serving, failing = (
        asyncio.create_task(listen()),
        asyncio.create_task(failure(started, engine, settings, replaced=doors is not None)),
    )
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, failing, stopped}, return_when=asyncio.FIRST_COMPLETED)
    failed = failing.result() if failing.done() else None
    clean = True
    if not serving.done() and failed is None:
        log.info("draining", extra={"fields": {"requests": engine.requests}})
        until = time.monotonic() + settings.drain_s
        clean = await asyncio.to_thread(engine.wait_idle, settings.drain_s)
        left_s = max(LAST_ANSWERS_S, until - time.monotonic())
        server.config.timeout_graceful_shutdown = left_s  # type: ignore[assignment]  # waited for, so a float will do
    if not clean:
        fields = {"requests": engine.requests}
        log.error("requests were still in flight at the end of the drain", extra={"fields": fields})
        engine.abandon()
    server.should_exit = True
    ready = started.done() and started.exception() is None
    never = doors is not None and not ready
    if never:
        serving.cancel()
    with contextlib.suppress(SystemExit, asyncio.CancelledError):
        await serving
    stopped.cancel()
    failing.cancel()
    if not clean:  # threads that are still at work would be waited for
        leave(1)
    if failed is not None:
        reason = str(failed) if isinstance(failed, BprError) else repr(failed)
        said = "the engine failed" if ready else "the engine did not start"
        log.error(said, extra={"fields": {"reason": reason}})
    code = 1 if failed or not (server.started or never) else 0
    if not started.done():  # the load would be waited for, and torn down in the middle of native code
        leave(code)
    return code


def leave_within(seconds: float) -> None:
    """End the process after ``seconds``, with 1, where it has not ended by then.

    Models that are being loaded, answers that nobody takes or a database that hangs would keep it.
    """
    timer = threading.Timer(seconds, leave, (1,))
    timer.daemon = True
    timer.start()


def leave(code: int) -> None:
    """End the process now, whatever its threads do."""
    log.info("stopped")
    logging.shutdown()
    os._exit(code)


def keep() -> None:
    """Take what is in memory for what stays: the collector goes through it no more.

    That is a third of a million objects, for which it would hold the interpreter, and with it the event loop, 0.2 s of
    a core each time.
    """
    gc.collect()
    gc.freeze()


def end(code: int) -> NoReturn:
    """End a process that has done its work: what asked to be called at the end is called, and nothing is taken apart.

    The interpreter's own end goes through all that torch and numba hold, for more than a second of a core.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


async def failure(
    started: asyncio.Future[None], engine: Engine, settings: ServerSettings, *, replaced: bool
) -> BaseException:
    """Why the engine cannot go on, once it cannot.

    It did not start, or, in a process that is ``replaced`` when it ends, the device has failed for good.
    """
    await asyncio.wait({started})
    if (error := started.exception()) is not None:
        return error
    keep()
    log.info("ready", extra=ready_lines(engine, settings))
    while engine.alive or not replaced:
        await asyncio.sleep(FAILED_LOOK_S)
    return FatalDeviceError("the device has failed")
