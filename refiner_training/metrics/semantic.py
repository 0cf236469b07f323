"""Semantic measures: mIoU and the boundary F of each class (AF), and the confusion behind them.

Letters: (H, W) a label map, C the number of classes, N images.

AF is SegFix's F-score (Yuan et al., ECCV 2020): for each image and class the F of the two binary boundaries,
matched within ``ceil(0.00088 * diagonal)`` px, averaged over the images, then over the classes. A class that
neither map has scores 1 there, one that only one map has scores 0. Ignored pixels are no class in both maps.
``AF_present`` leaves the images out where both lack the class, as a reader may expect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.masks.mask import Mask
from refiner_training.metrics.boundary import boundary_f


def confusion(truth: NDArray[np.int32], prediction: NDArray[np.int32], classes: int) -> NDArray[np.int64]:
    """Count pixels by true and predicted class: (C, C + 1), the last column is "no class".

    Both maps hold positions 0..C-1, or -1 for no class; pixels without a true class are not counted.
    """
    seen = truth >= 0
    predicted = np.where(prediction[seen] >= 0, prediction[seen], classes)
    index = truth[seen].astype(np.int64) * (classes + 1) + predicted
    return np.bincount(index, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def class_f(truths: Sequence[Mask], predictions: Sequence[Mask], tolerance_px: int) -> NDArray[np.float64]:
    """Give the boundary F of each class of one image, (C,), from its C true and C predicted masks."""
    pairs = zip(predictions, truths, strict=True)
    return np.array([boundary_f(prediction, truth, tolerance_px) for prediction, truth in pairs])


def class_iou(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Give the IoU of each class, (C,), from a confusion (C, C + 1); nan where neither map has the class."""
    classes = counts.shape[0]
    shared = np.diag(counts[:, :classes]).astype(np.float64)
    union = counts.sum(1) + counts[:, :classes].sum(0) - shared
    return np.asarray(np.divide(shared, union, out=np.full(classes, np.nan), where=union > 0), dtype=np.float64)


def summarise(
    counts: NDArray[np.int64], f: NDArray[np.float64], present: NDArray[np.bool_]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reduce the summed confusion (C, C + 1), F (N, C) and presence (N, C) to measures, overall and by class.

    mIoU is the mean over the classes that truth or prediction has; accuracy the share of right pixels.
    """
    iou, mean_f = class_iou(counts), f.mean(0)
    times = present.sum(0)
    f_present = np.divide(np.where(present, f, 0).sum(0), times, out=np.full(f.shape[1], np.nan), where=times > 0)
    classes = counts.shape[0]
    overall = {
        "mIoU": float(np.nanmean(iou)) if np.isfinite(iou).any() else None,
        "AF": float(mean_f.mean()),
        "AF_present": float(np.nanmean(f_present)) if times.any() else None,
        "pixel_accuracy": float(np.trace(counts[:, :classes]) / max(counts.sum(), 1)),
    }
    per_class = [
        {
            "IoU": float(iou[c]) if np.isfinite(iou[c]) else None,
            "F": float(mean_f[c]),
            "F_present": float(f_present[c]) if times[c] else None,
            "images": int(times[c]),
        }
        for c in range(classes)
    ]
    return overall, per_class
