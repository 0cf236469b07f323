"""Panoptic measures: PQ, SQ, RQ (Kirillov et al., CVPR 2019) and boundary PQ (Cheng et al., CVPR 2021).

Letters: (H, W) an image, G its true segments, P its predicted ones, d boundary IoU's distance in pixels.

A segment of the truth and one of the prediction match when they are of one category and their IoU, without
void, is over 0.5. A prediction that lies by more than half in void or in a crowd of its category is no error.
For boundary PQ the IoU becomes min(mask IoU, boundary IoU).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.kernel import kernel

MEASURES = ("PQ", "SQ", "RQ")


@dataclass(frozen=True, slots=True)
class SegmentOverlaps:
    """Pixel counts of one image: rows are true segments, the last is void; columns predicted ones, void last."""

    pixels: NDArray[np.int64]  # (G + 1, P + 1)
    boundary: NDArray[np.int64]  # (G + 1, P + 1), boundary region of both; row void: of the prediction alone
    truth_boundary: NDArray[np.int64]  # (G,)
    predicted_boundary: NDArray[np.int64]  # (P,)

    def iou(self, boundary: bool = False) -> NDArray[np.float64]:
        """Give the IoU of all pairs, (G, P), or min(mask IoU, boundary IoU)."""
        iou = _iou(self.pixels, self.pixels[:-1].sum(1), self.pixels[:, :-1].sum(0))
        if not boundary:
            return iou
        return np.minimum(iou, _iou(self.boundary, self.truth_boundary, self.predicted_boundary))


@dataclass(slots=True)
class Tally:
    """What PQ is made of, by category id: summed IoU, true positives, false positives, false negatives."""

    iou: dict[int, float] = field(default_factory=dict)
    counts: dict[int, list[int]] = field(default_factory=dict)

    def add(self, category: int, kind: int, iou: float = 0.0) -> None:
        """Count one segment as true positive (0), false positive (1) or false negative (2)."""
        self.iou[category] = self.iou.get(category, 0.0) + iou
        self.counts.setdefault(category, [0, 0, 0])[kind] += 1

    def merge(self, other: Tally) -> None:
        for category, counts in other.counts.items():
            self.iou[category] = self.iou.get(category, 0.0) + other.iou[category]
            mine = self.counts.setdefault(category, [0, 0, 0])
            for kind, count in enumerate(counts):
                mine[kind] += count

    def per_class(self) -> dict[int, dict[str, float]]:
        """Give PQ, SQ and RQ of each category that was seen."""
        rows = {}
        for category, (tp, fp, fn) in sorted(self.counts.items()):
            weight = tp + fp / 2 + fn / 2
            iou = self.iou[category]
            rows[category] = {"PQ": iou / weight, "SQ": iou / tp if tp else 0.0, "RQ": tp / weight}
        return rows

    def mean(self, categories: Sequence[int]) -> dict[str, float | None]:
        """Average PQ, SQ and RQ over those of the categories that were seen."""
        rows = [row for category, row in self.per_class().items() if category in categories]
        return {m: float(np.mean([row[m] for row in rows])) if rows else None for m in MEASURES}


def measure_segments(
    truth: NDArray[np.int32], prediction: NDArray[np.int32], n_truth: int, n_prediction: int, distance_px: int
) -> SegmentOverlaps:
    """Count the overlaps of two (H, W) int32 maps of positions 0..G-1 and 0..P-1; void is -1."""
    return SegmentOverlaps(
        *_overlaps(truth, _interior(truth, distance_px), prediction, _interior(prediction, distance_px),
                   n_truth, n_prediction)
    )  # fmt: skip


def tally(
    overlaps: SegmentOverlaps,
    truths: Sequence[dict[str, Any]],
    predictions: Sequence[dict[str, Any]],
    boundary: bool = False,
) -> Tally:
    """Match the segments of one image by their ``segments_info`` and count what is right, too much, missed."""
    out = Tally()
    iou = overlaps.iou(boundary)
    crowd = np.array([bool(t.get("iscrowd", 0)) for t in truths], dtype=np.bool_)
    true_category = np.array([t["category_id"] for t in truths], dtype=np.int64)
    category = np.array([p["category_id"] for p in predictions], dtype=np.int64)
    match = (iou > 0.5) & (true_category[:, None] == category) & ~crowd[:, None]
    for g, p in zip(*np.nonzero(match), strict=True):
        out.add(int(category[p]), 0, float(iou[g, p]))
    for g in np.flatnonzero(~match.any(1) & ~crowd):
        out.add(int(true_category[g]), 2)
    area = overlaps.pixels[:, :-1].sum(0)
    for p in np.flatnonzero(~match.any(0)):
        crowds = np.flatnonzero(crowd & (true_category == category[p]))
        excused = overlaps.pixels[-1, p] + overlaps.pixels[crowds, p].sum()
        if excused <= area[p] / 2:
            out.add(int(category[p]), 1)
    return out


def _iou(shared: NDArray[np.int64], truth: NDArray[np.int64], prediction: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide overlaps (G + 1, P + 1) by unions without void, from areas (G,) and (P,)."""
    both = shared[:-1, :-1]
    union = truth[:, None] + prediction - both - shared[-1, :-1]
    return np.asarray(both / np.maximum(union, 1), dtype=np.float64)


@kernel
def _interior(segments: Any, d: Any) -> Any:
    """Mark the pixels whose square of reach d lies in the image and in their own segment: all at once."""
    h, w = segments.shape
    rows = np.zeros((h, w), np.uint8)
    for y in range(h):
        start = 0
        for x in range(1, w + 1):
            if x == w or segments[y, x] != segments[y, start]:
                for k in range(start + d, x - d):
                    rows[y, k] = 1
                start = x
    out = np.zeros((h, w), np.uint8)
    run = np.zeros(w, np.int64)
    for y in range(h):
        for x in range(w):
            if rows[y, x] == 0:
                run[x] = 0
            elif run[x] > 0 and segments[y, x] != segments[y - 1, x]:
                run[x] = 1
            else:
                run[x] += 1
            if run[x] > 2 * d:
                out[y - d, x] = 1
    return out


@kernel
def _overlaps(
    truth: Any, inside_truth: Any, prediction: Any, inside_prediction: Any, n_truth: Any, n_prediction: Any
) -> Any:
    pixels = np.zeros((n_truth + 1, n_prediction + 1), np.int64)
    boundary = np.zeros((n_truth + 1, n_prediction + 1), np.int64)
    truth_boundary = np.zeros(n_truth, np.int64)
    predicted_boundary = np.zeros(n_prediction, np.int64)
    for y in range(truth.shape[0]):
        for x in range(truth.shape[1]):
            g, p = truth[y, x], prediction[y, x]
            void_g, void_p = g < 0, p < 0
            if void_g:
                g = np.int32(n_truth)
            if void_p:
                p = np.int32(n_prediction)
            pixels[g, p] += 1
            on_g = not void_g and inside_truth[y, x] == 0
            on_p = not void_p and inside_prediction[y, x] == 0
            if on_g:
                truth_boundary[g] += 1
            if on_p:
                predicted_boundary[p] += 1
                if on_g or void_g:
                    boundary[g, p] += 1
    return pixels, boundary, truth_boundary, predicted_boundary
