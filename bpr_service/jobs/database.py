"""The engine's own tables: jobs, the progress of their parts, workers. Execution is DBOS's own business.

All times are seconds since 1970 on the database's clock, so machines need not agree on the time.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError

from bpr_service.errors import NotReadyError

P = ParamSpec("P")
R = TypeVar("R")

meta = sa.MetaData()
jobs = sa.Table(
    "bpr_jobs",
    meta,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
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
    id: str
    kind: str
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


def patiently(function: Callable[P, R]) -> Callable[P, R]:
    """Try again while the database cannot be reached (it restarts), for up to ``Database.patience_s``."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        database: Any = args[0]
        give_up, pause = time.monotonic() + database.patience_s, 0.1
        while True:
            try:
                return function(*args, **kwargs)
            except (OperationalError, DBAPIError) as error:
                lost = isinstance(error, OperationalError) or error.connection_invalidated
                if not lost or time.monotonic() > give_up:
                    raise NotReadyError(
                        "the jobs database does not answer",
                        got=str(error.orig),
                        fix="start it, or check BPR_JOBS_DATABASE",
                    ) from error
                time.sleep(pause)
                pause = min(2 * pause, 2.0)

    return call


class Database:
    """The tables, on SQLite or PostgreSQL. ``patience_s``: how long a call waits for a database that is away."""

    def __init__(self, url: str, *, patience_s: float = 300.0) -> None:
        self.patience_s = patience_s
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self.engine = sa.create_engine(url, connect_args={"timeout": 30})
        else:
            driver_url = sa.make_url(url).set(drivername="postgresql+psycopg")
            self.engine = sa.create_engine(driver_url, pool_pre_ping=True, connect_args={"connect_timeout": 5})
        self.on_sqlite = self.engine.dialect.name == "sqlite"
        self._insert: Any = sqlite.insert if self.on_sqlite else postgresql.insert
        clock = "extract(epoch from clock_timestamp())"
        self.now: Any = sa.literal_column("(julianday('now') - 2440587.5) * 86400.0" if self.on_sqlite else clock)

    @patiently
    def create(self) -> None:
        """Make the tables where they are missing; safe when several processes do it at once."""
        with self.engine.begin() as c:
            if self.on_sqlite:
                c.execute(sa.text("PRAGMA journal_mode=WAL"))
            else:
                c.execute(sa.text("SELECT pg_advisory_xact_lock(7311001)"))
            meta.create_all(c)

    @contextmanager
    def exclusively(self, what: str) -> Iterator[None]:
        """Hold a lock that all processes of the installation share; it goes with the process."""
        if self.on_sqlite:
            from filelock import FileLock

            with FileLock(f"{self.engine.url.database}.{what}.lock"):
                yield
            return
        number = zlib.crc32(what.encode())
        # Without a transaction, and without waiting in a statement: an index that is built concurrently waits for both.
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
            while not c.execute(sa.text("SELECT pg_try_advisory_lock(:n)"), {"n": number}).scalar():
                time.sleep(0.1)
            try:
                yield
            finally:
                c.execute(sa.text("SELECT pg_advisory_unlock(:n)"), {"n": number})

    # --- jobs ----------------------------------------------------------------------------------------------------

    @patiently
    def add_job(self, job_id: str, kind: str, request: str) -> bool:
        """Add a job; False when the id is known."""
        statement = self._insert(jobs).values(
            id=job_id,
            kind=kind,
            request=request,
            created=self.now,
            attempt=1,
            cancelled=False,
            message="",
            progress="{}",
        )
        with self.engine.begin() as c:
            return bool(c.execute(statement.on_conflict_do_nothing()).rowcount)

    @patiently
    def job(self, job_id: str) -> JobRow | None:
        with self.engine.connect() as c:
            row = c.execute(sa.select(jobs).where(jobs.c.id == job_id)).mappings().first()
        return _job(row) if row else None

    @patiently
    def list_jobs(self, limit: int, kind: str | None = None) -> list[JobRow]:
        query = sa.select(jobs).order_by(jobs.c.created.desc()).limit(limit)
        if kind:
            query = query.where(jobs.c.kind == kind)
        with self.engine.connect() as c:
            return [_job(row) for row in c.execute(query).mappings()]

    @patiently
    def update_job(self, job_id: str, attempt: int | None = None, **values: Any) -> bool:
        """Set columns; with ``attempt``, only when that is still the present one. False when nothing matched."""
        for name in ("progress", "result"):
            if isinstance(values.get(name), dict):
                values[name] = json.dumps(values[name], ensure_ascii=False)
        for name in ("started", "ended"):
            if values.get(name) is True:
                values[name] = self.now
        statement = sa.update(jobs).where(jobs.c.id == job_id).values(**values)
        if attempt is not None:
            statement = statement.where(jobs.c.attempt == attempt)
        with self.engine.begin() as c:
            return bool(c.execute(statement).rowcount)

    @patiently
    def next_attempt(self, job_id: str, attempt: int) -> bool:
        """Go from ``attempt`` to the next one; False when somebody else did."""
        statement = (
            sa.update(jobs)
            .where(jobs.c.id == job_id, jobs.c.attempt == attempt)
            .values(attempt=attempt + 1, cancelled=False, message="", ended=None, result=None)
        )
        with self.engine.begin() as c:
            return bool(c.execute(statement).rowcount)

    # --- parts --------------------------------------------------------------------------------------------------

    @patiently
    def start_part(self, job_id: str, part: int, units: int, done: int) -> int:
        """Note that a worker begins a part with ``done`` units done; how often in a row none was added before."""
        values = {"job": job_id, "part": part, "units": units, "done": done, "failed": 0, "stalls": 0}
        insert = self._insert(parts).values(**values, done_at_start=done)
        stalls = sa.case((parts.c.done_at_start == done, parts.c.stalls + 1), else_=0)
        update = insert.on_conflict_do_update(
            index_elements=["job", "part"],
            set_={"units": units, "done": done, "stalls": stalls, "done_at_start": done},
        )
        query = sa.select(parts.c.stalls).where(parts.c.job == job_id, parts.c.part == part)
        with self.engine.begin() as c:
            c.execute(update)
            return int(c.execute(query).scalar_one())

    @patiently
    def update_part(self, job_id: str, part: int, done: int, failed: int) -> None:
        with self.engine.begin() as c:
            where = (parts.c.job == job_id, parts.c.part == part)
            c.execute(sa.update(parts).where(*where).values(done=done, failed=failed))

    @patiently
    def sum_parts(self, job_id: str) -> tuple[int, int]:
        """Units done and units with failures, over all parts of a job."""
        query = sa.select(sa.func.sum(parts.c.done), sa.func.sum(parts.c.failed)).where(parts.c.job == job_id)
        with self.engine.connect() as c:
            done, failed = c.execute(query).one()
        return int(done or 0), int(failed or 0)

    # --- workers -------------------------------------------------------------------------------------------------

    @patiently
    def add_worker(self, worker_id: str, host: str, pid: int, device: str) -> None:
        values = {"id": worker_id, "host": host, "pid": pid, "device": device, "state": "alive"}
        statement = self._insert(workers).values(**values, started=self.now, beat=self.now)
        fresh = {"host": host, "pid": pid, "device": device, "state": "alive", "started": self.now, "beat": self.now}
        with self.engine.begin() as c:
            c.execute(statement.on_conflict_do_update(index_elements=["id"], set_=fresh))

    @patiently
    def beat(self, worker_id: str) -> bool:
        """Note that a worker is alive; False when it was declared dead."""
        where = (workers.c.id == worker_id, workers.c.state == "alive")
        with self.engine.begin() as c:
            return bool(c.execute(sa.update(workers).where(*where).values(beat=self.now)).rowcount)

    @patiently
    def leave(self, worker_id: str) -> None:
        """Note that a worker ends on purpose: others need not wait for its silence."""
        with self.engine.begin() as c:
            c.execute(sa.update(workers).where(workers.c.id == worker_id).values(state="left", beat=self.now))

    @patiently
    def reap(self, dead_after_s: float, recover: Callable[[list[str]], None]) -> list[str]:
        """Hand the workers that are dead or have left to ``recover``, by one process at a time.

        Returns their ids; a worker is handed over until ``recover`` has returned once.
        """
        with self.engine.begin() as c:
            if not self.on_sqlite and not c.execute(sa.text("SELECT pg_try_advisory_xact_lock(7311002)")).scalar():
                return []
            silent = sa.and_(workers.c.state == "alive", workers.c.beat < self.now - dead_after_s)
            # Marked before its work is given away: a worker that comes back learns of it at its next beat.
            c.execute(sa.update(workers).where(silent).values(state="dead"))
            gone = list(c.execute(sa.select(workers.c.id).where(workers.c.state.in_(["dead", "left"]))).scalars())
            if gone:
                recover(gone)
                c.execute(sa.update(workers).where(workers.c.id.in_(gone)).values(state="reaped"))
            return gone

    @patiently
    def count_workflows(self) -> dict[tuple[str, str], int]:
        """Workflows that wait (``ENQUEUED``) or run (``PENDING``), by queue and state: read from DBOS's own table."""
        table = sa.table("workflow_status", sa.column("queue_name"), sa.column("status"))
        table.schema = None if self.on_sqlite else "dbos"
        key = (table.c.queue_name, table.c.status)
        query = sa.select(*key, sa.func.count()).where(table.c.status.in_(["ENQUEUED", "PENDING"])).group_by(*key)
        with self.engine.connect() as c:
            return {(str(queue), str(status)): int(count) for queue, status, count in c.execute(query)}

    @patiently
    def list_workers(self) -> list[dict[str, Any]]:
        """Workers that are not reaped, and how long ago each gave a sign of life."""
        query = sa.select(workers, (self.now - workers.c.beat).label("silent_s")).where(workers.c.state != "reaped")
        with self.engine.connect() as c:
            return [dict(row) for row in c.execute(query).mappings()]


def _job(row: Any) -> JobRow:
    values = dict(row)
    values["request"] = json.loads(values["request"])
    values["progress"] = json.loads(values["progress"] or "{}")
    values["result"] = json.loads(values["result"]) if values["result"] else None
    return JobRow(**values)
