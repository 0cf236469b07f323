"""Step 2: patches along the boundary (Tang et al., CVPR 2021, section 3.2).

The schemes other than ``dense`` are of Table 4 of the journal.

Letters: H, W are the image's size, p is ``patch_size_px``, both in px; B is the number of boundary pixels, P of
patches.

A patch is the half-open box (x0, y0, x1, y1). Squares are moved to lie inside the image, so the last row and
column are reached; along a side shorter than p the square starts at 0 and hangs over the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import PatchConfig
from bpr_service.kernel import kernel
from bpr_service.masks.mask import Mask
from bpr_service.refine.bits import empty_set, has, put, put_one, square
from bpr_service.refine.boundary import Boundary, boundary_pixels

Boxes = NDArray[np.int32]
Positions = NDArray[np.int32]


def place_patches(mask: Mask, config: PatchConfig) -> Boxes:
    """Where the patches of `mask` lie: see `place_along`."""
    return place_along(boundary_pixels(mask), mask.box, mask.height, mask.width, config)


def place_along(
    boundary: Boundary, box: tuple[int, int, int, int], height: int, width: int, config: PatchConfig
) -> Boxes:
    """Where the patches of a mask lie whose boundary is known.

    - ``dense``: a square centred on every boundary pixel, thinned by NMS in the order of `boundary_pixels`; with
      ``config.cover`` then more squares, in the same order, until every boundary pixel lies in one.
    - ``sparse``: as few squares as a greedy pass needs for every boundary pixel to lie in one: in the order of
      `boundary_pixels`, a pixel that lies in none gets one, centred on the mean of the pixels around it that lie in
      none either.
    - ``grid``: the squares of a fixed grid that hold a boundary pixel, row by row.
    - ``instance``: one box, the mask's own, wider by half a patch on each side.

    Args:
        boundary: its B boundary pixels.
        box: the mask's own (x0, y0, x1, y1).
        height: H.
        width: W.
        config: scheme, patch size, and the threshold of NMS.

    Returns:
        (P, 4) int32 boxes in image coordinates; none of an empty or full mask.
    """
    if len(boundary) == 0:
        return np.empty((0, 4), np.int32)
    size = config.patch_size_px
    if config.scheme == "instance":
        x0, y0, x1, y1 = box
        grow = size // 2
        grown = (max(x0 - grow, 0), max(y0 - grow, 0), min(x1 + grow, width), min(y1 + grow, height))
        return np.array([grown], np.int32)
    if config.scheme == "grid":
        return grid_patches(boundary, height, width, size)
    if config.scheme == "sparse":
        return squares(*_sparse(boundary.xs, boundary.ys, height, width, size), size)
    reach = stencil(size, config.nms_threshold)
    boxes: Boxes = _dense(boundary.xs, boundary.ys, height, width, reach, config.cover)
    return boxes


def squares(xs: Positions, ys: Positions, size: int) -> Boxes:
    """(P, 4) int32 boxes of the `size` squares whose left tops are `xs`, `ys`."""
    return np.stack([xs, ys, xs + size, ys + size], axis=1).astype(np.int32)


def window_positions(boundary: Boundary, height: int, width: int, size: int) -> tuple[Positions, Positions]:
    """Left and top, (B,) int32 each, of the square centred on each boundary pixel and moved inside the image."""
    xs = np.clip(boundary.xs - size // 2, 0, max(width - size, 0))
    ys = np.clip(boundary.ys - size // 2, 0, max(height - size, 0))
    return xs.astype(np.int32, copy=False), ys.astype(np.int32, copy=False)


def grid_patches(boundary: Boundary, height: int, width: int, size: int) -> Boxes:
    """The squares of a grid from (0, 0) that hold a boundary pixel; the last ones are moved inside the image."""
    columns = -(-width // size)
    cells = np.unique((boundary.ys // size).astype(np.int64) * columns + boundary.xs // size)
    xs = np.minimum(cells % columns * size, max(width - size, 0))
    ys = np.minimum(cells // columns * size, max(height - size, 0))
    return squares(xs.astype(np.int32), ys.astype(np.int32), size)


@kernel
def _window(p: int, size: int, length: int) -> int:
    """Start of the `size` px centred on `p` and moved inside 0 to `length`."""
    return min(max(p - size // 2, 0), max(length - size, 0))


@kernel
def _sparse(px: Positions, py: Positions, height: int, width: int, size: int) -> tuple[Positions, Positions]:
    """Left and top of the squares of the ``sparse`` scheme."""
    x0, y0, index, left = empty_set(px, py)
    whole = square(size)
    h, w = 64 * index.shape[0], 64 * index.shape[1]
    for i in range(px.size):
        put_one(index, left, px[i] - x0, py[i] - y0)
    reach = size // 2 - 1  # the mean of pixels so near lies so near: the square around it holds the pixel itself
    xs, ys = np.empty(px.size, np.int32), np.empty(px.size, np.int32)
    n = 0
    for i in range(px.size):
        x, y = px[i] - x0, py[i] - y0
        if not has(index, left, x, y):
            continue
        sum_x, sum_y, count = 0, 0, 0
        start, stop = max(x - reach, 0), min(x + reach + 1, w)
        for row in range(max(y - reach, 0), min(y + reach + 1, h)):
            for tx in range(start >> 6, ((stop - 1) >> 6) + 1):
                tile = index[row >> 6, tx]
                if tile < 0 or left[tile, row & 63] == 0:
                    continue
                for column in range(max(start, 64 * tx), min(stop, 64 * tx + 64)):
                    if (left[tile, row & 63] >> np.uint64(column & 63)) & np.uint64(1):
                        sum_x += column
                        sum_y += row
                        count += 1
        xs[n], ys[n] = _window(sum_x // count + x0, size, width), _window(sum_y // count + y0, size, height)
        put(index, left, xs[n] - x0, ys[n] - y0, whole, False)
        n += 1
    return xs[:n], ys[:n]


# ---- NMS of equal squares ----------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def stencil(size: int, threshold: float) -> NDArray[np.int32]:
    """Which squares a kept square suppresses: (2 size + 1,) int32.

    Entry ``size + dy`` is the largest ``|dx|``, or -1.

    The IoU of equal squares depends on (dx, dy) alone. It is computed in float32 as torchvision's ``nms``
    does, so that a square exactly on the threshold falls on the same side.
    """
    side = np.maximum(size - np.abs(np.arange(-size, size + 1)), 0).astype(np.float32)
    inter = side[:, None] * side[None, :]
    area = np.float32(size * size)
    over = (inter / (area + area - inter)).astype(np.float64) > threshold
    return np.asarray(over[:, size:].sum(axis=1) - 1, np.int32)


@kernel
def _thin(xs: Positions, ys: Positions, reach: NDArray[np.int32]) -> NDArray[np.int64]:
    """Greedy NMS in the order given: keep a square whose place is free, and take the places that it suppresses."""
    size = reach.size // 2
    x0, y0, index, taken = empty_set(xs, ys)
    shape = np.empty((reach.size, 2), np.int32)
    shape[:, 0], shape[:, 1] = -reach, reach + 1  # nothing where the reach is -1: from 1 to 0
    kept = np.empty(xs.size, np.int64)
    n = 0
    for i in range(xs.size):
        x, y = xs[i] - x0, ys[i] - y0
        if has(index, taken, x, y):
            continue
        kept[n] = i
        n += 1
        put(index, taken, x, y - size, shape, True)
    return kept[:n].copy()


def suppress(xs: Positions, ys: Positions, size: int, threshold: float) -> NDArray[np.int64]:
    """Greedy NMS of equal squares in the order given: the indices that are kept.

    Equal to ``torchvision.ops.nms`` on the same boxes in the same order (falling scores, ties as listed).

    Args:
        xs: (B,) int32, left of each square, px.
        ys: (B,) int32, top of each square, px.
        size: side of the squares, px.
        threshold: a square whose IoU with a kept one exceeds it is dropped.
    """
    if xs.size == 0:
        return np.empty(0, np.int64)
    kept: NDArray[np.int64] = _thin(xs, ys, stencil(size, threshold))
    return kept


@kernel
def _cover(
    px: Positions, py: Positions, xs: Positions, ys: Positions, kept: NDArray[np.int64], size: int
) -> NDArray[np.int64]:
    """`kept`, then the squares to add, in order, so that every boundary pixel (`px`, `py`) lies in one.

    Below a threshold of 1/3 NMS leaves gaps: two 64 px squares 35 px apart have an IoU of 0.29, and the pixel
    that the dropped one was centred on may lie in no other.
    """
    x0, y0, index, covered = empty_set(px, py)
    whole = square(size)
    for k in kept:
        put(index, covered, xs[k] - x0, ys[k] - y0, whole, True)
    every = np.empty(px.size + kept.size, np.int64)
    every[: kept.size] = kept
    n = kept.size
    for i in range(px.size):
        if has(index, covered, px[i] - x0, py[i] - y0):
            continue
        every[n] = i
        n += 1
        put(index, covered, xs[i] - x0, ys[i] - y0, whole, True)
    return every[:n].copy()


@kernel
def _dense(px: Positions, py: Positions, height: int, width: int, reach: NDArray[np.int32], cover: bool) -> Boxes:
    """(P, 4) boxes of the ``dense`` scheme for boundary pixels (`px`, `py`) in their order."""
    size = reach.size // 2
    xs, ys = np.empty(px.size, np.int32), np.empty(px.size, np.int32)
    for i in range(px.size):
        xs[i], ys[i] = _window(px[i], size, width), _window(py[i], size, height)
    kept = _thin(xs, ys, reach)
    if cover:
        kept = _cover(px, py, xs, ys, kept, size)
    boxes = np.empty((kept.size, 4), np.int32)
    for n in range(kept.size):
        x, y = xs[kept[n]], ys[kept[n]]
        boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3] = x, y, x + size, y + size
    return boxes


def left_out(boundary: Boundary, boxes: Boxes) -> NDArray[np.bool_]:
    """(B,) bool: which boundary pixels lie in none of the (P, 4) square `boxes`."""
    if len(boundary) == 0 or boxes.shape[0] == 0:
        return np.ones(len(boundary), np.bool_)
    x0, y0 = int(boundary.xs.min()), int(boundary.ys.min())
    h, w = int(boundary.ys.max()) - y0 + 1, int(boundary.xs.max()) - x0 + 1
    ends = np.zeros((h + 1, w + 1), np.int32)  # summed twice, corners of boxes give how many lie over a pixel
    xa, xb = np.clip(boxes[:, 0] - x0, 0, w), np.clip(boxes[:, 2] - x0, 0, w)
    ya, yb = np.clip(boxes[:, 1] - y0, 0, h), np.clip(boxes[:, 3] - y0, 0, h)
    for rows, columns, sign in ((ya, xa, 1), (ya, xb, -1), (yb, xa, -1), (yb, xb, 1)):
        np.add.at(ends, (rows, columns), sign)
    depth = ends.cumsum(axis=0).cumsum(axis=1)
    out: NDArray[np.bool_] = depth[boundary.ys - y0, boundary.xs - x0] == 0
    return out


def drop_full(boxes: Boxes, height: int, width: int, window: Callable[[int, int, int, int], NDArray[Any]]) -> Boxes:
    """Without the patches that touch the image's border and are all foreground (semantic: Hu et al., section 3.3).

    Args:
        boxes: (P, 4) int32.
        height: H.
        width: W.
        window: the mask's pixels in (x0, y0, x1, y1), a box inside the image.
    """
    at_border = (boxes[:, :2] <= 0).any(axis=1) | (boxes[:, 2] >= width) | (boxes[:, 3] >= height)
    keep = np.ones(boxes.shape[0], np.bool_)
    for i in np.flatnonzero(at_border):
        x0, y0, x1, y1 = boxes[i].tolist()
        keep[i] = not window(x0, y0, min(x1, width), min(y1, height)).all()
    return boxes[keep]
