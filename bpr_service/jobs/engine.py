"""The seam: submit, get, list, cancel, resume, run_worker. Everything else sees jobs only through it.

Execution is DBOS's (durable workflows, queues); what a job is, how far it got and what came of it is kept in tables of
our own. A job's attempts are workflows ``ID:1``, ``ID:2``, ...; a new attempt finds what the ones before had done.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from bpr_service import storage
from bpr_service.errors import ConfigError, ConflictError, NotFoundError, NotReadyError
from bpr_service.jobs.admission import check_ceilings, check_promotion, check_quota
from bpr_service.jobs.database import Database, Enqueue
from bpr_service.jobs.prune import prune
from bpr_service.jobs.refine.place import PAGE
from bpr_service.jobs.refine.plan import fingerprint
from bpr_service.jobs.requests import RefineRequest, TrainRequest, canonical, digest, parse_request
from bpr_service.jobs.roots import Roots, folders_of
from bpr_service.jobs.settings import JobSettings
from bpr_service.jobs.tables import JobRow
from bpr_service.storage.beneath import within

if TYPE_CHECKING:
    from dbos import DBOSClient
    from sqlalchemy import Connection

State = Literal["queued", "running", "done", "failed", "cancelled"]
WORKFLOWS: dict[str, tuple[str, str]] = {
    "refine": ("jobs", "refine"), "audit": ("jobs", "refine"), "train": ("train", "train"),
}  # fmt: skip
"""The queue and the workflow of each kind: an audit is planned, done in parts and merged as a refinement is."""
_STATES: dict[str, State] = {
    "ENQUEUED": "queued",
    "DELAYED": "queued",
    "PENDING": "running",
    "SUCCESS": "done",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}
ENDED = ("done", "failed", "cancelled")
JobList = list["Job"]
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Job:
    """A job as others see it. ``progress`` and ``result`` are JSON-ready."""

    id: str
    kind: str
    owner: str | None
    state: State
    request: dict[str, Any]
    message: str
    progress: dict[str, Any]
    result: dict[str, Any] | None
    created: float
    started: float | None
    ended: float | None
    attempt: int

    @property
    def ended_for_good(self) -> bool:
        return self.state in ENDED

    def to_json(self) -> dict[str, Any]:
        times = {key: _iso(getattr(self, key)) for key in ("created", "started", "ended")}
        keys = ("id", "kind", "owner", "state", "message", "progress", "result", "attempt", "request")
        return {key: getattr(self, key) for key in keys} | times


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an installation is: work by queue (``jobs``, ``parts``, ``train``), and workers that are alive."""

    queued: dict[str, int]
    running: dict[str, int]
    workers: int


class JobEngine:
    """Jobs of one installation; cheap to make, any number of processes may have one."""

    def __init__(self, settings: JobSettings | None = None, *, patience_s: float = 10.0) -> None:
        """``patience_s``: how long a call waits for a database that does not answer, before ``NotReadyError``."""
        self.settings = settings or JobSettings.load()
        self.database = Database(self.settings.url, patience_s=patience_s, statement_s=self.settings.statement_s)
        self.roots = Roots(self.settings.roots)
        self._folders = folders_of(self.settings)

    @cached_property
    def client(self) -> DBOSClient:
        """DBOS's client; the tables are made where they are missing."""
        from bpr_service.jobs.dbos_setup import open_client

        self.database.create()
        return open_client(self.settings, self.database)

    # --- the six -------------------------------------------------------------------------------------------------

    def submit(
        self, values: dict[str, Any], job_id: str | None = None, *, owner: str | None = None, may_promote: bool = True
    ) -> Job:
        """Accept a job; the same id, or without one the same request over the same files, is done once.

        Args:
            values: of the request, as in its JSON.
            job_id: the caller's own; None derives one from the request and its files.
            owner: who submits it; jobs of different owners share neither an id nor an ``out``.
            may_promote: it may replace the active version of its name, by the request's own rule.

        Raises:
            ConfigError, UnknownName: the request is not valid.
            ForbiddenError: a path is outside the roots; it would promote and may not.
            LimitError: it asks for more than the settings allow, or the owner has too many jobs.
            ConflictError: the id is taken by another request, or ``out`` by another owner.
        """
        request = parse_request(values)
        if isinstance(request, TrainRequest):
            request = check_promotion(request, self.settings, may_promote=may_promote)
        resolved = self.roots.confine(request)
        with within(self._folders):
            self._check(resolved)
            stamp = self._stamp(resolved)
        text = canonical(request)
        if job_id is None:
            whose = () if owner is None else (owner,)
            job_id = f"{request.kind}-{digest(text, stamp, *whose)[:16]}"
        elif not _ID.fullmatch(job_id):
            raise ConfigError(
                "a job's id",
                expected="letters, digits, '.', '_' and '-', 100 at most",
                got=repr(job_id),
                fix="choose another",
            )
        enqueue = self._enqueue(job_id, request.kind)
        row = self.database.job(job_id)
        if row is None:
            outs = self._free(resolved, owner)
            self.database.add_job(job_id, request.kind, text, owner=owner, outs=outs, then=enqueue)
            row = self._row(job_id)
        if row.owner != owner or canonical(parse_request(row.request)) != text:
            raise ConflictError(
                f"job {job_id} is there with another request", expected="the same request", fix="choose another id"
            )
        return self.get(job_id)

    def _free(self, request: RefineRequest | TrainRequest, owner: str | None) -> tuple[str, ...]:
        """Where the request writes, once it is known that this owner may have one more job, and may write there."""
        check_quota(self.database.count_open(owner), self.settings)
        if not isinstance(request, RefineRequest):
            return ()
        if self.database.is_taken(request.outputs, owner):
            raise ConflictError("out", expected="a place that no other owner's job writes to", fix="choose another")
        return request.outputs

    def get(self, job_id: str) -> Job:
        """Raises ``NotFoundError``."""
        return self._jobs([self._row(job_id)])[0]

    def list(
        self, *, limit: int = 100, kind: str | None = None, state: str | None = None, owner: str | None = None
    ) -> JobList:
        """The newest jobs first; of all owners where none is named."""
        _ = self.client
        jobs = self._jobs(self.database.list_jobs(limit, kind, owner))
        return [job for job in jobs if state in (None, job.state)]

    def cancel(self, job_id: str) -> Job:
        """Stop a job; what is done stays for a resume.

        Raises:
            ConflictError: it has ended.
        """
        job = self.get(job_id)
        if job.ended_for_good:
            raise ConflictError(f"job {job_id} cannot be cancelled", expected="queued or running", got=job.state)
        self.database.update_job(job_id, job.attempt, cancelled=True, message="cancelled", ended=True)
        parts = self.database.workflows_of(f"{job_id}:{job.attempt}.", unfinished=True)
        self.client.cancel_workflows([f"{job_id}:{job.attempt}", *parts])
        return self.get(job_id)

    def resume(self, job_id: str) -> Job:
        """Go on with a job that was cancelled or has failed; what is done is not done again.

        Raises:
            ConflictError: it is under way, or done.
        """
        job = self.get(job_id)
        if job.state not in ("cancelled", "failed"):
            raise ConflictError(
                f"job {job_id} cannot be resumed",
                expected="cancelled or failed",
                got=job.state,
                fix="submit a new job to do it again" if job.state == "done" else "wait for it",
            )
        self.database.next_attempt(job_id, job.attempt, self._enqueue(job_id, job.kind))
        return self.get(job_id)

    def run_worker(self, *, device: str = "cpu", workers: int = 0, kinds: Sequence[str] | None = None) -> None:
        """Work on jobs of these kinds (all where None) until SIGTERM or SIGINT."""
        from bpr_service.jobs.dbos_setup import KINDS
        from bpr_service.jobs.worker import Worker

        Worker(self.settings, device=device, workers=workers, kinds=KINDS if kinds is None else kinds).run()

    def prune(self, *, older_than_s: float, keep_bytes: float | None = None) -> Sequence[str]:
        """Remove what ended jobs left, by age and size; see `bpr_service.jobs.prune`."""
        client = self.client
        return prune(self.database, client, self.settings, older_than_s=older_than_s, keep_bytes=keep_bytes)

    # --- beside them: what a person looks at ---------------------------------------------------------------------

    def folder(self, job_id: str) -> Path:
        """Where a job keeps plan, parts and log."""
        self._row(job_id)
        return self.settings.job_folder(job_id)

    def open_out(self, job: Job) -> BinaryIO:
        """What a job that is done wrote to ``out``, where that is a file. Raises as `storage.open_read`."""
        return self._open(str((job.result or {})["out"]))

    def open_page(self, job: Job) -> BinaryIO:
        """The page of an audit that is done. Raises as `storage.open_read`."""
        if job.request["page_out"] is not None:
            return self._open(job.request["page_out"])
        return storage.open_read(str(self.folder(job.id) / PAGE))

    def _open(self, name: str) -> BinaryIO:
        with within(self._folders):
            return storage.open_read(self.roots.resolve(name))

    def log(self, job_id: str, *, tail_bytes: int = 1 << 20) -> str:
        """The end of a job's log. Raises ``NotFoundError`` for a job that does not exist."""
        path = self.folder(job_id) / "log.txt"
        if not path.exists():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - tail_bytes))
            return file.read().decode("utf-8", "replace")

    def load(self) -> Load:
        """What waits, what runs, who works. Raises ``NotReadyError`` where the database does not answer."""
        from bpr_service.jobs.dbos_setup import WORK_QUEUES

        _ = self.client
        counts = self.database.count_workflows()
        names = [queue for queues in WORK_QUEUES.values() for queue in queues]
        return Load(
            queued={name: counts.get((name, "ENQUEUED"), 0) for name in names},
            running={name: counts.get((name, "PENDING"), 0) for name in names},
            workers=sum(self._beats(worker) for worker in self.database.list_workers()),
        )

    def check_worker(self, host: str) -> str:
        """The id of a worker on this machine that gives signs of life. Raises ``NotReadyError``."""
        self.database.create()
        here = [worker for worker in self.database.list_workers() if worker["host"] == host]
        for worker in here:
            if self._beats(worker):
                return str(worker["id"])
        states = ", ".join(f"{w['state']} and silent for {w['silent_s']:.0f} s" for w in here) or "none"
        raise NotReadyError(
            "the worker is not ready", expected=f"a sign of life on {host}", got=states, fix="see the worker's log"
        )

    def _beats(self, worker: Mapping[str, Any]) -> bool:
        return bool(worker["state"] == "alive" and worker["silent_s"] < self.settings.dead_after_s)

    def close(self) -> None:
        if "client" in self.__dict__:
            self.client.destroy()
        self.database.engine.dispose()

    # --- inside --------------------------------------------------------------------------------------------------

    def _row(self, job_id: str) -> JobRow:
        _ = self.client
        row = self.database.job(job_id)
        if row is None:
            raise NotFoundError(
                f"job {job_id!r}", expected="the id of a job", got="none of that id", fix="see bpr jobs list"
            )
        return row

    def _enqueue(self, job_id: str, kind: str) -> Enqueue:
        """What puts an attempt of a job into its queue, in a transaction of the database."""
        from bpr_service.jobs.dbos_setup import enqueue

        client = self.client  # makes the tables where they are missing
        queue, workflow = WORKFLOWS[kind]

        def put(connection: Connection, attempt: int) -> None:
            enqueue(client, connection, queue, workflow, f"{job_id}:{attempt}", (job_id, str(attempt)))

        return put

    def _jobs(self, rows: Sequence[JobRow]) -> JobList:
        ids = [row.workflow for row in rows]
        found = self.client.list_workflows(workflow_ids=ids, load_input=False, load_output=False) if ids else []
        states = {status.workflow_id: _STATES[status.status] for status in found}
        return [self._job(row, states.get(row.workflow, "queued")) for row in rows]

    def _job(self, row: JobRow, state: State) -> Job:
        if state in ENDED and row.ended is None:  # it ended after its row was read
            row = self.database.job(row.id) or row
        if row.cancelled:
            state = "cancelled"
        progress = row.progress
        if "parts" in progress:
            done, failed = self.database.sum_parts(row.id)
            progress = {**progress, "done": done, "failed": failed}
        same = ("id", "kind", "owner", "request", "message", "result", "created", "started", "ended", "attempt")
        return Job(state=state, progress=progress, **{name: getattr(row, name) for name in same})

    def _check(self, request: RefineRequest | TrainRequest) -> None:
        """What can be said at once: unknown names and settings."""
        from bpr_service.config import RefineConfig, build, get_preset
        from bpr_service.jobs.refine.plan import open_file

        get_preset(request.preset)
        check_ceilings(request, self.settings)
        if isinstance(request, RefineRequest):
            build(RefineConfig, request.settings)
            open_file(request)
        else:
            from bpr_service.jobs.train.steps import check_recipe

            check_recipe(request, self.settings)

    def _stamp(self, request: RefineRequest | TrainRequest) -> str:
        """Changes when the files of a request do."""
        return fingerprint(request, "") if isinstance(request, RefineRequest) else ""
