"""Measures of an outline alone: how much of it is straight, stepped, in pieces.

Letters: h, w are a window's size, px.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.masks.polygons import outlines

U8 = NDArray[np.uint8]

SHAPE = (
    "pieces",
    "share of the largest piece",
    "holes",
    "share of the holes",
    "corners of the polygon",
    "straight at any angle",
    "longest straight run",
    "steps",
    "length of the steps",
    "convexity",
)
"""What is measured of an outline, in the order of the vector."""

LONG_PX = 12.0
STEP_PX = 3.0


def shape(window: U8) -> list[float]:
    """The measures of `SHAPE` of a mask in an (h, w) uint8 {0, 1} window that has some foreground."""
    import cv2

    contours, tree = cv2.findContours(window, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    area = float(np.count_nonzero(window))
    size = np.sqrt(area)
    parts: list[float] = []
    holes: list[float] = []
    hull = 0.0
    corners, length, straight, longest = 0, 0.0, 0.0, 0.0
    for contour, (_, _, _, parent) in zip(contours, tree[0], strict=True):
        enclosed = cv2.contourArea(contour) + 0.5 * len(contour)
        (parts if parent < 0 else holes).append(enclosed)
        if parent < 0:
            hull += cv2.contourArea(cv2.convexHull(contour)) + 0.5 * len(contour)
        if len(contour) < 8:
            continue
        polygon = cv2.approxPolyDP(contour, 1.0, True).reshape(-1, 2).astype(np.float64)
        edges = np.hypot(*(polygon - np.roll(polygon, 1, 0)).T)
        corners, length = corners + len(polygon), length + float(edges.sum())
        straight += float(edges[edges >= LONG_PX].sum())
        longest = max(longest, float(edges.max()))
    steps, step_px = _steps(window)
    return [
        float(np.log(len(parts))),
        max(parts) / max(sum(parts), 1.0),
        float(np.log1p(len(holes))),
        sum(holes) / max(area, 1.0),
        float(np.log((corners + 1.0) / (length + 8.0))),
        straight / max(length, 1.0),
        longest / max(size, 1.0),
        steps,
        float(np.log1p(step_px)),
        min(area / max(hull, 1.0), 1.5),
    ]


def blurred(window: U8) -> NDArray[np.float32]:
    """An (h, w) uint8 {0, 1} mask blurred by 2 px, (h + 2, w + 2): a pixel more on every side."""
    import cv2

    soft = cv2.GaussianBlur(window.astype(np.float32), (0, 0), 2.0, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.copyMakeBorder(soft, 1, 1, 1, 1, cv2.BORDER_REFLECT_101), np.float32)


def slopes(soft: NDArray[np.float32], xs: NDArray[Any], ys: NDArray[Any]) -> NDArray[np.float32]:
    """(n, 2) unit vectors x, y along which a `blurred` mask grows at some of its window's pixels."""
    near = [[soft[ys + i, xs + j] for j in range(3)] for i in range(3)]  # Sobel's kernels, where they are asked for
    right = near[0][2] - near[0][0] + 2 * (near[1][2] - near[1][0]) + near[2][2] - near[2][0]
    down = near[2][0] - near[0][0] + 2 * (near[2][1] - near[0][1]) + near[2][2] - near[0][2]
    slope = np.stack([right, down], 1)
    slope /= np.hypot(*slope.T)[:, None] + 1e-6
    return slope.astype(np.float32)


def _steps(window: U8) -> tuple[float, float]:
    """Share of the outline's corners between two runs of `STEP_PX` or more, and the runs' length there, px."""
    found, total, px = 0, 0, 0.0
    for ring in outlines(window, 0, 0):
        points = np.asarray(ring).reshape(-1, 2)
        runs = np.abs(points - np.roll(points, 1, 0)).sum(1)
        least = np.minimum(runs, np.roll(runs, -1))
        far = least >= STEP_PX
        found, total, px = found + int(far.sum()), total + len(runs), px + float(least[far].sum())
    return found / max(total, 1), px / max(found, 1)
