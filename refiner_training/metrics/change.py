"""What a refinement did to each mask: better or worse, and how much of the boundary error it removed.

Letters: N masks. The three lists belong together: coarse, refined and true mask of the same object.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from bpr_service.errors import InputError
from refiner_training.metrics.boundary import (
    band_error,
    boundary_distance_px,
    boundary_f,
    boundary_iou,
    mask_iou,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bpr_service.masks.mask import Mask

CHANGE_IOU = 0.005  # a mask is better or worse when its IoU moved by more than this
BAND_PX = 5  # half width of the band that pixel errors are counted in
TripleRow = tuple[float, ...]  # of one object: (IoU, boundary IoU, F, wrong, total) before, then after


def pair_change(
    coarse: Sequence[Mask],
    refined: Sequence[Mask],
    ground_truth: Sequence[Mask],
    *,
    tolerance_px: int = 1,
    band_px: int = BAND_PX,
    boundary_ratio: float = 0.02,
    workers: int = 1,
) -> dict[str, Any]:
    """Compare N coarse masks and their N refined masks with the N true ones.

    Per mask, as (N,) float64 arrays: ``iou_before``, ``iou_after``, ``boundary_iou_before``,
    ``boundary_iou_after``, ``f1px_before``, ``f1px_after`` (see
    :func:`~refiner_training.metrics.boundary.boundary_f`), ``band_error_before``, ``band_error_after`` (share
    of wrong pixels in the band). Over all masks, under ``summary``:

    * ``share_removed`` = 1 - sum(1 - F after) / sum(1 - F before); 0 when there was nothing to remove and
      nothing was spoiled, minus infinity when only harm was done
    * ``worse_share``, ``better_share``: share of masks whose IoU fell or rose by more than 0.005
    * means of the above, ``band_error_*`` pooled over the pixels of all bands, ``count`` = N, and the
      constants that were used (``f_tolerance_px``, ``band_px``, ``change_iou``)

    Raises:
        InputError: lists of different length, no masks at all, or three masks of different image sizes.
    """
    _check(coarse, refined, ground_truth)

    def measure(masks: tuple[Mask, Mask, Mask]) -> TripleRow:
        return measure_triple(*masks, tolerance_px, band_px, boundary_ratio)

    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        rows = list(pool.map(measure, zip(coarse, refined, ground_truth, strict=True)))
    return collect(rows, tolerance_px, band_px)


def measure_triple(
    coarse: Mask,
    refined: Mask,
    truth: Mask,
    tolerance_px: int = 1,
    band_px: int = BAND_PX,
    boundary_ratio: float = 0.02,
) -> TripleRow:
    """Measure one object before and after: IoU, boundary IoU, F, wrong and all band pixels, twice."""
    distance = boundary_distance_px(truth.height, truth.width, boundary_ratio)
    row: list[float] = []
    for mask in (coarse, refined):
        wrong, total = band_error(mask, truth, band_px)
        row += [
            mask_iou(mask, truth),
            boundary_iou(mask, truth, distance),
            boundary_f(mask, truth, tolerance_px),
            wrong,
            total,
        ]
    return tuple(row)


def collect(rows: Sequence[TripleRow], tolerance_px: int = 1, band_px: int = BAND_PX) -> dict[str, Any]:
    """Gather N rows of :func:`measure_triple` into what :func:`pair_change` returns."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 10)
    per_mask: dict[str, Any] = {}
    for when, side in (("before", table[:, :5]), ("after", table[:, 5:])):
        for column, name in enumerate(("iou", "boundary_iou", "f1px")):
            per_mask[f"{name}_{when}"] = side[:, column].copy()
        per_mask[f"band_error_{when}"] = side[:, 3] / np.maximum(side[:, 4], 1)
    summary = summarise_change(per_mask)
    summary["band_error_before"] = float(table[:, 3].sum() / max(table[:, 4].sum(), 1))
    summary["band_error_after"] = float(table[:, 8].sum() / max(table[:, 9].sum(), 1))
    summary |= {"f_tolerance_px": tolerance_px, "band_px": band_px, "change_iou": CHANGE_IOU}
    return per_mask | {"summary": summary}


def summarise_change(per_mask: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Reduce the per-mask arrays of :func:`pair_change` to shares and means."""
    gain = per_mask["iou_after"] - per_mask["iou_before"]
    summary: dict[str, Any] = {
        "count": len(gain),
        "share_removed": share_removed(per_mask["f1px_before"], per_mask["f1px_after"]),
        "worse_share": float(np.mean(gain < -CHANGE_IOU)),
        "better_share": float(np.mean(gain > CHANGE_IOU)),
    }
    for name in ("iou", "boundary_iou", "f1px"):
        for when in ("before", "after"):
            summary[f"{name}_{when}"] = float(per_mask[f"{name}_{when}"].mean())
    return summary


def share_removed(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Give the share of the summed (1 - F) that is gone: 1 all of it, 0 none, below 0 more than there was."""
    lost, left = float((1 - before).sum()), float((1 - after).sum())
    if lost == 0:
        return 0.0 if left == 0 else -float("inf")
    return 1 - left / lost


def _check(coarse: Sequence[Mask], refined: Sequence[Mask], ground_truth: Sequence[Mask]) -> None:
    if not len(coarse) == len(refined) == len(ground_truth):
        raise InputError(
            "comparing masks",
            expected="three lists of equal length: coarse, refined, ground truth",
            got=f"{len(coarse)}, {len(refined)} and {len(ground_truth)} masks",
            fix="match the masks first, and drop those without a partner",
        )
    if not len(coarse):
        raise InputError("comparing masks", expected="at least one mask", got="none", fix="check the match")
    for i, masks in enumerate(zip(coarse, refined, ground_truth, strict=True)):
        sizes = {(m.height, m.width) for m in masks}
        if len(sizes) > 1:
            raise InputError(
                f"masks {i}",
                expected="coarse, refined and true mask of one image size (height, width)",
                got=" and ".join(map(str, sorted(sizes))),
                fix="pass masks of the same image",
            )
