"""Settings of the server: ``BPR_*`` environment variables, or flags of ``bpr serve``."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from bpr_service.config import PRESETS, AnyPrecision, Backend
from bpr_service.runtime.settings import EngineConfig


class ServerSettings(EngineConfig):
    """Every bound of the service, those of the engine included."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    device: str = "auto"
    devices: tuple[Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")], ...] = ()
    """A process for each, behind one port; where given, ``device`` does not count."""
    hung_s: float = Field(default=30.0, gt=0.0)
    """A process of several that does not answer the one that started it for so long is killed and replaced."""
    presets: tuple[str, ...] = tuple(sorted(PRESETS, key=lambda name: name != "balanced"))
    """Kept warm; the first is the default of a request."""
    model_store: str | None = None
    """Where model versions are kept; the user's own store where unset. Its active versions go before the bundled."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "text"] = "auto"
    """JSON, or text to read; auto: text where stderr is a terminal."""

    allowed_hosts: tuple[str, ...] = ()
    """Names that the server may be called by (the Host header). None: any where there are keys, else localhost and
    addresses."""
    max_connections: int = Field(default=1024, ge=1)
    """Connections at a time; what comes beyond is closed at once."""
    header_s: float = Field(default=10.0, gt=0.0)
    """How long a caller may take to send a whole header."""
    grace_s: float = Field(default=5.0, gt=0.0)
    """How long a body, or the taking of an answer, may stand still before it must keep up with the least rate."""
    least_bytes_per_s: int = Field(default=16 << 10, ge=1)
    """What a body must come, and an answer be taken, at least."""

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

    threads: int = Field(default=0, ge=0)
    """Threads of the CPU device; 0 takes every core, or an equal share where several processes compute on the CPU."""
    backend: Backend = "auto"
    """What runs the network: eager, compile, onnxruntime, openvino, graphs, or auto: the quickest that is here."""
    precision: AnyPrecision = "auto"
    """What it computes in: fp32, bf16, int8, or auto."""

    api_keys_file: Path | None = None
    """JSON list of ``{"name", "sha256", "scopes", "per_minute"}``; every route but probes needs a key
    then.
    """
    label_studio_media_dir: Path | None = None
    """Label Studio's media folder, mounted here: the only place on disk that its task images are read from."""
    label_studio_url: str | None = None
    """Label Studio's address: the only one that task images are fetched from, where the media folder has none."""
    label_studio_token: SecretStr | None = None
    """Of a user of Label Studio's, sent to that address alone."""
    segmenter: Path | None = None
    """An exported segmenter, or a run's folder with one: offer ``/v1/segment`` and ``/v1/segment-refine``."""
    dummy: bool = False
    """Serve a network that gives the coarse mask back: for load tests of everything around the network."""
    dummy_call_ms: float = Field(default=0.0, ge=0.0)
    dummy_patch_ms: float = Field(default=0.0, ge=0.0)
    """What a call of that network costs, and a patch more: slept, not computed."""
    jobs: bool = False
    """Offer ``/v1/jobs`` (needs the extra ``jobs`` and a database)."""
    otel: bool = False
    """Send OpenTelemetry traces (needs the extra ``otel``; the exporter reads ``OTEL_*``)."""

    @property
    def is_open(self) -> bool:
        """Whether whoever reaches the address from another machine may do everything."""
        try:
            here = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            here = self.host == "localhost"
        return self.api_keys_file is None and not here
