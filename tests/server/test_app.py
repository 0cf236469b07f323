"""The lifespan: whatever serves the application, the engine starts and stops with it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from bpr_service.errors import ModelError
from bpr_service.runtime.dummy import DummyModels
from bpr_service.runtime.engine import Engine
from bpr_service.server.app import create_app
from bpr_service.server.codec.pool import Pool
from bpr_service.server.http.auth import Keys
from bpr_service.server.process.build import build
from bpr_service.server.settings import ServerSettings
from tests.server.helpers import pool


class Slow(DummyModels):
    """Models that load when they are allowed to, or break."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.allowed, self.error = threading.Event(), error

    def open(self, *args: Any) -> Any:
        assert self.allowed.wait(60)
        if self.error is not None:
            raise self.error
        return super().open(*args)


def ready(app: FastAPI) -> int:
    """The status of /readyz, asked without a server."""

    async def ask() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return (await client.get("/readyz")).status_code

    return asyncio.run(ask())


def test_the_engine_starts_beside_the_first_answers_and_stops_with_the_application() -> None:
    models = Slow()
    engine = Engine(models)
    app = create_app(engine, pool=pool())

    async def life() -> None:
        async with app.router.lifespan_context(app):
            assert await asyncio.to_thread(ready, app) == 503, "it answers while it warms up"
            models.allowed.set()
            await asyncio.wait_for(asyncio.wrap_future(app.state.started), 60)
            assert await asyncio.to_thread(ready, app) == 200
            assert engine.alive

    asyncio.run(life())
    assert engine.state == "stopped"
    assert not pool()._stopped, "a pool that came from outside is the caller's"


def test_an_engine_that_does_not_start_is_told_and_answers_that_it_is_not_ready() -> None:
    models = Slow(ModelError("damaged"))
    models.allowed.set()
    app = create_app(Engine(models), pool=pool())

    async def life() -> None:
        async with app.router.lifespan_context(app):
            with pytest.raises(ModelError, match="damaged"):
                await asyncio.wait_for(asyncio.wrap_future(app.state.started), 60)
            assert await asyncio.to_thread(ready, app) == 503

    asyncio.run(life())


def test_leaving_while_the_engine_warms_up_waits_for_nothing() -> None:
    models = Slow()
    app = create_app(Engine(models), pool=pool())

    async def life() -> None:
        async with app.router.lifespan_context(app):
            pass

    asyncio.run(life())
    assert not app.state.started.done()
    models.allowed.set()
    app.state.started.exception(60)


def test_a_pool_of_its_own_starts_and_stops_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(Pool, "start", lambda self: calls.append("start"))
    monkeypatch.setattr(Pool, "stop", lambda self: calls.append("stop"))
    app = create_app(Engine(DummyModels()))

    async def life() -> None:
        async with app.router.lifespan_context(app):
            await asyncio.wait_for(asyncio.wrap_future(app.state.started), 60)

    asyncio.run(life())
    assert calls == ["start", "stop"]


def test_nothing_runs_before_the_application_starts_and_nothing_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The follower of the store and the figures of jobs, beside an engine and a pool that are left out here."""
    monkeypatch.setenv("BPR_JOBS_FOLDER", str(tmp_path / "jobs"))
    monkeypatch.delenv("BPR_JOBS_DATABASE", raising=False)
    for kind, name in ((Engine, "start"), (Pool, "start"), (Pool, "stop")):
        monkeypatch.setattr(kind, name, lambda self: None)
    before = set(threading.enumerate())
    app, engine, _ = build(ServerSettings(jobs=True, model_store=str(tmp_path / "store"), device="cpu"))
    assert set(threading.enumerate()) == before

    async def life() -> set[threading.Thread]:
        async with app.router.lifespan_context(app):
            assert engine.state == "starting"
            return {thread for thread in threading.enumerate() if thread.name in ("store-follower", "job-figures")}

    ran = asyncio.run(life())
    assert {thread.name for thread in ran} == {"store-follower", "job-figures"}
    for thread in ran:
        thread.join(60)
        assert not thread.is_alive()
    assert engine.state == "stopped"


def test_a_follower_and_keys_stop_before_the_engine() -> None:
    seen: list[str] = []
    engine = Engine(DummyModels())
    beside: Any = SimpleNamespace(start=lambda: seen.append("start"), stop=lambda: seen.append(engine.state))
    keys = Keys([])
    app = create_app(engine, pool=pool(), beside=[beside], keys=keys)

    async def life() -> None:
        async with app.router.lifespan_context(app):
            assert seen == ["start"]
            await asyncio.wait_for(asyncio.wrap_future(app.state.started), 60)

    asyncio.run(life())
    assert seen == ["start", "ready"]
    with pytest.raises(RuntimeError, match="stopped"):
        keys._thread.submit("keys", list)
