"""What the code really offers: settings, commands, routes, metrics. The checks hold deployment files against it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from types import SimpleNamespace
from typing import Any
from unittest import mock

from typer.main import get_command

from bpr_service import command_options
from bpr_service.cli import app
from bpr_service.errors import BprError
from bpr_service.jobs.dbos_setup import queues_of
from bpr_service.jobs.engine import Load
from bpr_service.jobs.settings import JobSettings
from bpr_service.server.http import health, label_studio, routes
from bpr_service.server.http.jobs import job_router
from bpr_service.server.metrics import Metrics
from bpr_service.server.page import routes as page
from bpr_service.server.settings import ServerSettings

OTHERS = re.compile("HOME|PATH|PYTHON.*|XDG_CACHE_HOME|NUMBA_CACHE_DIR|CUDA_CACHE_PATH|NVIDIA_.*|AWS_.*")
"""Variables of others that our images read: Python's, numba's, CUDA's, botocore's."""
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
SERVER = {f"BPR_{name.upper()}" for name in ServerSettings.model_fields}
SETTINGS = SERVER | {f"BPR_JOBS_{name.upper()}" for name in JobSettings.model_fields}
"""Every variable that the server or a worker reads."""
BPR: Any = get_command(app)
ROUTERS: Any = (health.router, routes.router, label_studio.router, page.router, job_router(mock.Mock()))
PATHS = {route.path for router in ROUTERS for route in router.routes if "GET" in (route.methods or ())}
"""Paths of the application that answer to GET."""
TARGET_LABELS = {"job", "instance", "namespace", "pod", "le"}
"""Labels that Prometheus adds, and that of a histogram's buckets."""


def settings_problems(values: Mapping[str, str]) -> Iterator[str]:
    """Variables that nobody reads, and values that are refused."""
    yield from (f"no setting {name}" for name in values.keys() - SETTINGS if not OTHERS.fullmatch(name))
    try:
        with mock.patch.dict("os.environ", {k: v for k, v in values.items() if k in SERVER}, clear=True):
            loaded = ServerSettings.load()
        with mock.patch.dict("os.environ", values, clear=True):
            JobSettings.load()
        if not DEVICE.fullmatch(loaded.device):
            yield f"BPR_DEVICE: {loaded.device}"
    except BprError as error:
        yield str(error)


def command_problems(words: Sequence[str]) -> Iterator[str]:
    """What is wrong with ``bpr WORDS``: parsed as the real command does it, where its paths are, and not run."""
    command, rest, there = BPR, list(words), mock.patch.object(command_options, "Path")
    try:
        with there, redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            while hasattr(command, "commands"):
                command = command.commands[rest.pop(0)]
            context = command.make_context(command.name, rest)
        for kind in context.params.get("kind") or []:
            queues_of(kind)
        if not DEVICE.fullmatch(context.params.get("device") or "auto"):
            yield f"bpr {' '.join(words)}: no such device"
    except (Exception, SystemExit) as error:
        yield f"bpr {' '.join(words)}: {getattr(error, 'message', None) or error!r}"


@cache
def metrics() -> dict[str, set[str]]:
    """Every series that the server exports, with the names of its labels."""
    exported = Metrics()
    engine: Any = SimpleNamespace(state="ready", requests=0, queue_patches=0, expected_wait_s=float, device="cpu")
    engine.memory, engine.load = SimpleNamespace(used_bytes=0), lambda: Load({"parts": 0}, {"parts": 0}, 0)
    exported.watch(engine)
    exported.watch_jobs(engine).look()
    labels = {c._name: set(c._labelnames) for c in vars(exported).values() if hasattr(c, "_labelnames")}
    parts = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}
    return {
        family.name + part: labels.get(family.name, set()) | {key for sample in family.samples for key in sample.labels}
        for family in exported.registry.collect()
        for part in parts.get(family.type, ("",))
    }


def query_problems(expression: str) -> Iterator[str]:
    """Series of ours in a PromQL expression that nobody exports, and labels that they have not."""
    text = re.sub(r'"[^"]*"', '""', expression)
    found = re.findall(r"\b(bpr_[a-z0-9_]+)\b(?:\{([^}]*)\})?", text)
    yield from (f"no metric {name} in {expression}" for name, _ in found if name not in metrics())
    known = set().union(TARGET_LABELS, *(metrics().get(name, set()) for name, _ in found))
    asked = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", ",".join(selector for _, selector in found))
    asked += re.findall(r"\w+", ",".join(re.findall(r"\bby \(([^)]*)\)", text))) if found else []
    yield from (f"nothing in {expression} has the label {label}" for label in asked if label not in known)
