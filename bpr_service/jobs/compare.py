"""A new model against the active one, on data that neither was trained on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from bpr_service.errors import CancelledError, ModelError
from bpr_service.jobs.database import JobRow
from bpr_service.jobs.refine import Context
from bpr_service.jobs.report import evaluate_command, read_json
from bpr_service.jobs.requests import RefineRequest
from bpr_service.jobs.trainer import Child
from bpr_service.jobs.training_run import Run

PRIMARY = {"instance": ("boundary_AP", "AP"), "semantic": ("AF", "mIoU"), "panoptic": ("boundary_PQ", "PQ")}
"""The figure that decides a task's promotion: the first of these that was measured."""


def compare(context: Context, row: JobRow, exported: str) -> dict[str, Any]:
    """Measure the new model, the active one and the coarse predictions on the held-out data."""
    run = Run(context, row)
    known = run.read("comparison.json")
    if known is not None:
        return known
    comparison: dict[str, Any] = {"figures": {}, "better": None}
    if run.request.held_out is not None:
        models = {"candidate": exported}
        comparison["active"], models["active"] = run.active()
        comparison["figures"]["coarse"] = _measure(run, "coarse", None)
        for name, model in models.items():
            context.stopping()
            comparison["figures"][name] = _measure(run, name, _refined(run, name, model))
        comparison |= _verdict(comparison["figures"], PRIMARY[run.request.task])
    run.write("comparison.json", comparison)
    return comparison


def _refined(run: Run, name: str, model: str) -> str:
    """The held-out predictions refined by one model."""
    from bpr_service.jobs.batch import Batch, run_batch

    held = run.request.held_out
    assert held is not None
    out = str(run.folder / f"held_out_{name}") + (".json" if run.request.task == "instance" else "")
    request = RefineRequest(
        task=run.request.task,
        images=held.images,
        predictions=held.predictions,
        dataset=held.ground_truth if run.request.task == "instance" else None,
        format=held.format,
        panoptic_dir=held.panoptic_dir,
        out=out,
        preset=run.request.preset,
        model=model,
    )
    options = Batch(device=run.context.device, workers=run.context.workers, resume=True)
    run_batch(request, options, on_unit=_between_units(run))
    return out


def _between_units(run: Run) -> Callable[[], None]:
    """Signs of life; notices a cancellation and the worker's end."""
    context, last = run.context, 0.0

    def on_unit() -> None:
        nonlocal last
        context.alive()
        context.stopping()
        if time.monotonic() - last >= context.settings.poll_s:
            last = time.monotonic()
            if context.cancelled(run.row):
                raise CancelledError(f"job {run.row.id} was cancelled")

    return on_unit


def _measure(run: Run, name: str, refined: str | None) -> dict[str, Any]:
    """Figures of the held-out predictions, or of what a model made of them."""
    held = run.request.held_out
    assert held is not None
    request = RefineRequest(
        task=run.request.task,
        images=held.images,
        predictions=held.predictions,
        panoptic_dir=held.panoptic_dir,
        out=refined or "",
    )
    arguments = evaluate_command(request, held.ground_truth, refined or held.predictions, held.classes)
    output = run.folder / f"figures_{name}.json"
    # Exit code 1: something could not be measured and was left out; the figures name it.
    Child(run, [*run.trainer, "evaluate", *arguments], output=output, accept=(0, 1)).wait()
    figures = read_json(output.read_text())
    if "error" in figures:
        raise ModelError("the model could not be measured", got=str(figures["error"]), fix="see the job's log")
    return figures


def _verdict(figures: Mapping[str, Mapping[str, Any]], measures: tuple[str, ...]) -> dict[str, Any]:
    """Whether the candidate's primary figure is better than the active model's."""
    new, old = figures["candidate"], figures["active"]
    for measure in measures:
        a, b = _number(new, measure), _number(old, measure)
        if a is not None and b is not None:
            return {"measure": measure, "candidate_figure": a, "before_figure": b, "better": a > b}
    return {"measure": None, "better": None}


def _number(figures: Mapping[str, Any], measure: str) -> float | None:
    value = figures.get(measure)
    return float(value) if isinstance(value, int | float) else None
