"""Settings from the environment, the bounds of the engine, and what it asks of those around it."""

from __future__ import annotations

from typing import Any, Protocol, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from bpr_service.errors import ConfigError
from bpr_service.runtime.work import Lane


class EnvironmentSettings(BaseSettings):
    """Base of settings that variables or flags give: frozen, checked when built, never read at import.

    A class names its variables by ``env_prefix``; values that are no text are JSON.
    """

    model_config = SettingsConfigDict(env_prefix="BPR_", frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def load(cls, **flags: Any) -> Self:
        """Settings from the environment, overridden by the flags that are not None.

        Raises:
            ConfigError: a value is of the wrong type or out of range; the variable is named.
        """
        try:
            return cls(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            name = "_".join(str(part) for part in first["loc"])
            got = repr(first["input"])[:80]
        except SettingsError as error:  # a value that should be JSON
            name, got = _field_of(error), str(error.__cause__)[:80]
            first = {"msg": "JSON"}  # type: ignore[typeddict-item]
        raise ConfigError(
            f"setting {name} ({cls.model_config['env_prefix']}{name.upper()})",
            expected=first["msg"],
            got=got,
            fix="see docs/api.md for the settings of the server, docs/jobs.md for those of jobs",
        )


def _field_of(error: SettingsError) -> str:
    """The field in pydantic-settings' message ``error parsing value for field "devices" from source ...``."""
    return [*str(error).split('"'), "", ""][1]


class EngineConfig(EnvironmentSettings):
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
    stalled_s: float = Field(default=120.0, gt=0.0)
    """Patches that have waited so long while none came back mean that the device hangs: the process is not alive."""
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
