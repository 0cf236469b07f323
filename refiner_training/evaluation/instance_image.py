"""Measure the instances of one image: the part of the work that runs in parallel.

A job carries all it needs, and its outcome only numbers, so that both travel between processes cheaply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bpr_service.errors import InputError
from bpr_service.masks.mask import Mask, as_mask
from bpr_service.masks.polygons import check_polygons
from refiner_training.evaluation.common import Failure
from refiner_training.metrics.change import TripleRow, measure_triple
from refiner_training.metrics.instance import Cell, Matchable, measure_image
from refiner_training.metrics.upper_bound import with_true_band

Entry = dict[str, Any]
Triple = tuple[int, int, int]  # indices of annotation, prediction, coarse prediction


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for all images."""

    files: tuple[str, ...]  # ground truth, predictions, and the coarse predictions when there are any
    boundary_ratio: float
    max_detections: int
    upper_bounds: tuple[int, ...]  # px: widths of the band that gets the truth, see metrics.upper_bound
    aligned: bool  # predictions and coarse predictions list the same objects in the same order


@dataclass(frozen=True, slots=True)
class ImageJob:
    """One image: its size in px and its entries with their indices; `sides` holds after, then before."""

    ordinal: int
    height: int
    width: int
    truths: list[tuple[int, Entry]]
    sides: list[list[tuple[int, Entry]]]


@dataclass(slots=True)
class Measured:
    """What is left of one image when its masks are dropped."""

    truths: list[Matchable] = field(default_factory=list)
    detections: list[list[Matchable]] = field(default_factory=list)
    cells: list[list[Cell]] = field(default_factory=list)
    triples: list[tuple[Triple, TripleRow]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def measure(settings: Settings, job: ImageJob) -> Measured:
    """Decode and measure the masks of one image; a mask that cannot be decoded is left out and named."""
    out = Measured()
    truths = _decode(job, job.truths, settings.files[0], True, out)
    out.truths = [instance for instance, _ in truths]
    sides: list[dict[int, Mask]] = []
    for entries, file in zip(job.sides, settings.files[1:], strict=True):
        found = _decode(job, entries, file, False, out)
        out.detections.append([instance for instance, _ in found])
        out.cells.append(
            measure_image(
                truths,
                found,
                boundary_ratio=settings.boundary_ratio,
                max_detections=settings.max_detections,
            )
        )
        sides.append({instance.index: mask for instance, mask in found})
    masks = {instance.index: mask for instance, mask in truths}
    for distance in settings.upper_bounds:
        _measure_bound(settings, truths, sides[0], distance, out)
    if len(sides) == 2:
        for triple in _triples(settings, job, out):
            g, after, coarse = triple
            if g in masks and after in sides[0] and coarse in sides[1]:
                row = measure_triple(
                    sides[1][coarse], sides[0][after], masks[g], boundary_ratio=settings.boundary_ratio
                )
                out.triples.append((triple, row))
    return out


def _measure_bound(
    settings: Settings, truths: list[tuple[Matchable, Mask]], found: dict[int, Mask], distance_px: int, out: Measured
) -> None:
    """Measure the predictions once more, those over IoU 0.5 of an annotation with its pixels along their boundary."""
    masks = {instance.index: mask for instance, mask in truths}
    best = _best(out.cells[0], by_detection=True)
    bounded = []
    for instance in out.detections[0]:
        mask = found[instance.index]
        g, iou = best.get(instance.index, (-1, 0.0))
        if iou > 0.5:
            mask = with_true_band(mask, masks[g], distance_px)
        bounded.append((replace(instance, area=float(mask.area)), mask))
    out.detections.append([instance for instance, _ in bounded])
    out.cells.append(
        measure_image(truths, bounded, boundary_ratio=settings.boundary_ratio, max_detections=settings.max_detections)
    )


def _decode(
    job: ImageJob, entries: Sequence[tuple[int, Entry]], file: str, is_truth: bool, out: Measured
) -> list[tuple[Matchable, Mask]]:
    found = []
    for index, entry in entries:
        try:
            mask = _mask(entry["segmentation"], job.height, job.width)
        except InputError as error:
            out.failures.append(Failure(file, f"{index} (image_id {entry['image_id']})", str(error)))
            continue
        area = float(entry.get("area", mask.area)) if is_truth else float(mask.area)
        crowd = is_truth and bool(entry.get("iscrowd", 0))
        value = 1.0 if is_truth else float(entry["score"])
        found.append((Matchable(index, job.ordinal, entry["category_id"], area, value, crowd), mask))
    return found


def _mask(segmentation: Any, height: int, width: int) -> Mask:
    """Decode a segmentation; polygons by way of pycocotools' runs, which takes half the time of drawing them."""
    if isinstance(segmentation, list):
        from pycocotools import mask as coco

        parts = [part.tolist() for part in check_polygons(segmentation, height, width)]
        segmentation = coco.merge(coco.frPyObjects(parts, height, width))
    return as_mask(segmentation, height, width)


def _triples(settings: Settings, job: ImageJob, out: Measured) -> list[Triple]:
    """Pair the image's coarse masks with their annotations and their refined masks, by index."""
    truths = dict(job.truths)
    place = {entry.get("id"): index for index, entry in job.truths}
    best_truth = _best(out.cells[1], by_detection=True)
    best_after = _best(out.cells[0], by_detection=False)
    by_key = {entry["gt"]: index for index, entry in job.sides[0] if "gt" in entry}
    triples = []
    for coarse, entry in job.sides[1]:
        g, iou = (place[entry["gt"]], 1.0) if "gt" in entry else best_truth.get(coarse, (-1, 0.0))
        if iou <= 0.5 or truths[g].get("iscrowd", 0):
            continue
        after = by_key.get(truths[g].get("id"), best_after.get(g, (-1, 0.0))[0])
        if settings.aligned:
            after = coarse
        if after >= 0:
            triples.append((g, after, coarse))
    return triples


def _best(cells: Sequence[Cell], by_detection: bool) -> dict[int, tuple[int, float]]:
    """Give each detection's best true instance (no crowd), or each true instance's best detection."""
    best: dict[int, tuple[int, float]] = {}
    for cell in cells:
        iou = np.where([t.crowd for t in cell.truths], 0.0, cell.iou)
        rows, columns = cell.detections, cell.truths
        if not by_detection:
            iou, rows, columns = iou.T, columns, rows
        for r, c in enumerate(iou.argmax(axis=1)):
            if iou[r, c] > 0:
                best[rows[r].index] = (columns[c].index, float(iou[r, c]))
    return best
