"""Evaluate instance masks: COCO or LVIS annotations against results, before and after.

The masks of an image are decoded when it is its turn and dropped after; what stays are numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bpr_service.errors import FormatError
from refiner_training.data.coco import CocoDataset, ImageId, read_dataset, read_results
from refiner_training.evaluation.common import Crop, Evaluation, Example, in_parallel
from refiner_training.evaluation.instance_image import Entry, ImageJob, Measured, Settings, Triple, measure
from refiner_training.evaluation.lvis import ap_by_frequency, on_coco_ids
from refiner_training.evaluation.pictures import cut, find_images
from refiner_training.metrics.change import collect
from refiner_training.metrics.instance import AF_TOLERANCE_PX, InstanceScores, score

SERIAL_BELOW = 400  # images
MAX_DETECTIONS, MAX_DETECTIONS_LVIS = 100, 300
BOUNDED = ("AP", "boundary_AP", "AF")
"""What is told of an upper bound."""


@dataclass(slots=True)
class _Results:
    """One file of results, its entries grouped by image."""

    path: Path
    entries: list[Entry]
    by_image: dict[ImageId, list[int]]


def evaluate(
    dataset: Path | str,
    predictions: Path | str,
    *,
    before: Path | str | None = None,
    images: Path | str | None = None,
    boundary_ratio: float = 0.02,
    upper_bounds: Sequence[int] = (),
    coco_ids: bool = False,
    workers: int | None = None,
) -> Evaluation:
    """Measure results in COCO's format against COCO or LVIS annotations.

    Args:
        dataset: annotation file.
        predictions: results file.
        before: the coarse results that `predictions` were refined from.
        images: folder of the images, for the pictures of a report only.
        boundary_ratio: boundary IoU's d as a share of the image diagonal: 0.02 COCO, LVIS; 0.005 Cityscapes.
        upper_bounds: px; also measure the predictions with the truth so near their own boundary (the paper's Table 1).
        coco_ids: the truth is LVIS' and the results have COCO's category ids (AP*).
        workers: processes, default one a processor.

    A coarse mask belongs to the annotation its key ``gt`` names, else to the one of its category it overlaps
    most, over IoU 0.5. Its refined mask is the entry at the same place when both files have the same images
    and categories in the same order, else the one with the same ``gt``, else the best overlap.

    Raises:
        FormatError: a file that cannot be read or an entry that does not fit, before anything is measured.
    """
    truth = on_coco_ids(read_dataset(dataset)) if coco_ids else read_dataset(dataset)
    files = [_results(predictions, truth)] + ([_results(before, truth)] if before is not None else [])
    folder = find_images(images, [truth.file_name(i) for i in truth.images], truth.path)
    settings = Settings(
        files=(str(truth.path), *(str(file.path) for file in files)),
        boundary_ratio=boundary_ratio,
        max_detections=MAX_DETECTIONS_LVIS if truth.lvis else MAX_DETECTIONS,
        upper_bounds=tuple(upper_bounds),
        aligned=len(files) == 2 and _aligned(files[0].entries, files[1].entries),
    )
    measured = list(
        in_parallel(
            partial(measure, settings),
            _jobs(truth, files),
            workers=workers,
            label="masks",
            serial_below=SERIAL_BELOW,
            preload=measure.__module__,
        )
    )

    scores = [_score(truth, measured, side) for side in range(len(files))]
    by_class = [each.per_class() for each in scores]
    summary = scores[0].summary() | ap_by_frequency(truth, by_class[0])
    summary |= {
        "boundary_ratio": boundary_ratio,
        "images": len(truth.images),
        "annotations": len(truth.annotations),
        "predictions": len(files[0].entries),
        "matched": len(scores[0].pairs),
    }
    if before is not None:
        summary["before"] = scores[1].summary() | ap_by_frequency(truth, by_class[1])
        summary["before"]["predictions"] = len(files[1].entries)
        summary["change"] = _change(measured, files)
    for side, distance in enumerate(upper_bounds, start=len(files)):
        bound = _score(truth, measured, side).summary()
        summary |= {f"{name}_upper_bound_{distance}px": bound[name] for name in BOUNDED}
    names = truth.categories
    tables = [{names[c]: row for c, row in rows.items() if row["AP"] is not None} for rows in by_class]
    return Evaluation(
        task="instance",
        summary=summary,
        per_class=tables[0],
        per_class_before=tables[1] if before is not None else None,
        examples=_examples(truth, measured, scores[0], paired=before is not None),
        failures=[failure for m in measured for failure in m.failures],
        crop=partial(_crop, truth, files, folder),
        inputs={"dataset": str(dataset), "predictions": str(predictions)}
        | ({"before": str(before)} if before is not None else {}),
    )


def _results(path: Path | str, truth: CocoDataset) -> _Results:
    """Read results; for LVIS keep the 300 best of an image, as its rules say."""
    entries = read_results(path, truth)
    by_image: dict[ImageId, list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        by_image[entry["image_id"]].append(index)
    if truth.lvis:
        for image, found in by_image.items():
            best = sorted(found, key=lambda i: -entries[i]["score"])[:MAX_DETECTIONS_LVIS]
            by_image[image] = sorted(best)
    return _Results(Path(path), entries, by_image)


def _jobs(truth: CocoDataset, files: Sequence[_Results]) -> list[ImageJob]:
    annotations: dict[ImageId, list[int]] = defaultdict(list)
    for index, annotation in enumerate(truth.annotations):
        annotations[annotation["image_id"]].append(index)
    return [
        ImageJob(
            ordinal,
            *truth.size(image_id),
            truths=[(i, truth.annotations[i]) for i in annotations.get(image_id, ())],
            sides=[[(i, f.entries[i]) for i in f.by_image.get(image_id, ())] for f in files],
        )
        for ordinal, image_id in enumerate(truth.images)
    ]


def _aligned(after: Sequence[Entry], before: Sequence[Entry]) -> bool:
    """Say whether two files list the same objects in the same order, as refined results do."""
    keys = ("image_id", "category_id", "gt")
    return len(after) == len(before) and all(
        [a.get(k) for k in keys] == [b.get(k) for k in keys] for a, b in zip(after, before, strict=True)
    )


def _score(truth: CocoDataset, measured: Sequence[Measured], side: int) -> InstanceScores:
    keys = ("neg_category_ids", "not_exhaustive_category_ids")
    images = [
        {"id": n, "height": i["height"], "width": i["width"]} | {k: i[k] for k in keys if k in i}
        for n, i in enumerate(truth.images.values())
    ]
    return score(
        [cell for m in measured for cell in m.cells[side]],
        [t for m in measured for t in m.truths],
        [d for m in measured for d in m.detections[side]],
        images=images,
        categories=[{"id": c, "name": name} for c, name in truth.categories.items()],
        max_detections=MAX_DETECTIONS_LVIS if truth.lvis else MAX_DETECTIONS,
        lvis=truth.lvis,
    )


def _change(measured: Sequence[Measured], files: Sequence[_Results]) -> dict[str, Any]:
    rows = [row for m in measured for _, row in m.triples]
    if not rows:
        raise FormatError(
            f"{files[1].path} and {files[0].path}",
            expected="coarse masks that match annotations: by the key gt, or IoU > 0.5 within a category",
            got="no match at all",
            fix="check that both files speak of this data set, and their category ids",
        )
    summary: dict[str, Any] = collect(rows, AF_TOLERANCE_PX)["summary"]
    return summary


def _examples(truth: CocoDataset, measured: Sequence[Measured], scores: InstanceScores, paired: bool) -> list[Example]:
    found: list[tuple[Triple, float | None, float]] = (
        [(triple, row[0], row[5]) for m in measured for triple, row in m.triples]
        if paired
        else [((g, d, -1), None, iou) for d, g, iou in scores.pairs]
    )
    areas = {t.index: t.area for m in measured for t in m.truths}
    examples = []
    for key, iou_before, iou_after in found:
        annotation = truth.annotations[key[0]]
        name = truth.categories[annotation["category_id"]]
        image = truth.file_name(annotation["image_id"])
        examples.append(Example(name, image, iou_before, iou_after, int(areas[key[0]]), key))
    return examples


def _crop(truth: CocoDataset, files: Sequence[_Results], folder: Path | None, example: Example) -> Crop:
    g, after, coarse = example.key
    annotation = truth.annotations[g]
    path = folder / truth.file_name(annotation["image_id"]) if folder is not None else None
    return cut(
        path,
        truth.mask(annotation),
        truth.mask(files[0].entries[after]),
        truth.mask(files[1].entries[coarse]) if coarse >= 0 else None,
    )
