"""Slow and simple full-frame versions of the measures, written from their definitions with scipy and OpenCV."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Frame = NDArray[np.uint8]


def iou(a: Frame, b: Frame) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def boundary_region(mask: Frame, distance: int) -> Frame:
    """As in the definition: pad by one zero pixel, erode 3x3 `distance` times, subtract."""
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)
    region: Any = mask - eroded[1:-1, 1:-1]
    return region


def boundary_iou(a: Frame, b: Frame, distance: int) -> float:
    return iou(boundary_region(a, distance), boundary_region(b, distance))


def edge_map(mask: Frame) -> NDArray[np.bool_]:
    """Differs from the right, lower or lower right neighbour; the border repeats itself."""
    wide = np.pad(mask.astype(bool), ((0, 1), (0, 1)), mode="edge")
    here = wide[:-1, :-1]
    right, lower, both = here ^ wide[:-1, 1:], here ^ wide[1:, :-1], here ^ wide[1:, 1:]
    edge = right | lower | both
    edge[-1], edge[:, -1] = right[-1], lower[:, -1]
    edge[-1, -1] = False
    return edge


def disk(radius: int) -> NDArray[np.bool_]:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    inside: NDArray[np.bool_] = x**2 + y**2 <= radius**2
    return inside


def boundary_f(a: Frame, b: Frame, tolerance: int) -> float:
    edge_a, edge_b = edge_map(a), edge_map(b)
    if edge_a.sum() == 0 or edge_b.sum() == 0:
        return float(edge_a.sum() == edge_b.sum())
    precision = (edge_a & ndimage.binary_dilation(edge_b, disk(tolerance))).sum() / edge_a.sum()
    recall = (edge_b & ndimage.binary_dilation(edge_a, disk(tolerance))).sum() / edge_b.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def band_error(mask: Frame, truth: Frame, band: int) -> tuple[int, int]:
    square = np.ones((2 * band + 1,) * 2)
    around = ndimage.binary_dilation(truth, square) & ~ndimage.binary_erosion(truth, square, border_value=1)
    return int((around & (mask != truth)).sum()), int(around.sum())


def segf(truth: Frame, prediction: Frame, classes: int, ignore: int, ratio: float = 0.00088) -> NDArray[np.float64]:
    """Boundary F of each class of one image, the ignored pixels being no class in both."""
    tolerance = int(np.ceil(ratio * np.hypot(*truth.shape)))
    seen = truth != ignore
    return np.array(
        [
            boundary_f(((prediction == c) & seen).astype(np.uint8), ((truth == c) & seen).astype(np.uint8), tolerance)
            for c in range(classes)
        ]
    )


def panoptic_quality(
    truth: NDArray[np.int32],
    prediction: NDArray[np.int32],
    truths: list[dict[str, Any]],
    predictions: list[dict[str, Any]],
    distance: int | None = None,
) -> dict[int, list[float]]:
    """IoU sum, TP, FP, FN of each category of one image from ids (0 void), as panopticapi counts them."""
    stats: dict[int, list[float]] = {}

    def count(category: int, place: int, value: float = 1.0) -> None:
        stats.setdefault(category, [0.0, 0.0, 0.0, 0.0])[place] += value

    void, matched = truth == 0, (set(), set())  # type: tuple[Any, tuple[set[int], set[int]]]
    for t in truths:
        for p in predictions:
            if t["category_id"] != p["category_id"] or t.get("iscrowd"):
                continue
            a, b = (truth == t["id"]).astype(np.uint8), (prediction == p["id"]).astype(np.uint8)
            value = (a & b).sum() / max((a | (b & ~void)).sum(), 1)
            if distance is not None:
                ra, rb = boundary_region(a, distance), boundary_region(b, distance)
                shared = (ra & rb).sum()
                value = min(value, shared / max(ra.sum() + rb.sum() - shared - (rb & void).sum(), 1))
            if value > 0.5:
                count(t["category_id"], 0, value)
                count(t["category_id"], 1)
                matched[0].add(t["id"])
                matched[1].add(p["id"])
    for t in truths:
        if t["id"] not in matched[0] and not t.get("iscrowd"):
            count(t["category_id"], 3)
    for p in predictions:
        if p["id"] in matched[1]:
            continue
        excused = void.copy()
        for t in truths:
            if t.get("iscrowd") and t["category_id"] == p["category_id"]:
                excused |= truth == t["id"]
        mine = prediction == p["id"]
        if (mine & excused).sum() / mine.sum() <= 0.5:
            count(p["category_id"], 2)
    return stats
