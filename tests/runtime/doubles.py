"""A request of numbered patches and a predictor that can be held up: what the engine sees of the pipeline."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.runtime.engine import Engine, EngineConfig
from bpr_service.runtime.work import Lane, Work

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
SIDE = 4


class Patches:
    """``n`` patches; patch i of request ``tag`` is filled with (tag, i // 256, i % 256, 0)."""

    def __init__(self, tag: int, n: int) -> None:
        self.tag, self.n_patches = tag, n
        self.seen: list[int] = []

    def crops(self, start: int, stop: int) -> U8:
        out = np.zeros((stop - start, SIDE, SIDE, 4), np.uint8)
        index = np.arange(start, stop)
        out[..., 0] = self.tag
        out[..., 1] = (index // 256)[:, None, None]
        out[..., 2] = (index % 256)[:, None, None]
        return out

    def add(self, start: int, logits: F32) -> None:
        numbers = logits[:, 0, 0].astype(np.int64)
        assert (numbers // 65536 == self.tag).all(), "patches of another request"
        self.seen += (numbers % 65536).tolist()
        assert self.seen[start:] == list(range(start, start + len(logits)))

    def finish(self) -> list[int]:
        return self.seen


class Predictor:
    """Gives each patch's number back; remembers its batches; waits for ``gate`` where one is set."""

    def __init__(self, call_ms: float = 0.0) -> None:
        self.call_ms = call_ms
        self.batches: list[list[int]] = []
        self.gate: threading.Event | None = None
        self.running = threading.Event()
        self.error: BaseException | None = None
        self.room = 10**9

    def batch_sizes(self, most: int) -> list[int]:
        return [most]

    def predict(self, crops: U8) -> F32:
        return self.logits(crops)

    def logits(self, crops: U8) -> F32:
        if len(crops) > self.room:
            raise MemoryError
        self.running.set()
        if self.gate is not None:
            assert self.gate.wait(150)
        time.sleep(self.call_ms / 1e3)
        if self.error is not None:
            raise self.error
        self.batches.append(crops[:, 0, 0, 0].tolist())
        c = crops.astype(np.float32)
        return c[..., 0] * 65536 + c[..., 1] * 256 + c[..., 2]


class Source:
    """One preset per model; `versions` are loaded through `broken`."""

    def __init__(self, *presets: str, predictor: Predictor | None = None) -> None:
        self.names = list(presets or ("balanced",))
        self.predictor = predictor or Predictor()
        self.broken: BaseException | None = None

    def presets(self) -> list[str]:
        return self.names

    def open(self, preset: str, model: str | None = None, version: str | None = None) -> Lane:
        if self.broken is not None:
            raise self.broken
        return Lane(preset, model or f"model-{preset}", version or "v1", SIDE, self.predictor)


def started(source: Source | None = None, **config: Any) -> Engine:
    engine = Engine(source or Source(), EngineConfig(**{"max_batch_wait_ms": 0.0, **config}))
    engine.start()
    source_predictor = engine.lanes()[0].refiner
    source_predictor.batches.clear()
    source_predictor.running.clear()
    return engine


def send(engine: Engine, tag: int, n: int, timeout_s: float = 10.0, preset: str | None = None) -> Work:
    """Submit a request of ``n`` patches; its answer is (version, patches in order)."""
    return engine.submit(
        engine.admit(),
        lambda work: (engine.lane(preset), Patches(tag, n)),
        lambda work, result: (work.lane.version if work.lane else "", result),
        deadline=time.monotonic() + timeout_s,
    )


@contextmanager
def running(source: Source | None = None, **config: Any) -> Iterator[Engine]:
    engine = started(source, **config)
    try:
        yield engine
    finally:
        engine.drain()
        predictor = engine.lanes()[0].refiner
        if predictor.gate is not None:
            predictor.gate.set()
        idle = engine.wait_idle(5)
        engine.stop()
        assert idle, "a slot was never released"
        assert engine.memory.used_bytes == 0


@contextmanager
def held(engine: Engine) -> Iterator[threading.Event]:
    """The device busy with a request of one patch, until the event is set."""
    predictor: Predictor = engine.lanes()[0].refiner
    predictor.gate = threading.Event()
    blocker = send(engine, 250, 1)
    assert predictor.running.wait(5)
    yield predictor.gate
    predictor.gate.set()
    blocker.future.result(5)
