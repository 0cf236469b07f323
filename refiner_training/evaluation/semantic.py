"""Evaluate label maps: folders of PNGs of the same names, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import FormatError, InputError
from bpr_service.masks.mask import Mask, read_label_map
from refiner_training.data.label_masks import compact, masks_of
from refiner_training.data.label_pngs import match_label_pngs
from refiner_training.evaluation.common import Crop, Evaluation, Example, Failure, in_parallel
from refiner_training.evaluation.pictures import cut, find_by_stem
from refiner_training.metrics.boundary import f_tolerance_px, mask_iou
from refiner_training.metrics.change import TripleRow, collect, measure_triple
from refiner_training.metrics.semantic import class_f, confusion, summarise

SERIAL_BELOW = 150  # images


@dataclass(frozen=True, slots=True)
class _Settings:
    classes: int
    ignore_label: int
    boundary_ratio: float
    boundary_px: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Measured:
    """One image in numbers; the lists hold after, then before."""

    name: str
    tolerance_px: int
    counts: list[NDArray[np.int64]]  # (C, C + 1)
    f: list[NDArray[np.float64]]  # (C,)
    f_px: list[NDArray[np.float64]]  # (T, C), T tolerances of the settings
    present: list[NDArray[np.bool_]]  # (C,)
    objects: list[tuple[int, int, TripleRow]]  # class, true area, and what measure_triple says


def evaluate(
    labels: Path | str,
    predictions: Path | str,
    classes: int,
    *,
    before: Path | str | None = None,
    images: Path | str | None = None,
    ignore_label: int = 255,
    boundary_ratio: float = 0.02,
    boundary_px: Sequence[int] = (),
    workers: int | None = None,
) -> Evaluation:
    """Measure a folder of predicted label PNGs against a folder of true ones of the same names.

    Args:
        labels: folder of one-channel PNGs, values 0 to ``classes - 1``.
        predictions: the same of the predictions.
        classes: how many there are.
        before: the coarse label PNGs that `predictions` were refined from.
        images: folder of the images, for the pictures of a report only.
        ignore_label: pixels whose true label this is are not measured; a predicted one is "no class".
        boundary_ratio: boundary IoU's d as a share of the diagonal, for ``change`` only.
        boundary_px: tolerances in px of boundary F that are measured beside AF's own, as 12, 9, 5, 3.
        workers: processes, default one a processor.

    Raises:
        FormatError: a label map without a prediction, a prediction of another size or of no label map,
            before anything is measured.
    """
    folders = [Path(p) for p in (labels, predictions, before) if p is not None]
    names = match_label_pngs(folders)
    pictures = find_by_stem(images, names, folders[0])
    settings = _Settings(classes, ignore_label, boundary_ratio, tuple(boundary_px))
    outcomes = list(
        in_parallel(
            partial(_measure, settings, folders),
            names,
            workers=workers,
            label="label maps",
            serial_below=SERIAL_BELOW,
            preload=__name__,
        )
    )
    failures = [o for o in outcomes if isinstance(o, Failure)]
    measured = [o for o in outcomes if isinstance(o, _Measured)]
    if not measured:
        raise FormatError(
            f"{folders[0]}",
            expected="at least one label map that can be measured",
            got=f"{len(failures)} that cannot: {failures[0].error}",
            fix="check the files, --classes and --ignore-label",
        )
    tables = [_summarise(measured, side, settings.boundary_px) for side in range(len(folders) - 1)]
    tolerances = sorted({m.tolerance_px for m in measured})
    summary: dict[str, Any] = tables[0][0]
    summary |= {
        "AF_threshold_px": tolerances[-1],
        "AF_threshold_px_least": tolerances[0],
        "classes": classes,
        "images": len(measured),
    }
    if before is not None:
        summary["before"] = tables[1][0] | {"AF_threshold_px": tolerances[-1]}
        summary["change"] = collect([row for m in measured for _, _, row in m.objects])["summary"]
    return Evaluation(
        task="semantic",
        summary=summary,
        per_class=tables[0][1],
        per_class_before=tables[1][1] if before is not None else None,
        examples=_examples(measured, paired=before is not None),
        failures=failures,
        crop=partial(_crop, settings, folders, pictures),
        inputs={"labels": str(labels), "predictions": str(predictions)}
        | ({"before": str(before)} if before is not None else {}),
    )


def _measure(settings: _Settings, folders: Sequence[Path], name: str) -> _Measured | Failure:
    try:
        truth, *maps = _read(settings, folders, name)
    except InputError as error:
        return Failure(str(folders[0]), name, str(error))
    classes = settings.classes
    height, width = truth.shape
    tolerance = f_tolerance_px(height, width)
    truths, sides = masks_of(truth, classes), [masks_of(m, classes) for m in maps]
    has = np.array([not m.is_empty for m in truths])
    objects = []
    for c in np.flatnonzero(has):
        after, coarse = sides[0][c], sides[-1][c]
        row = (
            measure_triple(coarse, after, truths[c], boundary_ratio=settings.boundary_ratio)
            if len(sides) == 2
            else (0.0,) * 5 + (mask_iou(after, truths[c]),) + (0.0,) * 4
        )
        objects.append((int(c), truths[c].area, row))
    return _Measured(
        name,
        tolerance,
        [confusion(truth, m, classes) for m in maps],
        [class_f(truths, masks, tolerance) for masks in sides],
        [np.array([class_f(truths, masks, px) for px in settings.boundary_px]) for masks in sides],
        [has | np.array([not m.is_empty for m in masks]) for masks in sides],
        objects,
    )


def _read(settings: _Settings, folders: Sequence[Path], name: str) -> list[NDArray[np.int32]]:
    """Read truth, prediction and coarse prediction as positions of classes; ignored pixels are -1 in all."""
    labels = range(settings.classes)
    maps = []
    for folder in folders:
        label_map = read_label_map(folder / name)
        positions = compact(label_map, [c for c in labels if c != settings.ignore_label])
        strange = (positions < 0) & (label_map != settings.ignore_label)
        if strange.any():
            raise FormatError(
                f"{folder / name}",
                expected=f"labels 0 to {settings.classes - 1}, or {settings.ignore_label} to ignore",
                got=f"label {label_map[strange][0]} at {int(strange.sum())} pixels",
                fix="check --classes and --ignore-label; Cityscapes has label ids and train ids",
            )
        maps.append(positions)
    for positions in maps[1:]:
        positions[maps[0] < 0] = -1
    return maps


def _summarise(
    measured: Sequence[_Measured], side: int, boundary_px: Sequence[int]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    present = np.array([m.present[side] for m in measured])
    counts = np.sum([m.counts[side] for m in measured], axis=0)
    overall, per_class = summarise(counts, np.array([m.f[side] for m in measured]), present)
    for number, px in enumerate(boundary_px):
        found, rows = summarise(counts, np.array([m.f_px[side][number] for m in measured]), present)
        overall |= {f"F_{px}px": found["AF"], f"F_{px}px_present": found["AF_present"]}
        for row, own in zip(per_class, rows, strict=True):
            row[f"F_{px}px"] = own["F"]
    return overall, {str(c): row for c, row in enumerate(per_class) if row["images"]}


def _examples(measured: Sequence[_Measured], paired: bool) -> list[Example]:
    return [
        Example(f"class {c}", m.name, row[0] if paired else None, row[5], area, (m.name, c))
        for m in measured
        for c, area, row in m.objects
    ]


def _crop(settings: _Settings, folders: Sequence[Path], pictures: dict[str, Path] | None, example: Example) -> Crop:
    name, c = example.key
    masks = [Mask.from_array(positions == c) for positions in _read(settings, folders, name)]
    truth, prediction, *coarse = masks
    return cut(pictures[name] if pictures else None, truth, prediction, coarse[0] if coarse else None)
