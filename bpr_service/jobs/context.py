"""What the steps of jobs need of the worker that runs them."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bpr_service.errors import CancelledError
from bpr_service.jobs.database import Database
from bpr_service.jobs.refine.loader_process import RefinerSpec
from bpr_service.jobs.refine.loaders import RefinerPool
from bpr_service.jobs.roots import Roots
from bpr_service.jobs.settings import JobSettings
from bpr_service.jobs.tables import JobRow

log = logging.getLogger(__name__)
R = TypeVar("R")
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTUNREACH}


@dataclass
class Context:
    """What the steps of jobs need of the worker that runs them."""

    settings: JobSettings
    database: Database
    device: str
    workers: int
    worker_id: str
    stopping: Callable[[], None] = lambda: None
    """Called between units; does not return when the worker is to end."""
    alive: Callable[[], None] = lambda: None
    """Called when a unit is done: the worker is not hung."""
    client: Any = field(default=None, repr=False)
    """DBOS's client, which queues parts."""
    device_turn: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """Held by the part that the device works on; the next one is fetched meanwhile and waits for its turn."""
    _pool: RefinerPool | None = field(default=None, repr=False)

    def pool(self, spec: RefinerSpec) -> RefinerPool:
        """The warm Refiner of a spec; one is kept."""
        if self._pool is None or self._pool.spec != spec:
            if self._pool is not None:
                self._pool.close()
            self._pool = RefinerPool(spec, device=self.device, workers=self.workers)
        return self._pool

    def log(self, job_id: str, text: str) -> None:
        """Append a line to the job's log; a line that storage has no room for is left out, the work goes on."""
        folder = self.settings.job_folder(job_id)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "log.txt").open("a") as file:
                file.write(f"{stamp} {self.worker_id} {text}\n")
        except OSError as error:
            log.warning("job %s: its log cannot be written: %s", job_id, error)

    def outward(self, text: str) -> str:
        """`text` as callers may read it: see `Roots.outward`."""
        return Roots(self.settings.roots).outward(text)

    def cancelled(self, row: JobRow) -> bool:
        now = self.database.job(row.id)
        return now is None or now.cancelled or now.attempt != row.attempt

    def patiently(self, row: JobRow, what: Callable[[], R]) -> R:
        """``what()``, tried again while storage is full or away; the job's message says so meanwhile."""
        waited = False
        while True:
            try:
                result = what()
            except OSError as error:
                if error.errno not in _PASSING:
                    raise
                place = self.outward(str(error.filename or self.settings.home))
                reason = f"waiting: {error.strerror} ({place}); tried again by itself"
                self.database.update_job(row.id, row.attempt, message=reason)
                waited = True
                if self.cancelled(row):
                    raise CancelledError(f"job {row.id} was cancelled") from None
                self.alive()
                self.stopping()
                time.sleep(self.settings.retry_s)
                continue
            if waited:
                self.database.update_job(row.id, row.attempt, message="")
            return result
