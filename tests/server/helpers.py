"""A real server on loopback, around the dummy network, and requests for it; photographs are drawn."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI

from bpr_service.masks.mask import Mask
from bpr_service.runtime.dummy import DummyModels
from bpr_service.runtime.engine import Engine
from bpr_service.server.app import create_app
from bpr_service.server.codec.pool import Pool
from bpr_service.server.http.connection import guarded
from bpr_service.server.metrics import Metrics
from bpr_service.server.process.build import warm_stages
from bpr_service.server.settings import ServerSettings
from tests.services import wait_for

HEIGHT, WIDTH = 160, 200


@dataclass
class Running:
    """A server that answers at ``url``."""

    url: str
    engine: Engine
    app: FastAPI
    client: httpx.Client


@cache
def pool() -> Pool:
    """The processes that read and write for all servers of a test run; they end with it."""
    shared = Pool(4)
    shared.start()
    return shared


@contextlib.contextmanager
def serving(
    settings: dict[str, Any] | None = None,
    models: Any = None,
    start: bool = True,
    prepare: Callable[[FastAPI], None] = lambda app: None,
    metrics: Metrics | None = None,
    **parts: Any,
) -> Iterator[Running]:
    config = ServerSettings(**(settings or {}))
    metrics = metrics or Metrics()
    engine = Engine(models or DummyModels(), config, warm=warm_stages, events=metrics)
    app = create_app(engine, config, metrics=metrics, **{"pool": pool(), **parts})
    prepare(app)
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            port=port,
            log_config=None,
            lifespan="on" if start else "off",
            access_log=False,
            server_header=False,
            http=guarded(config.max_connections, config.header_s),
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for("it listens", lambda: server.started, pause_s=0.005)
    if start:
        app.state.started.result(240)  # kernels are compiled where no cache is there yet
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url, timeout=150) as client:
            yield Running(url, engine, app, client)
    finally:
        engine.drain()
        assert engine.wait_idle(150), "a slot was never released"
        server.should_exit = True
        thread.join(150)
        if not start:
            engine.stop()
        assert engine.memory.used_bytes == 0, "reserved memory was never freed"


def picture() -> np.ndarray:
    """(160, 200, 3): a bright disc on noise."""
    image = np.random.default_rng(7).integers(0, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[disc()] = (220, 180, 90)
    return image


def disc(cx: int = 100, cy: int = 80, r: int = 50) -> np.ndarray:
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    return (ys - cy) ** 2 + (xs - cx) ** 2 < r * r


def png(array: np.ndarray) -> bytes:
    if array.ndim == 3:
        array = array[:, :, ::-1]
    return bytes(cv2.imencode(".png", array)[1].tobytes())


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def coarse(**where: int) -> Mask:
    return Mask.from_array(disc(**where))


def body(**changes: Any) -> dict[str, Any]:
    """A request that is right; ``changes`` replace its keys."""
    request: dict[str, Any] = {
        "image": {"data": b64(png(picture()))},
        "masks": [{"id": 7, "category_id": 3, "score": 0.5, "note": {"by": "hand"}, "segmentation": coarse().to_rle()}],
    }
    return {**request, **changes}
