"""A refine job: plan, shards, merge. Each is done once however often it is started."""

from __future__ import annotations

import errno
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bpr_service import storage
from bpr_service.errors import CancelledError, ModelError
from bpr_service.formats import PredictionFormat, Unit
from bpr_service.jobs.batch import spec_of, unit_headers
from bpr_service.jobs.database import Database, JobRow
from bpr_service.jobs.loaders import RefinerPool, RefinerSpec
from bpr_service.jobs.plan import Plan, fingerprint, load_plan, make_plan, open_file
from bpr_service.jobs.report import Totals, write_report
from bpr_service.jobs.requests import RefineRequest
from bpr_service.jobs.roots import Roots
from bpr_service.jobs.settings import JobSettings
from bpr_service.jobs.shards import ShardWriter, merge, read_frames, sealed, shard_name
from bpr_service.jobs.units import Outcome, untouched

log = logging.getLogger(__name__)
R = TypeVar("R")
STALLS = 3
"""Starts of a shard in a row that got no unit done, after which the unit at fault is left as it is."""
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
    device_turn: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """Held by the shard that the device works on; the next one is fetched meanwhile and waits for its turn."""
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
                reason = f"waiting: {error.strerror} ({error.filename or self.settings.home}); tried again by itself"
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


def request_of(context: Context, row: JobRow) -> RefineRequest:
    """The request with its paths resolved, checked against the roots as they are now."""
    request = Roots(context.settings.roots).confine(RefineRequest(**row.request))
    assert isinstance(request, RefineRequest)
    return request


def _within(context: Context) -> tuple[str, ...]:
    return Roots(context.settings.roots).local


def plan_job(context: Context, row: JobRow) -> int:
    """Write the plan once; the number of shards. Raises what `make_plan` raises."""
    request = request_of(context, row)
    folder = context.settings.job_folder(row.id)
    with context.device_turn:  # another model takes the place of the one that is loaded
        spec = _fixed_model(context, row, request)
    known = load_plan(folder)
    if known is None:
        mark = fingerprint(request, str(spec.model))
        file = open_file(request, _within(context))
        known = context.patiently(row, lambda: make_plan(request, file, folder, mark))
        context.log(row.id, f"planned {known.units} images in {len(known.shards)} shards")
    shards = len(known.shards)
    context.database.update_job(
        row.id, row.attempt, started=row.started or True, progress={"total": known.units, "shards": shards}
    )
    return shards


def _fixed_model(context: Context, row: JobRow, request: RefineRequest) -> RefinerSpec:
    """The Refiner of a job. An alias is read once, so every shard has the same version."""
    from bpr_service.runtime.model_store import ModelStore

    path = context.settings.job_folder(row.id) / "model.json"
    store = ModelStore(context.settings.models)
    if not path.exists():
        fixed = store.get(request.model).ref if request.model and "@" in request.model else request.model
        spec = spec_of(request.with_options(model=fixed), store)
        sha = context.pool(spec).refiner.card.sha256
        text = json.dumps({"model": fixed, "sha256": sha})
        context.patiently(row, lambda: storage.write_bytes(str(path), text.encode()))
    fixed = json.loads(path.read_bytes())
    spec = spec_of(request.with_options(model=fixed["model"]), store)
    got = context.pool(spec).refiner.card.sha256
    if got != fixed["sha256"]:
        raise ModelError(
            f"job {row.id}: this worker has another model",
            expected=f"SHA-256 {fixed['sha256']}",
            got=got,
            fix="run the same release on all workers, or name a version of the model store",
        )
    return spec


def run_shard(context: Context, row: JobRow, shard: int) -> None:
    """Refine what one shard still lacks, when it is its turn; nothing when it is there and whole.

    Raises:
        CancelledError: the job was cancelled.
        DeviceError, ModelError: not the units' fault.
    """
    with context.device_turn:
        if context.cancelled(row):
            raise CancelledError(f"job {row.id} was cancelled")
        _run_shard(context, row, shard)


def _run_shard(context: Context, row: JobRow, shard: int) -> None:
    request = request_of(context, row)
    folder = context.settings.job_folder(row.id)
    plan = load_plan(folder)
    assert plan is not None, "shards are queued after the plan is written"
    if sealed(folder / shard_name(shard)):
        _note_sealed(context, row, plan, shard)
        return
    spec = _fixed_model(context, row, request)
    context.alive()  # loading a model may take long, but not for ever
    file = open_file(request, _within(context))
    writer = context.patiently(row, lambda: ShardWriter(folder, shard))
    try:
        missing = [unit for unit in plan.read(shard) if unit.number not in writer.done]
        stalls = context.database.start_shard(row.id, shard, plan.shards[shard][2], len(writer.done))
        if missing and stalls >= STALLS:
            unit = missing.pop(0)
            why = f"{unit.name}: its worker ended {stalls} times while refining it (out of memory?)"
            _add(context, row, writer, Outcome(unit.number, unit.image, failed=[why], encoded=untouched(file, unit)))
        _refine(context, row, writer, shard, file, missing, spec, request)
        context.patiently(row, writer.finish)
    finally:
        writer.close()
    _note(context, row, shard, writer)


def _refine(
    context: Context,
    row: JobRow,
    writer: ShardWriter,
    shard: int,
    file: PredictionFormat,
    missing: list[Unit],
    spec: RefinerSpec,
    request: RefineRequest,
) -> None:
    last = time.monotonic()
    for outcome in context.pool(spec).run(file, missing, ignore_label=request.ignore_label):
        if context.settings.log_units:
            context.log(row.id, f"refined {outcome.image}")
        _add(context, row, writer, outcome)
        context.alive()
        context.stopping()
        if time.monotonic() - last >= context.settings.poll_s:
            last = time.monotonic()
            _note(context, row, shard, writer)
            if context.cancelled(row):
                raise CancelledError(f"job {row.id} was cancelled")


def _add(context: Context, row: JobRow, writer: ShardWriter, outcome: Outcome) -> None:
    context.patiently(row, lambda: writer.add(outcome))


def _note(context: Context, row: JobRow, shard: int, writer: ShardWriter) -> None:
    failed = sum(bool(header["failed"]) for header in writer.headers.values())
    context.database.update_shard(row.id, shard, len(writer.done), failed)


def _note_sealed(context: Context, row: JobRow, plan: Plan, shard: int) -> None:
    with (plan.folder / shard_name(shard)).open("rb") as journal:
        failed = sum(bool(frame.header["failed"]) for frame in read_frames(journal))
    units = plan.shards[shard][2]
    context.database.start_shard(row.id, shard, units, units)
    context.database.update_shard(row.id, shard, units, failed)


def merge_job(context: Context, row: JobRow) -> None:
    """Put the shards together and store the result and the report."""
    request = request_of(context, row)
    folder = context.settings.job_folder(row.id)
    plan = load_plan(folder)
    assert plan is not None
    file = open_file(request, _within(context))

    def once() -> Totals:
        totals = Totals()
        for header in merge(file, folder, len(plan.shards), plan.units, request.out):
            totals.add(header)
        head: dict[str, Any] = {
            "job": row.id,
            "request": row.request,
            "model": json.loads((folder / "model.json").read_text()),
        }
        write_report(str(folder / "report.json"), head, totals, unit_headers(plan))
        return totals

    totals = context.patiently(row, once)
    summary = totals.to_json()
    summary["failed"], summary["warnings"] = summary["failed"][:100], summary["warnings"][:100]
    result = {"out": row.request["out"], **summary, "failed_count": len(totals.failed)}
    message = f"{len(totals.failed)} items failed; see the report" if totals.failed else ""
    context.database.update_job(row.id, row.attempt, result=result, message=message, ended=True)
    context.log(row.id, f"done: {totals.images} images, {totals.refined} masks refined, {len(totals.failed)} failed")
    for part in folder.glob("*.part"):
        part.unlink(missing_ok=True)
