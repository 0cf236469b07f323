"""Settings of the jobs engine: ``BPR_JOBS_*`` environment variables. Nothing heavy is imported."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from bpr_service.config import Settings, build
from bpr_service.errors import ConfigError


class Root(Settings):
    """A folder or address that jobs may use."""

    path: str
    write: bool = True


class JobSettings(Settings):
    """How jobs are kept and worked on. All processes of one installation share the database, folder and roots."""

    database: str = ""
    """SQLAlchemy URL; ``postgresql://...`` where several machines work; default: SQLite in the folder."""
    folder: str = ""
    """Plans, unfinished parts, logs and training runs; several machines need a shared file system here."""
    roots: dict[str, Root] = Field(default_factory=dict)
    """What jobs may read and write, by name."""
    models: str | None = None
    """The model store; default: that of ``bpr models``."""
    beat_s: float = Field(default=5.0, gt=0)
    dead_after_s: float = Field(default=60.0, gt=0)
    """A worker that has been silent for this long is dead, and its work goes to others."""
    poll_s: float = Field(default=1.0, gt=0)
    """How often queues are looked at and a cancellation is noticed."""
    part_timeout_s: float = Field(default=1800.0, gt=0)
    """A worker that has got no unit done for this long is taken for hung and starts again."""
    retry_s: float = Field(default=5.0, gt=0)
    """Pause before storage that failed (a full disk, a lost connection) is tried again."""
    drain_s: float = Field(default=30.0, ge=0)
    """How long after SIGTERM the unit under way may still take; then it is left to the next worker."""
    parallel_jobs: int = Field(default=8, ge=1, le=256)
    """Refine jobs that one worker keeps under way; their parts are worked on one at a time."""
    trainer: tuple[str, ...] = ()
    """The command that trains; default ``bpr-train``."""
    log_units: bool = False
    """Write a line to the job's log for every unit that was refined."""

    @property
    def home(self) -> Path:
        data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
        return Path(self.folder or Path(data) / "bpr" / "jobs")

    @property
    def url(self) -> str:
        return self.database or f"sqlite:///{self.home / 'jobs.sqlite'}"

    @property
    def on_sqlite(self) -> bool:
        return self.url.startswith("sqlite")

    def job_folder(self, job_id: str) -> Path:
        return self.home / "runs" / job_id


def load_job_settings(environment: Mapping[str, str] | None = None, **overrides: Any) -> JobSettings:
    """Settings from ``BPR_JOBS_DATABASE``, ``_FOLDER``, ``_ROOTS`` and so on; values that are not text are JSON.

    ``BPR_JOBS_ROOTS`` is JSON: ``{"data": "/data", "public": {"path": "s3://bucket/p", "write": false}}``.

    Raises:
        ConfigError: a value of the wrong type, or a root that is no folder or address.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    for name in JobSettings.model_fields:
        text = environment.get(f"BPR_JOBS_{name.upper()}")
        if text is None:
            continue
        if name in ("database", "folder", "models"):
            values[name] = text
            continue
        try:
            values[name] = json.loads(text)
        except ValueError:
            fix = 'for example BPR_JOBS_ROOTS={"data": "/data"}'
            raise ConfigError(f"BPR_JOBS_{name.upper()}", expected="JSON", got=text[:60], fix=fix) from None
    values.update({name: value for name, value in overrides.items() if value is not None})
    values.setdefault("models", environment.get("BPR_MODEL_STORE"))
    roots = values.get("roots") or {}
    if isinstance(roots, Mapping):
        values["roots"] = {k: {"path": v} if isinstance(v, str) else v for k, v in roots.items()}
    return build(JobSettings, values)
