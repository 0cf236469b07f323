"""``bpr batch``: refine a prediction file in one process tree, with a progress bar and a report.

What is done is kept beside the result, in ``OUT.bpr-work``, until the result is whole; ``--resume`` goes on there.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpr_service import storage
from bpr_service.errors import ConfigError
from bpr_service.formats import PredictionFormat, Unit
from bpr_service.jobs.loaders import Busy, RefinerPool, RefinerSpec
from bpr_service.jobs.plan import Plan, fingerprint, make_plan, open_file
from bpr_service.jobs.report import Totals, figures, write_report
from bpr_service.jobs.requests import RefineRequest
from bpr_service.jobs.shards import ShardWriter, merge, read_frames, sealed, shard_name
from bpr_service.runtime.model_store import ModelStore


@dataclass(frozen=True)
class Batch:
    """How a batch is run, beside what it refines."""

    device: str = "cpu"
    workers: int = 2
    resume: bool = False
    report: str | None = None
    ground_truth: str | None = None
    classes: int | None = None
    work: str | None = None
    """Where unfinished work is kept; default ``OUT.bpr-work``, which needs a local OUT."""
    keep_batches: bool = False


@dataclass
class Result:
    """Totals, seconds of this run, and how long the network ran in it."""

    totals: Totals
    seconds: float
    images: int
    busy: Busy

    @property
    def exit_code(self) -> int:
        return 1 if self.totals.failed else 0


def run_batch(
    request: RefineRequest,
    options: Batch,
    trainer: list[str] | None = None,
    on_unit: Callable[[], None] = lambda: None,
) -> Result:
    """Refine the whole file; ``on_unit`` is called when a unit is done.

    Raises:
        FormatError, ConfigError, ModelError, NotFoundError: nothing was written.
        ConflictError: ``resume`` of a run that had other inputs or settings.
    """
    if options.ground_truth and request.task == "semantic" and not options.classes:
        raise ConfigError("figures", expected="--classes N with --ground-truth", got="none", fix="pass --classes")
    work = _work_folder(request, options)
    spec = spec_of(request)
    with RefinerPool(spec, device=options.device, workers=options.workers) as pool:
        pool.busy.keep_batches = options.keep_batches
        file = open_file(request)
        if not options.resume:
            shutil.rmtree(work, ignore_errors=True)
        plan = make_plan(request, file, work, fingerprint(request, pool.refiner.card.sha256))
        started = time.perf_counter()
        images = refine_plan(pool, request, file, plan, on_unit)
        totals = Totals()
        for header in merge(file, work, len(plan.shards), plan.units, request.out):
            totals.add(header)
        seconds = time.perf_counter() - started
        result = Result(totals, seconds, images, pool.busy)
        _report(request, options, pool, plan, result, trainer)
    shutil.rmtree(work)
    return result


def spec_of(request: RefineRequest, store: ModelStore | None = None) -> RefinerSpec:
    """The Refiner of a request; NAME@... is fetched from the model store."""
    model = request.model
    if model and "@" in model:
        model = (store or ModelStore()).fetch(model)
    return RefinerSpec(request.preset, model, request.settings)


def _work_folder(request: RefineRequest, options: Batch) -> Path:
    if options.work is None and storage.is_remote(request.out):
        raise ConfigError(
            "a result on object storage",
            expected="--work DIR",
            got="none",
            fix="name a local folder for unfinished work",
        )
    return Path(options.work or f"{request.out.rstrip('/')}.bpr-work")


def refine_plan(
    pool: RefinerPool,
    request: RefineRequest,
    file: PredictionFormat,
    plan: Plan,
    on_unit: Callable[[], None] = lambda: None,
) -> int:
    """Refine what the shards of a plan still lack, all in one stream; returns how many units that was."""
    owner: dict[int, int] = {}
    writers: dict[int, ShardWriter] = {}
    left: dict[int, int] = {}

    def todo() -> Iterator[Unit]:
        for shard in range(len(plan.shards)):
            if sealed(plan.folder / shard_name(shard)):
                continue
            writer = ShardWriter(plan.folder, shard)
            missing = [unit for unit in plan.read(shard) if unit.number not in writer.done]
            if not missing:
                writer.finish()
            else:
                writers[shard], left[shard] = writer, len(missing)
            for unit in missing:
                owner[unit.number] = shard
                yield unit

    count = 0
    try:
        with _progress(plan, pool) as advance:
            for outcome in pool.run(file, todo(), ignore_label=request.ignore_label):
                shard = owner.pop(outcome.number)
                writers[shard].add(outcome)
                left[shard] -= 1
                if not left[shard]:
                    writers.pop(shard).finish()
                count += 1
                advance()
                on_unit()
    finally:
        for writer in writers.values():
            writer.close()
    return count


@contextmanager
def _progress(plan: Plan, pool: RefinerPool) -> Iterator[Any]:
    """A bar on stderr where that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    done = sum(n for i, (_, _, n) in enumerate(plan.shards) if (plan.folder / shard_name(i)).exists())
    columns = (
        TextColumn("refine"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.2f} images/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("refine", total=plan.units, completed=done, rate=0.0)
        started, count = time.perf_counter(), 0

        def advance() -> None:
            nonlocal count
            count += 1
            bar.update(task, advance=1, rate=count / (time.perf_counter() - started))

        yield advance


def _report(
    request: RefineRequest,
    options: Batch,
    pool: RefinerPool,
    plan: Plan,
    result: Result,
    trainer: list[str] | None,
) -> None:
    if options.report is None:
        return
    head: dict[str, Any] = {
        "request": request.model_dump(mode="json"),
        "model": pool.refiner.model,
        "model_sha256": pool.refiner.card.sha256,
        "device": str(pool.refiner.device),
        "seconds": round(result.seconds, 3),
        "images_this_run": result.images,
        "images_per_s": round(result.images / result.seconds, 4) if result.seconds else None,
        "network_s": round(result.busy.seconds, 3),
        "network_busy_share": round(result.busy.seconds / result.seconds, 4) if result.seconds else None,
    }
    if options.ground_truth:
        from bpr_service.jobs.report import default_trainer

        head["figures"] = figures(request, options.ground_truth, options.classes, trainer or default_trainer())
    write_report(options.report, head, result.totals, unit_headers(plan))


def unit_headers(plan: Plan) -> Iterator[dict[str, Any]]:
    """Headers of all units of a finished plan, shard by shard."""
    for shard in range(len(plan.shards)):
        with (plan.folder / shard_name(shard)).open("rb") as journal:
            for frame in read_frames(journal):
                yield frame.header
