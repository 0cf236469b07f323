"""Bounds of the engine, and what it asks of those around it."""

from __future__ import annotations

from typing import Protocol

from pydantic import Field

from bpr_service.config import Settings
from bpr_service.runtime.work import Lane


class EngineConfig(Settings):
    """Bounds of the engine."""

    max_batch_patches: int = Field(default=64, ge=1, le=4096)
    """Patches that go to the device at once; 1 turns batching off."""
    max_batch_wait_ms: float = Field(default=5.0, ge=0.0, le=1000.0)
    """How long a batch that is not full may wait for requests that are being decoded."""
    max_requests: int = Field(default=64, ge=1, le=65536)
    """Requests admitted at a time, from the first byte of the body to the last of the answer."""
    max_queue_patches: int = Field(default=65536, ge=1)
    """Patches that may wait for the device, over all requests."""
    max_queue_wait_s: float = Field(default=15.0, gt=0.0)
    """A request that would wait longer than this, by the measured pace of the device, is refused at once."""
    max_patches: int = Field(default=20_000, ge=1)
    """Patches of one request."""
    memory_mb: int = Field(default=4096, ge=64)
    """What all requests together may reserve for bodies, images and masks, in MiB."""
    cpu_workers: int = Field(default=2, ge=1, le=256)
    """Threads that decode and prepare; as many again finish and encode."""


class ModelSource(Protocol):
    """Where lanes come from: the model store, or a fixed set of refiners in a test."""

    def presets(self) -> list[str]:
        """Presets to keep warm; the first is the default."""

    def open(self, preset: str, model: str | None = None, version: str | None = None) -> Lane:
        """Load and check the model of ``preset``, or the given version; `ModelError` or `NotFoundError`."""


class EngineEvents:
    """What an engine tells of itself; the server counts it. Called from several threads."""

    def batch(self, patches: int, requests: int, room: int, seconds: float) -> None:
        """A batch of ``patches`` of ``room`` possible, from ``requests`` requests, took ``seconds``."""

    def out_of_memory(self, patches: int) -> None:
        """A batch did not fit the device's memory and is tried in halves."""

    def activated(self, model: str, version: str, ok: bool) -> None:
        """A model version was activated, or failed to be."""
