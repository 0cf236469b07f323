"""Evaluate panoptic segmentations: COCO panoptic JSON and PNGs, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bpr_service.errors import FormatError, InputError
from bpr_service.masks.mask import Mask
from refiner_training.data.coco import ImageId
from refiner_training.data.label_masks import masks_of
from refiner_training.data.panoptic import PanopticFile, read_panoptic, read_segments
from refiner_training.evaluation.common import Crop, Evaluation, Example, Failure, in_parallel
from refiner_training.evaluation.pictures import cut, find_images
from refiner_training.metrics.boundary import boundary_distance_px
from refiner_training.metrics.change import TripleRow, collect, measure_triple
from refiner_training.metrics.panoptic import SegmentOverlaps, Tally, measure_segments, tally

SERIAL_BELOW = 150  # images


@dataclass(frozen=True, slots=True)
class _Measured:
    """One image in numbers; the lists hold after, then before."""

    tallies: list[tuple[Tally, Tally]]  # by mask IoU, by boundary IoU
    objects: list[tuple[tuple[int, int, int], int, TripleRow]]  # positions: truth, after, before; area; row


def evaluate(
    dataset: Path | str,
    panoptic_dir: Path | str,
    predictions: Path | str,
    predictions_dir: Path | str,
    *,
    before: Path | str | None = None,
    before_dir: Path | str | None = None,
    images: Path | str | None = None,
    boundary_ratio: float = 0.02,
    workers: int | None = None,
) -> Evaluation:
    """Measure COCO panoptic predictions against COCO panoptic ground truth.

    Args:
        dataset: JSON of the ground truth.
        panoptic_dir: folder of its PNGs.
        predictions: JSON of the predictions.
        predictions_dir: folder of its PNGs.
        before: JSON of the coarse predictions that `predictions` were refined from.
        before_dir: folder of its PNGs; by default `before` without its ending.
        images: folder of the images, for the pictures of a report only.
        boundary_ratio: boundary IoU's d as a share of the image diagonal: 0.02 COCO, 0.005 Cityscapes.
        workers: processes, default one a processor.

    For ``change`` a coarse segment belongs to the true one it matches by PQ's rule; its refined segment has
    the same id and category, else it is the segment of that category with most overlap.

    Raises:
        FormatError: see :func:`refiner_training.data.panoptic.read_panoptic`; nothing is measured then.
    """
    truth = read_panoptic(dataset, panoptic_dir)
    files = [read_panoptic(predictions, predictions_dir, truth)]
    if before is not None:
        files.append(read_panoptic(before, before_dir or Path(before).with_suffix(""), truth))
    names = {i: truth.images.get(i) or Path(truth.png(i)).with_suffix(".jpg").name for i in truth.annotations}
    folder = find_images(images, names.values(), truth.path)
    ids = list(truth.annotations)
    outcomes = list(
        in_parallel(
            partial(_measure, truth, files, boundary_ratio),
            ids,
            workers=workers,
            label="segment maps",
            serial_below=SERIAL_BELOW,
            preload=__name__,
        )
    )
    measured = {i: o for i, o in zip(ids, outcomes, strict=True) if isinstance(o, _Measured)}
    failures = [o for o in outcomes if isinstance(o, Failure)]
    if not measured:
        raise FormatError(
            f"{truth.path}", expected="at least one image that can be measured", got=failures[0].error,
            fix="check the PNGs against their JSON",
        )  # fmt: skip
    tables = [_summarise(truth, list(measured.values()), side) for side in range(len(files))]
    summary = tables[0][0] | {"boundary_ratio": boundary_ratio, "images": len(measured)}
    if before is not None:
        rows = [row for m in measured.values() for _, _, row in m.objects]
        if not rows:
            raise FormatError(
                f"{before}", expected="coarse segments that match the truth, IoU > 0.5", got="no match at all",
                fix="check that both files speak of this data set, and their category ids",
            )  # fmt: skip
        summary["before"] = tables[1][0]
        summary["change"] = collect(rows)["summary"]
    return Evaluation(
        task="panoptic",
        summary=summary,
        per_class=tables[0][1],
        per_class_before=tables[1][1] if before is not None else None,
        examples=_examples(truth, measured, names, paired=before is not None),
        failures=failures,
        crop=partial(_crop, truth, files, folder, names),
        inputs={"dataset": str(dataset), "predictions": str(predictions)}
        | ({"before": str(before)} if before is not None else {}),
    )


def _measure(
    truth: PanopticFile, files: Sequence[PanopticFile], boundary_ratio: float, image_id: ImageId
) -> _Measured | Failure:
    try:
        true_map = read_segments(truth, image_id)
        maps = [read_segments(file, image_id) for file in files]
    except InputError as error:
        return Failure(str(truth.path), f"image_id {image_id!r}", str(error))
    truths = truth.annotations[image_id]["segments_info"]
    infos = [file.annotations[image_id]["segments_info"] for file in files]
    height, width = true_map.shape
    distance = boundary_distance_px(height, width, boundary_ratio)
    overlaps = [
        measure_segments(true_map, m, len(truths), len(info), distance) for m, info in zip(maps, infos, strict=True)
    ]
    tallies = [
        (tally(o, truths, info), tally(o, truths, info, boundary=True)) for o, info in zip(overlaps, infos, strict=True)
    ]
    for m in maps:
        m[true_map < 0] = -1  # void is right whatever was predicted there
    true_masks = masks_of(true_map, len(truths))
    masks = [masks_of(m, len(info)) for m, info in zip(maps, infos, strict=True)]
    objects = []
    for g, after, coarse in _triples(overlaps, truths, infos):
        if len(files) == 2:
            refined = masks[0][after] if after >= 0 else _empty(true_masks[g])
            row = measure_triple(masks[1][coarse], refined, true_masks[g], boundary_ratio=boundary_ratio)
        else:
            row = (0.0,) * 5 + (float(overlaps[0].iou()[g, after]),) + (0.0,) * 4
        objects.append(((g, after, coarse), true_masks[g].area, row))
    return _Measured(tallies, objects)


def _triples(
    overlaps: Sequence[SegmentOverlaps], truths: Sequence[Any], infos: Sequence[Sequence[Any]]
) -> list[tuple[int, int, int]]:
    """Pair positions: true segment, refined segment (-1 when it vanished), coarse segment (-1 without one)."""
    iou = overlaps[-1].iou()
    after_iou = overlaps[0].iou()
    triples = []
    for g, truth in enumerate(truths):
        if truth.get("iscrowd", 0):
            continue
        for p, info in enumerate(infos[-1]):
            if iou[g, p] <= 0.5 or info["category_id"] != truth["category_id"]:
                continue
            if len(infos) == 1:
                triples.append((g, p, -1))
                continue
            alike = [a for a, i in enumerate(infos[0]) if i["category_id"] == info["category_id"]]
            same = [a for a in alike if infos[0][a]["id"] == info["id"]]
            best = max(alike, key=lambda a: after_iou[g, a], default=-1)
            triples.append((g, same[0] if same else best, p))
    return triples


def _empty(like: Mask) -> Mask:
    return Mask(like.height, like.width, 0, 0, np.zeros((0, 0), np.uint8))


def _summarise(
    truth: PanopticFile, measured: Sequence[_Measured], side: int
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    mask, boundary = Tally(), Tally()
    for m in measured:
        mask.merge(m.tallies[side][0])
        boundary.merge(m.tallies[side][1])
    overall: dict[str, Any] = {}
    things = [c for c, category in truth.categories.items() if category.is_thing]
    stuff = [c for c in truth.categories if c not in things]
    for prefix, counted in (("", mask), ("boundary_", boundary)):
        for suffix, members in (("", list(truth.categories)), ("_things", things), ("_stuff", stuff)):
            mean = counted.mean(members)
            overall |= {f"{prefix}{name}{suffix}": value for name, value in mean.items()}
    rows, tight = mask.per_class(), boundary.per_class()
    per_class = {
        truth.categories[c].name: {
            **row,
            **{f"boundary_{name}": value for name, value in tight.get(c, dict.fromkeys(row, 0.0)).items()},
            "TP": mask.counts[c][0],
            "FP": mask.counts[c][1],
            "FN": mask.counts[c][2],
        }
        for c, row in rows.items()
    }
    return overall, per_class


def _examples(
    truth: PanopticFile, measured: dict[ImageId, _Measured], names: dict[ImageId, str], paired: bool
) -> list[Example]:
    examples = []
    for image_id, m in measured.items():
        segments = truth.annotations[image_id]["segments_info"]
        for key, area, row in m.objects:
            name = truth.categories[segments[key[0]]["category_id"]].name
            examples.append(Example(name, names[image_id], row[0] if paired else None, row[5], area, (image_id, *key)))
    return examples


def _crop(
    truth: PanopticFile,
    files: Sequence[PanopticFile],
    folder: Path | None,
    names: dict[ImageId, str],
    example: Example,
) -> Crop:
    image_id, *positions = example.key
    maps = [read_segments(file, image_id) for file in (truth, *files)]
    masks = [Mask.from_array(m == p) if p >= 0 else None for m, p in zip(maps, positions, strict=False)]
    true_mask = masks[0]
    assert true_mask is not None  # a triple always has its true segment
    return cut(
        folder / names[image_id] if folder is not None else None,
        true_mask,
        masks[1] or _empty(true_mask),
        masks[2] if len(masks) == 3 else None,
    )
