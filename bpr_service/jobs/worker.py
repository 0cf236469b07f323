"""A worker: takes parts and training runs from the queues, gives signs of life, and buries the dead.

On PostgreSQL any number of workers share the work; each start has an id of its own. A worker that is silent too long is
declared dead by the others, one at a time under a lock, and its workflows go back to their queues; it learns of that at
its next beat and starts afresh. On SQLite there is one worker, kept single by a file lock, whose fixed id lets it take
up its own work again.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from dbos import DBOS
from filelock import FileLock, Timeout

from bpr_service.errors import BprError, CancelledError, ConflictError
from bpr_service.jobs import refine_steps
from bpr_service.jobs.context import Context
from bpr_service.jobs.database import Database
from bpr_service.jobs.dbos_setup import KINDS, VERSION, enqueue, open_client, queues_of, worker_config
from bpr_service.jobs.prune import prune
from bpr_service.jobs.roots import folders_of
from bpr_service.jobs.settings import JobSettings
from bpr_service.jobs.tables import JobRow
from bpr_service.jobs.train import compare, steps
from bpr_service.storage.beneath import confine

log = logging.getLogger(__name__)
MAX_STARTS = 1000
"""Starts of a workflow that DBOS counts; a unit that kills its worker is found long before, part by part."""
BATCH = 256
"""Parts that are put into the queue in one transaction."""
UNFINISHED = ("ENQUEUED", "DELAYED", "PENDING")
_context: Context | None = None


def _row(job_id: str, attempt: str) -> tuple[Context, JobRow]:
    """This worker's context and the job; a step of an attempt that is over is cancelled."""
    assert _context is not None, "workflows run only in a worker"
    row = _context.database.job(job_id)
    if row is None or row.attempt != int(attempt) or row.cancelled:
        raise CancelledError(f"job {job_id}: attempt {attempt} is over")
    return _context, row


def _step(name: str, job_id: str, attempt: str, work: Callable[[Context, JobRow], Any]) -> str:
    """Run one step; what goes wrong is said in the job, and to DBOS as plain text."""
    context, row = _row(job_id, attempt)
    try:
        return str(work(context, row))
    except CancelledError:
        raise
    except Exception as error:
        text = str(error) if isinstance(error, BprError | OSError) else f"{type(error).__name__}: {error}"
        log.exception("job %s: %s failed", job_id, name)
        text = context.outward(text)
        context.log(job_id, f"{name} failed: {text}")
        context.database.update_job(job_id, int(attempt), message=text, ended=True)
        raise RuntimeError(text) from None


@DBOS.step(name="plan")
def _plan(job_id: str, attempt: str) -> str:
    return _step("plan", job_id, attempt, refine_steps.plan_job)


@DBOS.step(name="part")
def _part(job_id: str, attempt: str, part: str) -> str:
    return _step(f"part {part}", job_id, attempt, lambda c, row: refine_steps.run_part(c, row, int(part)))


@DBOS.step(name="merge")
def _merge(job_id: str, attempt: str) -> str:
    return _step("merge", job_id, attempt, refine_steps.merge_job)


@DBOS.step(name="dispatch")
def _dispatch(job_id: str, attempt: str, parts: str) -> str:
    """Put all parts into their queue, many in a transaction; one that is there already stays as it is."""

    def work(context: Context, row: JobRow) -> str:
        client = context.client
        for start in range(0, int(parts), BATCH):
            with context.database.engine.begin() as c:
                for part in range(start, min(start + BATCH, int(parts))):
                    arguments = (job_id, attempt, str(part))
                    enqueue(client, c, "parts", "refine-part", f"{row.workflow}.{part}", arguments)
            context.alive()
        return parts

    return _step("dispatch", job_id, attempt, work)


@DBOS.step(name="wait")
def _wait(job_id: str, attempt: str) -> str:
    """Wait until every part has ended; the number of those that failed, so that a resume finds the others done."""

    def work(context: Context, row: JobRow) -> str:
        while True:
            states = context.database.count_workflows(f"{row.workflow}.")
            ended = sum(count for (_, state), count in states.items() if state not in UNFINISHED)
            if ended == sum(states.values()):
                return str(ended - sum(count for (_, state), count in states.items() if state == "SUCCESS"))
            if context.cancelled(row):
                raise CancelledError(f"job {job_id} was cancelled")
            time.sleep(context.settings.poll_s)

    return _step("wait", job_id, attempt, work)


@DBOS.workflow(name="refine", max_recovery_attempts=MAX_STARTS)
def refine_job(job_id: str, attempt: str) -> str:
    """Plan, then one workflow a part, then merge."""
    parts = _dispatch(job_id, attempt, _plan(job_id, attempt))
    failed = _wait(job_id, attempt)
    if failed != "0":
        raise RuntimeError(f"{failed} of {parts} parts failed")
    return _merge(job_id, attempt)


@DBOS.workflow(name="refine-part", max_recovery_attempts=MAX_STARTS)
def refine_part(job_id: str, attempt: str, part: str) -> str:
    """One part, as one step."""
    return _part(job_id, attempt, part)


@DBOS.step(name="train")
def _train(job_id: str, attempt: str) -> str:
    return _step("training", job_id, attempt, steps.train)


@DBOS.step(name="register")
def _register(job_id: str, attempt: str, exported: str) -> str:
    def work(context: Context, row: JobRow) -> str:
        done = steps.register(context, row, exported, compare.compare(context, row, exported))
        return str(done["version"])

    return _step("measuring and registering", job_id, attempt, work)


@DBOS.workflow(name="train", max_recovery_attempts=MAX_STARTS)
def train_job(job_id: str, attempt: str) -> str:
    """Train, then measure, register and perhaps promote."""
    return _register(job_id, attempt, _train(job_id, attempt))


class Worker:
    """One worker process. See the module."""

    def __init__(
        self, settings: JobSettings, *, device: str = "cpu", workers: int = 0, kinds: Sequence[str] = KINDS
    ) -> None:
        """``kinds`` of jobs to work on: a machine without a trainer leaves training to others."""
        self.settings = settings
        self.queues = [queue for kind in kinds for queue in queues_of(kind)]
        self.database = Database(settings.url, statement_s=settings.statement_s)
        host = socket.gethostname()
        self.id = "sqlite" if self.database.on_sqlite else f"{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.context = Context(settings, self.database, device, workers, self.id)
        self.context.stopping, self.context.alive = self._leave_if_asked, self._note_alive
        self._host, self._device = host, device
        self._asked = threading.Event()
        self._busy = threading.Lock()
        self._alive_at = time.monotonic()
        self._single: Any = None

    def run(self) -> None:
        """Work until SIGTERM or SIGINT; then finish the unit under way and end the process with 0.

        A unit that takes longer than ``drain_s`` after the signal is left to the worker that comes next.
        """
        global _context
        self._be_single()
        self.settings.home.mkdir(parents=True, exist_ok=True)
        confine(folders_of(self.settings))
        self.database.create()
        _context = self.context
        self.context.client = open_client(self.settings, self.database)  # brings DBOS's tables up to date
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._asked.set())
        DBOS(config=worker_config(self.settings, self.id))
        DBOS.listen_queues(self.queues)
        self.database.add_worker(self.id, self._host, os.getpid(), self._device)
        DBOS.launch()
        self._queues()
        print(f"bpr worker {self.id}: ready", file=sys.stderr, flush=True)
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        threading.Thread(target=self._prune_daily, name="prune", daemon=True).start()
        self._asked.wait()
        threading.Timer(self.settings.drain_s, self._leave).start()
        while self._under_way():  # a unit between two checks; it calls _leave_if_asked when it is done
            time.sleep(0.1)
        self._leave()

    def _queues(self) -> None:
        poll = self.settings.poll_s
        # A part more than is worked on, and looked for more often, so that the device does not wait for the next.
        for name, limit, every_s in (
            ("jobs", self.settings.parallel_jobs, poll),
            ("parts", 2, poll / 4),
            ("train", 1, poll),
        ):
            DBOS.register_queue(
                name, worker_concurrency=limit, polling_interval_sec=every_s, on_conflict="always_update"
            )

    def _be_single(self) -> None:
        """On SQLite, hold the lock file. Raises ``ConflictError`` when another worker has it."""
        if not self.database.on_sqlite:
            return
        path = f"{self.database.engine.url.database}.worker.lock"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._single = FileLock(path)  # held until the process ends
        try:
            self._single.acquire(timeout=0)
        except Timeout:
            raise ConflictError(
                "a worker runs already",
                expected="one worker on SQLite",
                got="a second one",
                fix="set BPR_JOBS_DATABASE to a PostgreSQL URL to run several",
            ) from None

    # --- signs of life -------------------------------------------------------------------------------------------

    def _note_alive(self) -> None:
        self._alive_at = time.monotonic()

    def _beat(self) -> None:
        while True:
            try:
                if not self.database.beat(self.id):
                    self._start_afresh("declared dead by another worker")
                if not self.database.on_sqlite:
                    self.database.reap(self.settings.dead_after_s, self._recover)
            except Exception:
                log.exception("worker %s: a beat failed", self.id)
            if not self._under_way():
                self._note_alive()
            if time.monotonic() - self._alive_at > self.settings.part_timeout_s:
                self._start_afresh(f"no unit done for {self.settings.part_timeout_s:g} s")
            time.sleep(self.settings.beat_s)

    def _prune_daily(self) -> None:
        client, keep = self.context.client, self.settings.keep_mb
        older_than_s, keep_bytes = 86_400 * self.settings.keep_days, keep and 1e6 * keep
        while True:
            try:
                with self.database.exclusively("prune"):
                    prune(self.database, client, self.settings, older_than_s=older_than_s, keep_bytes=keep_bytes)
            except Exception:
                log.exception("worker %s: old jobs could not be removed", self.id)
            time.sleep(86_400)

    def _recover(self, gone: list[str]) -> None:
        """Put the workflows of dead workers back into their own queues; those of the living are not touched."""
        print(f"bpr worker {self.id}: taking over from {', '.join(gone)}", file=sys.stderr, flush=True)
        DBOS._recover_pending_workflows(gone)

    def _under_way(self) -> bool:
        """A part or training run is being worked on here."""
        pending = DBOS.list_workflows(
            status="PENDING", executor_id=self.id, app_version=VERSION, load_input=False, load_output=False
        )
        return any(status.queue_name in ("parts", "train") for status in pending)

    def _start_afresh(self, why: str) -> None:
        """Become a new process with a new id; what was done is in the journals."""
        print(f"bpr worker {self.id}: {why}; starting again", file=sys.stderr, flush=True)
        os.execv(sys.executable, sys.orig_argv)

    # --- the end -------------------------------------------------------------------------------------------------

    def _leave_if_asked(self) -> None:
        if self._asked.is_set():
            self._leave()

    def _leave(self) -> None:
        """End now. Nothing is lost: units are in the journals, workflows go to others at once."""
        with self._busy:
            self.database.leave(self.id)
            print(f"bpr worker {self.id}: left", file=sys.stderr, flush=True)
            os._exit(0)
