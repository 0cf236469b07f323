"""``bpr batch``: refine a prediction file in one process tree, or one task's share of it, or put the shares together.

What is done is kept beside the result, in ``OUT.bpr-work``, until the result is whole; ``--resume`` goes on there. With
``--work PLACE`` any number of tasks, on any machines, do a share each (``--part I/N``), and one puts them together
(``--merge``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bpr_service import storage
from bpr_service.audit.suspicion import judge_of
from bpr_service.config import get_preset
from bpr_service.errors import ConfigError, ConflictError, NotFoundError
from bpr_service.formats import PredictionFormat
from bpr_service.formats.targets import check_target
from bpr_service.jobs.refine.journal import PartWriter
from bpr_service.jobs.refine.loader_process import RefinerSpec
from bpr_service.jobs.refine.loaders import Busy, RefinerPool
from bpr_service.jobs.refine.parts import Watcher, refine_parts
from bpr_service.jobs.refine.place import Place
from bpr_service.jobs.refine.plan import (
    Plan,
    check_plan,
    check_result,
    fingerprint,
    load_plan,
    make_plan,
    open_file,
    share,
)
from bpr_service.jobs.refine.report import Report, Totals, default_trainer, figures
from bpr_service.jobs.refine.results import put_together
from bpr_service.jobs.refine.unit import Outcome
from bpr_service.jobs.requests import RefineRequest
from bpr_service.runtime.model_store import ModelStore

Drive = Callable[[RefineRequest, Place, range], int]
"""Refines parts of the plan of a place; how many images that was."""


@dataclass(frozen=True)
class Batch:
    """How a batch is run, beside what it refines.

    Attributes:
        resume: go on with what an earlier call left; without it, that is removed.
        work: where unfinished work is kept; default ``OUT.bpr-work``, which needs a local OUT.
        part: (I, N): refine only share I of N, from 0, and leave it in ``work``.
        merge: only put together what is in ``work``.
        keep_batches: note begin and end of every batch of the network.
    """

    device: str = "cpu"
    workers: int = 2
    resume: bool = False
    report: str | None = None
    ground_truth: str | None = None
    work: str | None = None
    part: tuple[int, int] | None = None
    merge: bool = False
    keep_batches: bool = False


@dataclass
class Result:
    """Totals of the result, None where only a share was refined; seconds and images of this run."""

    totals: Totals | None
    seconds: float
    images: int
    busy: Busy

    @property
    def exit_code(self) -> int:
        return 1 if self.totals is not None and self.totals.failed else 0


def run_batch(
    request: RefineRequest,
    options: Batch,
    trainer: list[str] | None = None,
    on_unit: Callable[[], None] = lambda: None,
    drive: Drive | None = None,
) -> Result:
    """Refine the whole file, a share of it, or put the shares together, as ``options`` say.

    Args:
        request: what to refine, and how.
        options: how much of it, and on what.
        trainer: the command that trains; None for a request that needs none.
        on_unit: called when a unit is done.
        drive: refines parts elsewhere, as on the actors of a cluster; None: in this process and its loaders.

    Raises:
        FormatError, ConfigError, ModelError, NotFoundError: nothing was written.
        ConflictError: what was begun had other inputs or settings; parts are missing at the merge.
    """
    file, place = open_file(request), _place(request, options)
    _check_targets(request, options, file)
    started, images, busy = time.perf_counter(), 0, Busy(keep_batches=options.keep_batches)
    if not (options.resume or options.part or options.merge):
        place.clear()
    model, sha256 = settle_model(request, known=load_plan(place))
    if options.merge:
        plan = load_plan(place)
        if plan is None:
            raise ConflictError(
                f"{place.address}: nothing to merge", expected="a plan and its parts", got="no plan", fix="check --work"
            )
        check_plan(plan, fingerprint(request, sha256)[:32], place)
    elif drive is not None:
        plan = make_plan(request, file, place, model=model, model_sha256=sha256)
        images = drive(request, place, _parts(plan, options))
    else:
        spec = spec_of(request, model)
        with RefinerPool(spec, device=options.device, workers=options.workers, busy=busy) as pool:
            plan = make_plan(request, file, place, model=model, model_sha256=sha256)
            started = time.perf_counter()
            images = _refine(pool, request, file, place, plan, _parts(plan, options), on_unit)
        if options.part is not None:
            return Result(None, time.perf_counter() - started, images, busy)
    result = _merged(request, options, file, place, plan, Result(Totals(), 0.0, images, busy), started, trainer)
    if not options.merge:
        place.clear()
    return result


def settle_model(
    request: RefineRequest, store: ModelStore | None = None, known: Plan | None = None
) -> tuple[str | None, str]:
    """The model version of a run and the SHA-256 of its weights; an alias is read once, when the run is planned.

    Raises:
        UnknownName, NotFoundError, ModelError: there is no such model, or it cannot do what is asked.
    """
    model = request.model
    if model and "@" in model:
        if known is not None:
            return known.model, known.model_sha256
        store = store or ModelStore()
        model = store.get(model).ref
    card = spec_of(request, model, store).card()
    if request.kind == "audit":
        judge_of(card)
    return model, card.sha256


def spec_of(request: RefineRequest, model: str | None, store: ModelStore | None = None) -> RefinerSpec:
    """The Refiner of a request with a settled model; NAME@VERSION is fetched from the model store."""
    if model and "@" in model:
        model = (store or ModelStore()).fetch(model)
    return RefinerSpec(request.preset, model, request.settings)


def _place(request: RefineRequest, options: Batch) -> Place:
    if options.ground_truth and request.task == "semantic" and not request.classes:
        raise ConfigError("figures", expected="--classes N with --truth", got="none", fix="pass --classes")
    if options.merge and options.part:
        raise ConfigError("--merge", expected="--part or --merge", got="both", fix="merge when all parts are done")
    shared = options.part is not None or options.merge
    if options.work is None and (shared or storage.is_remote(request.out)):
        what = "--part and --merge" if shared else "a result on object storage"
        raise ConfigError(what, expected="--work PLACE", got="none", fix="name a folder or address for unfinished work")
    return Place(options.work or f"{request.out.rstrip('/')}.bpr-work")


def _check_targets(request: RefineRequest, options: Batch, file: PredictionFormat) -> None:
    """Whether what is asked for can be written, and what it is measured against be read, before the work."""
    check_result(request, file)
    if options.report is not None:
        check_target(options.report, "--report")
    if options.ground_truth is None:
        return
    if options.report is None:
        raise ConfigError("--truth", expected="--report", got="none", fix="the figures are in the report")
    if not storage.exists(options.ground_truth):
        raise NotFoundError("--truth", expected="a file or folder", got=options.ground_truth, fix="check it")


def _parts(plan: Plan, options: Batch) -> range:
    return range(plan.parts) if options.part is None else share(plan, *options.part)


def _refine(
    pool: RefinerPool,
    request: RefineRequest,
    file: PredictionFormat,
    place: Place,
    plan: Plan,
    parts: Iterable[int],
    on_unit: Callable[[], None],
) -> int:
    with _Progress(plan.units, on_unit) as watcher:
        return refine_parts(pool, request, file, place, plan, parts, watcher)


class _Progress(Watcher):
    """A bar on stderr where that is a terminal, else nothing."""

    def __init__(self, total: int, on_unit: Callable[[], None]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.on_unit = on_unit
        columns = (
            TextColumn("refine"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.2f} images/s"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("refine", total=total, rate=0.0)
        self.started, self.count = time.perf_counter(), 0

    def __enter__(self) -> _Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def begun(self, part: int, units: int, done: int) -> str:
        self.bar.advance(self.task, done)
        return ""

    def refined(self, writer: PartWriter, outcome: Outcome) -> None:
        self.count += 1
        self.bar.update(self.task, advance=1, rate=self.count / (time.perf_counter() - self.started))
        self.on_unit()

    def finished(self, part: int, units: int, failed: int | None) -> None:
        if failed is None:  # it was there
            self.bar.advance(self.task, units)


def _merged(
    request: RefineRequest,
    options: Batch,
    file: PredictionFormat,
    place: Place,
    plan: Plan,
    result: Result,
    started: float,
    trainer: list[str] | None,
) -> Result:
    """Put the parts together and write the report."""
    place.prepare()
    with Report(place.scratch) as report:
        for header in put_together(request, file, place, plan, spec_of(request, plan.model)):
            report.add(header)
        result.totals, result.seconds = report.totals, time.perf_counter() - started
        if options.report is not None:
            head = _head(request, options, plan, result)
            if options.ground_truth:
                truth = options.ground_truth
                head["figures"] = figures(request, truth, request.classes, trainer or default_trainer())
            report.write(options.report, head)
    return result


def _head(request: RefineRequest, options: Batch, plan: Plan, result: Result) -> dict[str, Any]:
    return {
        "request": request.model_dump(mode="json"),
        "model": plan.model or get_preset(request.preset).model,
        "model_sha256": plan.model_sha256,
        "device": options.device,
        "seconds": round(result.seconds, 3),
        "images_this_run": result.images,
        "images_per_s": round(result.images / result.seconds, 4) if result.seconds else None,
        "network_s": round(result.busy.seconds, 3),
        "network_busy_share": round(result.busy.seconds / result.seconds, 4) if result.seconds else None,
    }
