"""What is asked of the tables: jobs, the progress of their parts, workers; patient with a database that restarts."""

from __future__ import annotations

import json
import logging
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError

from bpr_service.errors import NotReadyError
from bpr_service.jobs.tables import JobRow, job_of, jobs, meta, parts, workers

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
Enqueue = Callable[[sa.Connection, int], None]
"""Puts an attempt of a job into its queue, in the transaction of the connection."""


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
                    log.warning("the jobs database: %s", error.orig)
                    raise NotReadyError(
                        "the jobs database does not answer",
                        got=type(error.orig).__name__,  # its own text names host and user
                        fix="start it, or check BPR_JOBS_DATABASE",
                    ) from error
                time.sleep(pause)
                pause = min(2 * pause, 2.0)

    return call


class Database:
    """The tables, on SQLite or PostgreSQL.

    Args:
        patience_s: how long a call waits for a database that is away.
        statement_s: how long a statement, a lock or a free connection may take.
    """

    def __init__(self, url: str, *, patience_s: float = 300.0, statement_s: float = 10.0) -> None:
        self.patience_s = patience_s
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self.engine = sa.create_engine(url, pool_timeout=statement_s, connect_args={"timeout": statement_s})
        else:
            driver_url = sa.make_url(url).set(drivername="postgresql+psycopg")
            arguments = {"connect_timeout": 5, "options": f"-c statement_timeout={int(1000 * statement_s)}"}
            self.engine = sa.create_engine(
                driver_url, pool_pre_ping=True, pool_timeout=statement_s, connect_args=arguments
            )
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
            known = {column["name"] for column in sa.inspect(c).get_columns(jobs.name)}
            for name in ("owner", "out", "page_out"):  # of a later release than the table
                if name not in known:
                    c.execute(sa.text(f"ALTER TABLE {jobs.name} ADD COLUMN {name} TEXT"))

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
    def add_job(
        self, job_id: str, kind: str, request: str, *, owner: str | None, outs: Sequence[str], then: Enqueue
    ) -> bool:
        """Add a job and put it into its queue, both or neither; False when the id is known.

        Args:
            job_id: chosen by the caller, or derived from the request.
            kind: ``refine``, ``audit`` or ``train``.
            request: as JSON.
            owner: who submits it; None where no keys are configured.
            outs: where it writes: nothing, ``out``, or ``out`` and a page.
            then: queues the job's first attempt on the connection that it is given.
        """
        statement = self._insert(jobs).values(
            id=job_id,
            kind=kind,
            owner=owner,
            out=outs[0] if outs else None,
            page_out=outs[1] if len(outs) > 1 else None,
            request=request,
            created=self.now,
            attempt=1,
            cancelled=False,
            message="",
            progress="{}",
        )
        with self.engine.begin() as c:
            added = bool(c.execute(statement.on_conflict_do_nothing()).rowcount)
            if added:
                then(c, 1)
            return added

    @patiently
    def job(self, job_id: str) -> JobRow | None:
        with self.engine.connect() as c:
            row = c.execute(sa.select(jobs).where(jobs.c.id == job_id)).mappings().first()
        return job_of(row) if row else None

    @patiently
    def list_jobs(self, limit: int, kind: str | None = None, owner: str | None = None) -> list[JobRow]:
        """The newest jobs first, of all owners where none is named."""
        query = sa.select(jobs).order_by(jobs.c.created.desc()).limit(limit)
        if kind:
            query = query.where(jobs.c.kind == kind)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        with self.engine.connect() as c:
            return [job_of(row) for row in c.execute(query).mappings()]

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
    def next_attempt(self, job_id: str, attempt: int, then: Enqueue) -> bool:
        """Go from ``attempt`` to the next one and queue it, both or neither; False when somebody else did."""
        statement = (
            sa.update(jobs)
            .where(jobs.c.id == job_id, jobs.c.attempt == attempt)
            .values(attempt=attempt + 1, cancelled=False, message="", ended=None, result=None)
        )
        with self.engine.begin() as c:
            taken = bool(c.execute(statement).rowcount)
            if taken:
                then(c, attempt + 1)
            return taken

    @patiently
    def count_open(self, owner: str | None) -> int:
        """Jobs of an owner that have not ended."""
        query = sa.select(sa.func.count()).where(jobs.c.ended.is_(None), jobs.c.owner.is_not_distinct_from(owner))
        with self.engine.connect() as c:
            return int(c.execute(query).scalar_one())

    @patiently
    def is_taken(self, outs: Sequence[str], owner: str | None) -> bool:
        """True where a job of another owner writes, or wrote, to one of them."""
        there = sa.or_(jobs.c.out.in_(outs), jobs.c.page_out.in_(outs))
        other = jobs.c.owner.is_distinct_from(owner)
        with self.engine.connect() as c:
            return c.execute(sa.select(jobs.c.id).where(there, other).limit(1)).first() is not None

    @patiently
    def ended_jobs(self) -> list[tuple[str, float]]:
        """(id, seconds since its end) of all jobs that have ended, the oldest first."""
        query = sa.select(jobs.c.id, self.now - jobs.c.ended).where(jobs.c.ended.is_not(None)).order_by(jobs.c.ended)
        with self.engine.connect() as c:
            return [(str(job_id), float(ago_s)) for job_id, ago_s in c.execute(query)]

    @patiently
    def remove_job(self, job_id: str) -> None:
        """Remove a job's rows."""
        with self.engine.begin() as c:
            c.execute(sa.delete(parts).where(parts.c.job == job_id))
            c.execute(sa.delete(jobs).where(jobs.c.id == job_id))

    @patiently
    def remove_workers(self, older_than_s: float) -> None:
        """Remove the rows of workers that were buried long ago."""
        with self.engine.begin() as c:
            c.execute(sa.delete(workers).where(workers.c.state == "reaped", workers.c.beat < self.now - older_than_s))

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

    # --- workflows: DBOS's own table, read -----------------------------------------------------------------------

    @property
    def _workflows(self) -> Any:
        names = ("workflow_uuid", "queue_name", "status")
        return sa.table("workflow_status", *map(sa.column, names), schema=None if self.on_sqlite else "dbos")

    @patiently
    def count_workflows(self, prefix: str | None = None) -> dict[tuple[str, str], int]:
        """Workflows by (queue, state): those that wait or run; or all whose id begins with ``prefix``."""
        table = self._workflows
        key = (table.c.queue_name, table.c.status)
        query = sa.select(*key, sa.func.count()).group_by(*key)
        if prefix is None:
            query = query.where(table.c.status.in_(["ENQUEUED", "PENDING"]))
        else:
            query = query.where(table.c.workflow_uuid.startswith(prefix, autoescape=True))
        with self.engine.connect() as c:
            return {(str(queue), str(status)): int(count) for queue, status, count in c.execute(query)}

    @patiently
    def workflows_of(self, prefix: str, *, unfinished: bool = False) -> list[str]:
        """Ids of the workflows whose id begins with ``prefix``: ``JOB:``, or ``JOB:ATTEMPT.`` for its parts."""
        table = self._workflows
        query = sa.select(table.c.workflow_uuid).where(table.c.workflow_uuid.startswith(prefix, autoescape=True))
        if unfinished:
            query = query.where(table.c.status.in_(["ENQUEUED", "DELAYED", "PENDING"]))
        with self.engine.connect() as c:
            return [str(workflow) for workflow in c.execute(query).scalars()]

    # --- workers -------------------------------------------------------------------------------------------------

    @patiently
    def list_workers(self) -> list[dict[str, Any]]:
        """Workers that are not reaped, and how long ago each gave a sign of life."""
        query = sa.select(workers, (self.now - workers.c.beat).label("silent_s")).where(workers.c.state != "reaped")
        with self.engine.connect() as c:
            return [dict(row) for row in c.execute(query).mappings()]
