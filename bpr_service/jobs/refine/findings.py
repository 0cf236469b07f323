"""Finished parts of an audit become its report and its page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bpr_service.audit.page.build import write_page
from bpr_service.audit.ranking import Ranking
from bpr_service.audit.report import Findings, Summary, write_report
from bpr_service.audit.sample import draw, told
from bpr_service.audit.suspicion import judge_of
from bpr_service.config import MAX_PIXELS
from bpr_service.formats import PredictionFormat, Unit
from bpr_service.formats.records.record_file import RecordFile
from bpr_service.jobs.refine.merge import frames
from bpr_service.jobs.refine.place import Place
from bpr_service.jobs.refine.plan import Plan, unit_counts
from bpr_service.jobs.refine.unit import FOUND, MEASURED
from bpr_service.jobs.requests import AuditRequest, RefineRequest, digest
from bpr_service.network.weights import ModelCard

OPTIONAL = ("dataset", "panoptic_dir", "ignore_label")
"""Fields of a request that the report names where they were given: the annotations are read again by them."""


def write_audit(
    request: AuditRequest, file: PredictionFormat, place: Place, plan: Plan, card: ModelCard, named: RefineRequest
) -> Iterator[dict[str, Any]]:
    """Write the report, and the page where the request has one; yields every unit's header.

    Args:
        request: what was audited.
        file: its annotations.
        place: where the parts lie.
        plan: which parts there are.
        card: of the model that audited.
        named: the request with its files as the report and the page are to name them.

    Raises:
        ConflictError: a part is missing, damaged, or of another plan.
        ModelError: the model cannot audit.
        StorageError: the place or the report's storage refuses.
    """
    judge, findings, seen = judge_of(card), Findings(), set[str]()
    with Ranking(place.scratch) as ranking:
        for frame in frames(place, plan):
            files = dict(frame.files())
            if MEASURED in files:
                ranking.add(files[FOUND], files[MEASURED])
            findings.add_unit(frame.header)
            seen.add(frame.header["image"])
            yield frame.header
        findings.add_pictures(request.images, seen)
        ranking.judge(judge)
        categories = _categories(file)
        head: dict[str, Any] = {
            "task": request.task,
            "images": named.images,
            "annotations": named.predictions,
            "format": file.name,
            **{key: value for key in OPTIONAL if (value := getattr(named, key)) is not None},
            "model": f"{card.name}@{card.version}",
            "model_sha256": plan.model_sha256,
        }
        drawn = draw(ranking.suspicion, request.sample) if request.sample else None
        if drawn is not None:
            head["sample"] = told(drawn, [ranking.row(index)["key"] for index in drawn.indices.tolist()])
        write_report(request.out, head, findings, ranking, Summary(categories))
        if request.page_out is not None:
            shown = ranking.order[: request.page_masks]
            if drawn is not None:
                shown = np.concatenate([shown, np.setdiff1d(drawn.indices, shown)])
            page_head = {
                "id": digest(plan.mark, request.out)[:16],
                "title": f"{len(shown)} of {len(ranking)} masks of {named.predictions.rsplit('/', 1)[-1]}",
                "images": named.images,
                "annotations": named.predictions,
                "categories": categories,
            }
            write_page(
                request.page_out, ranking, shown, file, lambda numbers: _units(plan, place, numbers), page_head,
                sampled=set(drawn.indices.tolist()) if drawn is not None else (), max_pixels=MAX_PIXELS,
                ignore_label=request.ignore_label, folder=place.scratch,
            )  # fmt: skip


def _categories(file: PredictionFormat) -> dict[Any, str]:
    """Names by id, of the annotations or of their data set; none where neither has them."""
    records = getattr(file, "file", None)
    known = records.found_head().categories if isinstance(records, RecordFile) else {}
    if known or file.paths.dataset is None:
        return known
    return RecordFile(file.paths.dataset, "images", "an annotation file with an 'images' array").found_head().categories


def _units(plan: Plan, place: Place, numbers: set[int]) -> Iterator[Unit]:
    """The units of these numbers, in the order of the plan; parts without any are not read."""
    for part, first, count in unit_counts(plan, place):
        if not numbers.isdisjoint(range(first, first + count)):
            yield from (unit for unit in plan.read(place, part) if unit.number in numbers)
