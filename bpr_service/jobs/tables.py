"""The tables of jobs, of the progress of their parts, and of workers. Execution is DBOS's own business.

All times are seconds since 1970 on the database's clock, so machines need not agree on the time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

meta = sa.MetaData()
jobs = sa.Table(
    "bpr_jobs",
    meta,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("out", sa.Text),
    sa.Column("page_out", sa.Text),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, default=1),
    sa.Column("cancelled", sa.Boolean, nullable=False, default=False),
    sa.Column("message", sa.Text, nullable=False, default=""),
    sa.Column("progress", sa.Text, nullable=False, default="{}"),
    sa.Column("result", sa.Text),
    sa.Column("started", sa.Float),
    sa.Column("ended", sa.Float),
)
parts = sa.Table(
    "bpr_parts",
    meta,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True),
    sa.Column("units", sa.Integer, nullable=False, default=0),
    sa.Column("done", sa.Integer, nullable=False, default=0),
    sa.Column("failed", sa.Integer, nullable=False, default=0),
    sa.Column("stalls", sa.Integer, nullable=False, default=0),
    sa.Column("done_at_start", sa.Integer, nullable=False, default=-1),
)
workers = sa.Table(
    "bpr_workers",
    meta,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("started", sa.Float, nullable=False),
    sa.Column("beat", sa.Float, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
)


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job as its row has it; times in seconds since the epoch."""

    id: str
    kind: str
    owner: str | None
    request: dict[str, Any]
    created: float
    attempt: int
    cancelled: bool
    message: str
    progress: dict[str, Any]
    result: dict[str, Any] | None
    started: float | None
    ended: float | None

    @property
    def workflow(self) -> str:
        """Id of the workflow that does the present attempt."""
        return f"{self.id}:{self.attempt}"


def job_of(row: Any) -> JobRow:
    """A row of ``bpr_jobs``."""
    values = {name: row[name] for name in JobRow.__dataclass_fields__}
    try:
        values["request"] = json.loads(values["request"])
    except ValueError:  # it must not hide the others
        values["request"], values["message"] = {}, "its row is damaged: the request is no JSON"
    values["progress"] = json.loads(values["progress"] or "{}")
    values["result"] = json.loads(values["result"]) if values["result"] else None
    return JobRow(**values)
