"""Settings of jobs: ``BPR_JOBS_*`` environment variables, one bound or place each. Nothing heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from bpr_service.config import Settings
from bpr_service.jobs.requests import HeldOut
from bpr_service.runtime.settings import EnvironmentSettings


class Root(Settings):
    """A folder or address that jobs may use."""

    path: str
    write: bool = True


class Promotion(Settings):
    """What the operator lets a training job replace, and what it is measured on then."""

    names: tuple[str, ...]
    held_out: HeldOut


class JobSettings(EnvironmentSettings):
    """How jobs are kept and worked on, and what they may ask for.

    All processes of one installation share the database, folder and roots.
    """

    model_config = SettingsConfigDict(env_prefix="BPR_JOBS_")

    database: str = ""
    """SQLAlchemy URL; ``postgresql://...`` where several machines work; default: SQLite in the folder."""
    folder: str = ""
    """Plans, unfinished parts, logs and training runs; several machines need a shared file system here."""
    roots: dict[str, Root] = Field(default_factory=dict)
    """What jobs may read and write, by name: ``{"data": "/data", "public": {"path": "s3://b/p", "write": false}}``."""
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
    statement_s: float = Field(default=10.0, gt=0)
    """How long one statement of the database, or a free connection to it, may take."""
    parallel_jobs: int = Field(default=8, ge=1, le=256)
    """Refine jobs that one worker keeps under way; their parts are worked on one at a time."""
    trainer: tuple[str, ...] = ()
    """The command that trains; default ``bpr-train``."""
    log_units: bool = False
    """Write a line to the job's log for every unit that was refined."""

    max_queued: int = Field(default=1000, ge=1)
    """Jobs of one owner that wait or run."""
    max_pixels: int = Field(default=1 << 27, ge=1)
    """The largest ``settings.max_pixels`` of a job."""
    max_page_masks: int = Field(default=20_000, ge=1)
    """The most masks of an audit's page, and of its sample."""
    max_steps: int = Field(default=1_000_000, ge=1)
    """The most steps of a training job."""
    max_batch_size: int = Field(default=4096, ge=1)
    """The most patches a step of a training job."""
    max_width: int = Field(default=2048, ge=1)
    """The largest number among the arguments of a recipe's network: its widths and its depth."""
    max_loaders: int = Field(default=64, ge=0)
    """The most processes and threads that a recipe may ask for."""
    max_time_limit_s: float = Field(default=7 * 86_400.0, gt=0)
    max_disk_limit_mb: float = Field(default=200_000.0, gt=0)
    promotion: Promotion | None = None
    """Lets jobs of these names promote by themselves, whoever submits them, measured on this data and no other."""

    keep_days: float = Field(default=90.0, gt=0)
    """Jobs that ended longer ago are removed by a worker, each day: rows, parts, logs; never what they wrote."""
    keep_mb: float | None = Field(default=None, gt=0)
    """What ended jobs may keep in the folder, together; the oldest go first."""

    @field_validator("roots", mode="before")
    @classmethod
    def _short(cls, roots: Any) -> Any:
        if not isinstance(roots, Mapping):
            return roots
        return {name: {"path": root} if isinstance(root, str) else root for name, root in roots.items()}

    @property
    def home(self) -> Path:
        """The folder."""
        data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
        return Path(self.folder or Path(data) / "bpr" / "jobs")

    @property
    def url(self) -> str:
        """The database."""
        return self.database or f"sqlite:///{self.home / 'jobs.sqlite'}"

    @property
    def on_sqlite(self) -> bool:
        """True where one worker serves."""
        return self.url.startswith("sqlite")

    def job_folder(self, job_id: str) -> Path:
        """Where a job keeps its plan, its parts and its log."""
        return self.home / "runs" / job_id
