"""A refine job: plan, parts, merge. Each is done once however often it is started."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from bpr_service.errors import CancelledError
from bpr_service.jobs.context import Context
from bpr_service.jobs.refine.batch import settle_model, spec_of
from bpr_service.jobs.refine.journal import PartWriter, count_failed
from bpr_service.jobs.refine.parts import Watcher, refine_parts
from bpr_service.jobs.refine.place import PAGE, Place
from bpr_service.jobs.refine.plan import Plan, check_result, load_plan, make_plan, open_file
from bpr_service.jobs.refine.report import Report, Totals
from bpr_service.jobs.refine.results import put_together
from bpr_service.jobs.refine.unit import Outcome
from bpr_service.jobs.requests import AuditRequest, RefineRequest, parse_request
from bpr_service.jobs.roots import Roots
from bpr_service.jobs.tables import JobRow
from bpr_service.runtime.model_store import ModelStore

R = TypeVar("R")
STALLS = 3
"""Starts of a part in a row that got no unit done, after which the unit at fault is left as it is."""
NAMED = 100
"""Failures and warnings that a job's result names; its report has all."""


def request_of(context: Context, row: JobRow) -> RefineRequest:
    """The request with its paths resolved, checked against the roots as they are now."""
    request = Roots(context.settings.roots).confine(parse_request(row.request))
    assert isinstance(request, RefineRequest)
    return request


def _within(context: Context) -> tuple[str, ...]:
    return Roots(context.settings.roots).local


def place_of(context: Context, row: JobRow) -> Place:
    """Where a job keeps its plan and its parts."""
    return Place(str(context.settings.job_folder(row.id)))


def plan_job(context: Context, row: JobRow) -> int:
    """Write the plan once; the number of parts. Raises what `make_plan` raises."""
    request, place = request_of(context, row), place_of(context, row)
    plan = load_plan(place)
    if plan is None:
        model, sha256 = settle_model(request, ModelStore(context.settings.models))
        file = open_file(request, _within(context))
        check_result(request, file)
        plan = context.patiently(row, lambda: make_plan(request, file, place, model=model, model_sha256=sha256))
        context.log(row.id, f"planned {plan.units} images in {plan.parts} parts")
    progress = {"total": plan.units, "parts": plan.parts}
    context.database.update_job(row.id, row.attempt, started=row.started or True, progress=progress)
    return plan.parts


def run_part(context: Context, row: JobRow, part: int) -> None:
    """Refine what one part still lacks, when it is its turn; nothing when it is there and whole.

    Raises:
        CancelledError: the job was cancelled.
        DeviceError, ModelError: not the units' fault.
    """
    with context.device_turn:
        if context.cancelled(row):
            raise CancelledError(f"job {row.id} was cancelled")
        request, place = request_of(context, row), place_of(context, row)
        plan = _plan(place)
        pool = context.pool(spec_of(request, plan.model, ModelStore(context.settings.models)))
        context.alive()  # loading a model may take long, but not for ever
        watcher = _JobWatcher(context, row, place)
        refine_parts(pool, request, open_file(request, _within(context)), place, plan, [part], watcher)


def _plan(place: Place) -> Plan:
    plan = load_plan(place)
    assert plan is not None, "parts are queued after the plan is written"
    return plan


class _JobWatcher(Watcher):
    """Keeps a job's progress, notices its cancellation, gives signs of life."""

    def __init__(self, context: Context, row: JobRow, place: Place) -> None:
        self.context, self.row, self.place = context, row, place
        self.noted = time.monotonic()

    def begun(self, part: int, units: int, done: int) -> str:
        stalls = self.context.database.start_part(self.row.id, part, units, done)
        return f"its worker ended {stalls} times while refining it (out of memory?)" if stalls >= STALLS else ""

    def refined(self, writer: PartWriter, outcome: Outcome) -> None:
        if self.context.settings.log_units:
            self.context.log(self.row.id, f"refined {outcome.image}")
        self.context.alive()
        self.context.stopping()
        if time.monotonic() - self.noted >= self.context.settings.poll_s:
            self.noted = time.monotonic()
            self.context.database.update_part(self.row.id, writer.part, len(writer.done), writer.failed)
            if self.context.cancelled(self.row):
                raise CancelledError(f"job {self.row.id} was cancelled")

    def finished(self, part: int, units: int, failed: int | None) -> None:
        if failed is None:
            failed = count_failed(self.place, part)
            self.context.database.start_part(self.row.id, part, units, units)
        self.context.database.update_part(self.row.id, part, units, failed)

    def write(self, what: Callable[[], R]) -> R:
        return self.context.patiently(self.row, what)


def merge_job(context: Context, row: JobRow) -> None:
    """Put the parts together and store the result and the report."""
    request, place = request_of(context, row), place_of(context, row)
    plan = _plan(place)
    file = open_file(request, _within(context))
    spec = spec_of(request, plan.model, ModelStore(context.settings.models))
    head = {"job": row.id, "request": row.request, "model": plan.model, "model_sha256": plan.model_sha256}
    named = parse_request(row.request)
    assert isinstance(named, RefineRequest)
    if isinstance(request, AuditRequest) and request.page_out is None:
        request = request.with_options(page_out=str(place.scratch / PAGE))

    def once() -> Totals:
        with Report(place.scratch) as report:
            for header in put_together(request, file, place, plan, spec, named):
                outward = {key: [context.outward(text) for text in header[key]] for key in ("failed", "warnings")}
                report.add({**header, **outward})
                context.alive()
                context.stopping()
            report.write(place.at("report.json"), head)
            return report.totals

    totals = context.patiently(row, once)
    summary = totals.to_json()
    summary["failed"], summary["warnings"] = summary["failed"][:NAMED], summary["warnings"][:NAMED]
    message = f"{totals.failed_count} items failed; see the report" if totals.failed_count else ""
    context.database.update_job(
        row.id, row.attempt, result={"out": row.request["out"], **summary}, message=message, ended=True
    )
    done = "audited" if row.kind == "audit" else "refined"
    context.log(row.id, f"done: {totals.images} images, {totals.refined} masks {done}, {totals.failed_count} failed")
    for journal in place.scratch.glob("*.journal"):
        journal.unlink(missing_ok=True)
