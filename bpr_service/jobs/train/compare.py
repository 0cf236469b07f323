"""A new model against the active one, on data that neither was trained on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from bpr_service.errors import CancelledError, ModelError
from bpr_service.jobs.context import Context
from bpr_service.jobs.refine.report import evaluate_command, read_json
from bpr_service.jobs.requests import RefineRequest
from bpr_service.jobs.tables import JobRow
from bpr_service.jobs.train.trainer import Child
from bpr_service.jobs.train.training_files import TrainingFiles

PRIMARY = {"instance": ("boundary_AP", "AP"), "semantic": ("AF", "mIoU"), "panoptic": ("boundary_PQ", "PQ")}
"""The figure that decides a task's promotion: the first of these that was measured."""


def compare(context: Context, row: JobRow, exported: str) -> dict[str, Any]:
    """Measure the new model, the active one and the coarse predictions on the held-out data."""
    files = TrainingFiles(context, row)
    known = files.read("comparison.json")
    if known is not None:
        return known
    comparison: dict[str, Any] = {"figures": {}, "better": None}
    if files.request.held_out is not None:
        models = {"candidate": exported}
        comparison["active"], models["active"] = files.active()
        comparison["figures"]["coarse"] = _measure(files, "coarse", None)
        for name, model in models.items():
            context.stopping()
            comparison["figures"][name] = _measure(files, name, _refined(files, name, model))
        comparison |= _verdict(comparison["figures"], PRIMARY[files.request.task])
    files.write("comparison.json", comparison)
    return comparison


def _refined(files: TrainingFiles, name: str, model: str) -> str:
    """The held-out predictions refined by one model."""
    from bpr_service.jobs.refine.batch import Batch, run_batch

    held = files.request.held_out
    assert held is not None
    out = str(files.folder / f"held_out_{name}") + (".json" if files.request.task == "instance" else "")
    request = RefineRequest(
        task=files.request.task,
        images=held.images,
        predictions=held.predictions,
        dataset=held.ground_truth if files.request.task == "instance" else None,
        format=held.format,
        panoptic_dir=held.panoptic_dir,
        out=out,
        preset=files.request.preset,
        model=model,
    )
    options = Batch(device=files.context.device, workers=files.context.workers, resume=True)
    run_batch(request, options, on_unit=_between_units(files))
    return out


def _between_units(files: TrainingFiles) -> Callable[[], None]:
    """Signs of life; notices a cancellation and the worker's end."""
    context, last = files.context, 0.0

    def on_unit() -> None:
        nonlocal last
        context.alive()
        context.stopping()
        if time.monotonic() - last >= context.settings.poll_s:
            last = time.monotonic()
            if context.cancelled(files.row):
                raise CancelledError(f"job {files.row.id} was cancelled")

    return on_unit


def _measure(files: TrainingFiles, name: str, refined: str | None) -> dict[str, Any]:
    """Figures of the held-out predictions, or of what a model made of them."""
    held = files.request.held_out
    assert held is not None
    request = RefineRequest(
        task=files.request.task,
        images=held.images,
        predictions=held.predictions,
        panoptic_dir=held.panoptic_dir,
        out=refined or "",
    )
    arguments = evaluate_command(request, held.ground_truth, refined or held.predictions, held.classes)
    output = files.folder / f"figures_{name}.json"
    # Exit code 1: something could not be measured and was left out; the figures name it.
    Child(files, [*files.trainer, "evaluate", *arguments], output=output, accept=(0, 1)).wait()
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
