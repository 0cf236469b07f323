"""Settings of the server: ``BPR_*`` environment variables, or flags of ``bpr serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from bpr_service.config import PRESETS, Backend, Precision
from bpr_service.errors import ConfigError
from bpr_service.runtime.engine import EngineConfig


class ServerSettings(BaseSettings):
    """Every bound of the service. Built once, frozen, never read at import."""

    model_config = SettingsConfigDict(env_prefix="BPR_", frozen=True, extra="ignore", protected_namespaces=())

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    device: str = "auto"
    devices: tuple[Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")], ...] = ()
    """A process for each, behind one port; where given, ``device`` does not count."""
    presets: tuple[str, ...] = tuple(sorted(PRESETS, key=lambda name: name != "balanced"))
    """Kept warm; the first is the default of a request."""
    model_store: str | None = None
    """Where model versions are kept; the user's own store where unset. Its active versions go before the bundled."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    max_body_bytes: int = Field(default=64 << 20, ge=1024)
    max_pixels: int = Field(default=1 << 26, ge=1)
    """Pixels of an image, read from its header before it is decoded."""
    max_masks: int = Field(default=1000, ge=1)
    max_runs: int = Field(default=1_000_000, ge=1)
    """Runs of one RLE, or points of one mask's polygons."""
    max_mask_pixels: int = Field(default=1 << 27, ge=1)
    """Pixels of all masks' boxes together: what the masks of one request may take up."""
    timeout_s: float = Field(default=60.0, gt=0.0)
    """Deadline of a request that names none."""
    max_timeout_s: float = Field(default=300.0, gt=0.0)
    drain_s: float = Field(default=30.0, ge=0.0)
    """How long requests in flight may go on after SIGTERM."""

    max_batch_patches: int = Field(default=64, ge=1, le=4096)
    max_batch_wait_ms: float = Field(default=5.0, ge=0.0, le=1000.0)
    max_requests: int = Field(default=64, ge=1, le=65536)
    max_queue_patches: int = Field(default=65536, ge=1)
    max_queue_wait_s: float = Field(default=15.0, gt=0.0)
    max_patches: int = Field(default=20_000, ge=1)
    memory_mb: int = Field(default=4096, ge=64)
    cpu_workers: int = Field(default=2, ge=1, le=256)
    threads: int = Field(default=0, ge=0)
    """Threads of the CPU device; 0 takes every core, or an equal share where several processes compute on the CPU."""
    backend: Backend = "eager"
    """What runs the network: eager, compile, onnxruntime, openvino, or card: what each model's card chose."""
    precision: Precision = "fp32"
    """What it computes in: fp32, bf16 or int8."""

    api_keys_file: Path | None = None
    """JSON list of ``{"name", "sha256", "scopes", "per_minute"}``; every route but probes needs a key
    then.
    """
    label_studio_media_dir: Path | None = None
    """Label Studio's media folder, mounted here: the only place its task images are read from."""
    dummy: bool = False
    """Serve a network that gives the coarse mask back: for load tests of everything around the network."""
    dummy_call_ms: float = Field(default=0.0, ge=0.0)
    dummy_patch_ms: float = Field(default=0.0, ge=0.0)
    """What a call of that network costs, and a patch more: slept, not computed."""
    jobs: bool = False
    """Offer ``/v1/jobs`` (needs the extra ``jobs`` and a database)."""
    otel: bool = False
    """Send OpenTelemetry traces (needs the extra ``otel``; the exporter reads ``OTEL_*``)."""

    def engine_config(self) -> EngineConfig:
        return EngineConfig(**{name: getattr(self, name) for name in EngineConfig.model_fields})


def load_settings(**flags: Any) -> ServerSettings:
    """Settings from the environment, overridden by the flags that are not None; `ConfigError` names the
    field.
    """
    try:
        return ServerSettings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"setting {name} (BPR_{name.upper()})",
            expected=first["msg"],
            got=repr(first["input"])[:80],
            fix="see docs/api.md for the settings",
        ) from None
