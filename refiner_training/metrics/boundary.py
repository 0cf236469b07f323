"""Primitives of one pair of masks, computed in box windows: IoU, boundary IoU, boundary F, band error.

Letters: (H, W) the image, (h, w) a crop, d a distance in pixels, K the number of offsets in a disk.

Two boundaries are in use in the field, and both are here:

* the *boundary region* of boundary IoU (Cheng et al., CVPR 2021): the mask's own pixels within chessboard
  distance d of its outside. The outside of the image counts as outside of the mask.
* the *edge map* of boundary F (Martin et al., PAMI 2004; DAVIS; SegFix, ECCV 2020): a one pixel wide line
  of the pixels that differ from their right, lower or lower right neighbour. The image border is no edge.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from bpr_service.kernel import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bpr_service.masks.mask import Mask

AF_TOLERANCE_RATIO = 0.00088  # SegFix's: a share of the image diagonal, 3 px at 1024x2048


def boundary_distance_px(height: int, width: int, ratio: float = 0.02) -> int:
    """Give boundary IoU's d for an image: ``max(1, round(ratio * diagonal))``, as its authors' code does.

    The ratio is 0.02 for COCO and LVIS, 0.005 for Cityscapes.
    """
    return max(1, round(ratio * math.sqrt(height**2 + width**2)))


def f_tolerance_px(height: int, width: int, ratio: float = AF_TOLERANCE_RATIO) -> int:
    """Give SegFix's matching tolerance for an image: ``ceil(ratio * diagonal)``, in pixels."""
    return math.ceil(ratio * math.sqrt(height**2 + width**2))


def mask_iou(a: Mask, b: Mask) -> float:
    """Give the IoU of two masks of one image; 0 when both are empty (as in pycocotools)."""
    return _ratio(intersection(a, b), a.area, b.area)


def intersection(a: Mask, b: Mask) -> int:
    """Count the pixels that two masks of one image share."""
    return int(_intersection(a.crop, a.x, a.y, b.crop, b.x, b.y))


def boundary_region(mask: Mask, distance_px: int) -> NDArray[np.uint8]:
    """Give the mask's pixels within chessboard distance d of its outside, as (h, w) {0, 1} in its window."""
    return np.asarray(_boundary_region(mask.crop, distance_px))


def boundary_iou(a: Mask, b: Mask, distance_px: int) -> float:
    """Give the IoU of the boundary regions of two masks (Cheng et al. 2021, equation 3)."""
    return float(_region_iou(_boundary_region(a.crop, distance_px), a.x, a.y,
                             _boundary_region(b.crop, distance_px), b.x, b.y))  # fmt: skip


def region_iou(a: Mask, region_a: NDArray[np.uint8], b: Mask, region_b: NDArray[np.uint8]) -> float:
    """Give the IoU of two boundary regions that were computed before, each in the window of its mask."""
    return float(_region_iou(region_a, a.x, a.y, region_b, b.x, b.y))


def boundary_f(prediction: Mask, truth: Mask, tolerance_px: int = 1) -> float:
    """Give boundary F of two masks of one image: the definition behind every "F at 1 px" of this project.

    The boundary of a mask is its edge map: the pixels that differ from their right, lower or lower right
    neighbour in the image (one pixel wide; the image border is no edge). Precision P is the share of the
    prediction's boundary pixels that have a boundary pixel of the truth within `tolerance_px` (Euclidean,
    so at 1 px: itself and its four neighbours), recall R the same the other way round, and
    ``F = 2 P R / (P + R)``. F is 1 when both have no boundary, and 0 when only one has none.
    """
    n_p, hit_p, n_t, hit_t = _f_counts(
        prediction.crop, prediction.x, prediction.y, truth.crop, truth.x, truth.y,
        truth.height, truth.width, disk_offsets(tolerance_px),
    )  # fmt: skip
    return f_score(n_p, hit_p, n_t, hit_t)


def f_score(n_prediction: int, hit_prediction: int, n_truth: int, hit_truth: int) -> float:
    """Give F from the boundary pixels of each side and those of them that found a partner."""
    if n_prediction == 0 or n_truth == 0:
        return float(n_prediction == n_truth)
    precision, recall = hit_prediction / n_prediction, hit_truth / n_truth
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def band_error(mask: Mask, truth: Mask, band_px: int) -> tuple[int, int]:
    """Count the wrong pixels and all pixels of the band around the truth's boundary.

    The band holds the pixels on either side within chessboard distance `band_px` of the other side: the
    truth dilated by a square of that reach, less the truth eroded by it. The image border is no boundary.
    """
    wrong, total = _band_error(
        mask.crop, mask.x, mask.y, truth.crop, truth.x, truth.y, truth.height, truth.width, band_px
    )
    return int(wrong), int(total)


@lru_cache(maxsize=16)
def disk_offsets(radius_px: int) -> NDArray[np.int64]:
    """Give the (K, 2) offsets dy, dx within a Euclidean radius, nearest first."""
    reach = np.arange(-radius_px, radius_px + 1)
    dy, dx = (axis.ravel() for axis in np.meshgrid(reach, reach, indexing="ij"))
    far = dy**2 + dx**2
    order = np.argsort(far, kind="stable")
    order = order[far[order] <= radius_px**2]
    return np.stack([dy[order], dx[order]], axis=1).astype(np.int64)


def _ratio(shared: int, area_a: int, area_b: int) -> float:
    return shared / max(area_a + area_b - shared, 1)


# ---------------------------------------------------------------------------------------------------------
# Kernels. They hold no lock, so that threads can run them side by side.


@kernel
def _intersection(a: Any, ax: Any, ay: Any, b: Any, bx: Any, by: Any) -> Any:
    x0, x1 = max(ax, bx), min(ax + a.shape[1], bx + b.shape[1])
    total = 0
    for y in range(max(ay, by), min(ay + a.shape[0], by + b.shape[0])):
        for x in range(x0, x1):
            total += a[y - ay, x - ax] & b[y - by, x - bx]
    return total


@kernel
def _erode(crop: Any, d: Any, outside: Any) -> Any:
    """Erode by a square of reach d, O(h w) whatever d: runs along rows, then counts along columns.

    `outside` is the value of what lies around the crop: False background, True foreground.
    """
    h, w = crop.shape
    rows = np.zeros((h, w), np.uint8)
    for y in range(h):
        start = -1
        for x in range(w + 1):
            if x < w and crop[y, x]:
                if start < 0:
                    start = x
            elif start >= 0:
                left = 0 if outside and start == 0 else start + d
                right = w if outside and x == w else x - d
                for k in range(left, right):
                    rows[y, k] = 1
                start = -1
    out = np.zeros((h, w), np.uint8)
    run = np.zeros(w, np.int64)
    if outside:
        for x in range(w):
            run[x] = 2 * d + 1
    for y in range(h + d if outside else h):
        for x in range(w):
            run[x] = run[x] + 1 if y >= h or rows[y, x] else 0
            if run[x] > 2 * d and y >= d:
                out[y - d, x] = 1
    return out


@kernel
def _boundary_region(crop: Any, d: Any) -> Any:
    out = _erode(crop, d, False)
    for y in range(crop.shape[0]):
        for x in range(crop.shape[1]):
            out[y, x] = crop[y, x] & (1 - out[y, x])
    return out


@kernel
def _area(crop: Any) -> Any:
    total = 0
    for y in range(crop.shape[0]):
        for x in range(crop.shape[1]):
            total += crop[y, x]
    return total


@kernel
def _region_iou(a: Any, ax: Any, ay: Any, b: Any, bx: Any, by: Any) -> Any:
    shared = _intersection(a, ax, ay, b, bx, by)
    return shared / max(_area(a) + _area(b) - shared, 1)


@kernel
def _window(crop: Any, x: Any, y: Any, x0: Any, y0: Any, x1: Any, y1: Any) -> Any:
    """Copy the part of a crop at (x, y) that lies in a window; 0 elsewhere."""
    out = np.zeros((y1 - y0, x1 - x0), np.uint8)
    top, bottom = max(y, y0), min(y + crop.shape[0], y1)
    left, right = max(x, x0), min(x + crop.shape[1], x1)
    for v in range(top, bottom):
        for u in range(left, right):
            out[v - y0, u - x0] = crop[v - y, u - x]
    return out


@kernel
def _union_window(a: Any, ax: Any, ay: Any, b: Any, bx: Any, by: Any, height: Any, width: Any, margin: Any) -> Any:
    """Give the box around two crops with a margin, inside the image; an empty crop takes no part."""
    x0, y0, x1, y1 = width, height, 0, 0
    if a.size > 0:
        x0, y0, x1, y1 = ax, ay, ax + a.shape[1], ay + a.shape[0]
    if b.size > 0:
        x0, y0 = min(x0, bx), min(y0, by)
        x1, y1 = max(x1, bx + b.shape[1]), max(y1, by + b.shape[0])
    x0, y0 = max(x0 - margin, 0), max(y0 - margin, 0)
    return x0, y0, max(min(x1 + margin, width), x0), max(min(y1 + margin, height), y0)


@kernel
def _edge_map(seg: Any) -> Any:
    h, w = seg.shape
    edge = np.zeros((h, w), np.uint8)
    for y in range(h - 1):
        for x in range(w - 1):
            v = seg[y, x]
            edge[y, x] = (v ^ seg[y, x + 1]) | (v ^ seg[y + 1, x]) | (v ^ seg[y + 1, x + 1])
        edge[y, w - 1] = seg[y, w - 1] ^ seg[y + 1, w - 1]
    for x in range(w - 1):
        edge[h - 1, x] = seg[h - 1, x] ^ seg[h - 1, x + 1]
    return edge


@kernel
def _matched(edge: Any, other: Any, offsets: Any) -> Any:
    """Count the pixels of an edge map, and those with a pixel of the other within the offsets."""
    h, w = edge.shape
    total, hits = 0, 0
    for y in range(h):
        for x in range(w):
            if edge[y, x] == 0:
                continue
            total += 1
            for k in range(offsets.shape[0]):
                v, u = y + offsets[k, 0], x + offsets[k, 1]
                if 0 <= v < h and 0 <= u < w and other[v, u]:
                    hits += 1
                    break
    return total, hits


@kernel
def edge_matches(a: Any, b: Any, offsets: Any) -> Any:
    """Count boundary pixels and matched ones of two (h, w) {0, 1} arrays: n_a, hit_a, n_b, hit_b."""
    edge_a, edge_b = _edge_map(a), _edge_map(b)
    n_a, hit_a = _matched(edge_a, edge_b, offsets)
    n_b, hit_b = _matched(edge_b, edge_a, offsets)
    return n_a, hit_a, n_b, hit_b


@kernel
def _f_counts(a: Any, ax: Any, ay: Any, b: Any, bx: Any, by: Any, height: Any, width: Any, offsets: Any) -> Any:
    x0, y0, x1, y1 = _union_window(a, ax, ay, b, bx, by, height, width, 1)
    if x1 == x0 or y1 == y0:
        return 0, 0, 0, 0
    return edge_matches(_window(a, ax, ay, x0, y0, x1, y1), _window(b, bx, by, x0, y0, x1, y1), offsets)


@kernel
def _band_error(a: Any, ax: Any, ay: Any, t: Any, tx: Any, ty: Any, height: Any, width: Any, band: Any) -> Any:
    x0, y0, x1, y1 = _union_window(t, tx, ty, t, tx, ty, height, width, band + 1)
    if x1 == x0 or y1 == y0:
        return 0, 0
    truth, mask = _window(t, tx, ty, x0, y0, x1, y1), _window(a, ax, ay, x0, y0, x1, y1)
    background = np.zeros(truth.shape, np.uint8)
    for y in range(y1 - y0):
        for x in range(x1 - x0):
            background[y, x] = 1 - truth[y, x]
    inside, outside = _erode(truth, band, True), _erode(background, band, True)
    wrong, total = 0, 0
    for y in range(y1 - y0):
        for x in range(x1 - x0):
            if inside[y, x] == 0 and outside[y, x] == 0:
                total += 1
                wrong += mask[y, x] ^ truth[y, x]
    return wrong, total
