"""The sums of step 4 in T x T tiles that exist only where a patch lies.

Memory and time follow the length of the boundary, not the size of the mask.

Letters: H, W are the image's size, T the side of a tile, S ``network_size_px``, h, w a patch's size, all in px; P is
the number of patches, n of those added at once, C of output maps, K of tiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.kernel import fused_kernel, kernel
from bpr_service.refine.patches import Boxes

TILE_PX = 32

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@kernel
def same_size(boxes: Boxes, size: int) -> bool:
    """Whether every box is a square of `size` px."""
    for i in range(boxes.shape[0]):
        if boxes[i, 2] - boxes[i, 0] != size or boxes[i, 3] - boxes[i, 1] != size:
            return False
    return True


@kernel
def lay_out(boxes: Boxes, height: int, width: int) -> tuple[int, int, int, int, NDArray[np.int32], int]:
    """Box (x0, y0, x1, y1) of all boxes inside the image, and its grid of tiles.

    A tile is numbered where a box touches it and -1 elsewhere; how many are numbered comes last.
    """
    x0, y0, x1, y1 = boxes[0]
    for i in range(1, boxes.shape[0]):
        x0, y0 = min(x0, boxes[i, 0]), min(y0, boxes[i, 1])
        x1, y1 = max(x1, boxes[i, 2]), max(y1, boxes[i, 3])
    left, top, right, bottom = int(x0), int(y0), min(int(x1), width), min(int(y1), height)
    index = np.full((-((top - bottom) // TILE_PX), -((left - right) // TILE_PX)), -1, np.int32)
    n = 0
    for i in range(boxes.shape[0]):
        for ty in range((boxes[i, 1] - top) // TILE_PX, (min(boxes[i, 3], height) - 1 - top) // TILE_PX + 1):
            for tx in range((boxes[i, 0] - left) // TILE_PX, (min(boxes[i, 2], width) - 1 - left) // TILE_PX + 1):
                if index[ty, tx] < 0:
                    index[ty, tx] = n
                    n += 1
    return left, top, right, bottom, index, n


# exp(r) for |r| <= log(2) / 2, as in Cephes' expf (S. Moshier); log(2) in two parts, the first exact times a small n
_E0, _E1, _E2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_E3, _E4, _E5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_LOG2E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504088896341), np.float32(0.693359375), np.float32(-2.12194440e-4)
_ROUND = np.float32(3 << 22)  # added to a small float32, it leaves the nearest integer in the lowest bits
_LEAST, _MOST, _1 = np.float32(-87.0), np.float32(88.0), np.float32(1.0)


@fused_kernel
def _probabilities(logits: F32, out: F32) -> None:
    """`sigmoid` of a row, to within 1e-7, as arithmetic that becomes vector code (a call of ``exp`` would not)."""
    for k in range(out.size):
        x = min(max(-logits[k], _LEAST), _MOST)
        rounded = np.float32(x * _LOG2E + _ROUND)
        n = rounded - _ROUND
        r = (x - n * _LN2_HIGH) - n * _LN2_LOW
        power = np.int32((rounded.view(np.int32) << 23) + (127 << 23)).view(np.float32)  # 2 ** n
        series = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
        out[k] = _1 / (_1 + (series * r * r + r + _1) * power)


_Part = tuple[int, int, int, int, int, int]
"""What a tile and a patch share: the tile's top and left in the patch, then its rows and its columns, half-open."""


@kernel
def _add_one(tile: F64, part: _Part) -> None:
    """Count a patch in its part of a tile (T, T)."""
    _, _, first, last, a, b = part
    for r in range(first, last):
        target = tile[r, a:b]
        for k in range(target.size):
            target[k] += 1.0


@kernel
def _add(tile: F64, values: NDArray[Any], part: _Part) -> None:
    """Add to a tile (T, T) its part of the `values` (h, w) of a patch."""
    y, x, first, last, a, b = part
    for r in range(first, last):
        target, row = tile[r, a:b], values[y + r, x + a : x + b]
        for k in range(target.size):
            target[k] += row[k]


@kernel
def _add_product(tile: F64, values: F32, weights: F64, part: _Part) -> None:
    """As `_add`, the values times their weights."""
    y, x, first, last, a, b = part
    for r in range(first, last):
        target, row, weight = tile[r, a:b], values[y + r, x + a : x + b], weights[y + r, x + a : x + b]
        for k in range(target.size):
            target[k] += weight[k] * row[k]


@kernel
def accumulate(
    maps: F32,
    padding: int,
    probability: bool,
    boxes: Boxes,
    weights: F64,
    flat: bool,
    height: int,
    width: int,
    x0: int,
    y0: int,
    index: NDArray[np.int32],
    sums: F64,
    total: F64,
) -> None:
    """Add the first C of the (n, ., S, S) `maps`, less their padding, at `boxes` to the tiles.

    The tiles: sums (K, C, T, T) and total weight (K, T, T). Of map 0 the sigmoid is added where `probability` is asked
    for.

    Where all `weights` (h, w) are 1 (`flat`) they are not read: they would take the cache's room from the sums.
    """
    h, w = weights.shape
    inner = np.empty((h, w), np.float32)
    for i in range(maps.shape[0]):
        left, top = boxes[i, 0], boxes[i, 1]
        bottom, right = min(top + h, height), min(left + w, width)
        for c in range(sums.shape[1]):
            for row in range(h):
                values = maps[i, c, padding + row, padding : padding + w]
                if probability and c == 0:
                    _probabilities(values, inner[row])
                else:
                    for k in range(w):
                        inner[row, k] = values[k]
            for ty in range((top - y0) // TILE_PX, (bottom - 1 - y0) // TILE_PX + 1):
                y = y0 + ty * TILE_PX - top  # of the tile in the patch
                for tx in range((left - x0) // TILE_PX, (right - 1 - x0) // TILE_PX + 1):
                    x = x0 + tx * TILE_PX - left
                    last, end = min(TILE_PX, bottom - top - y), min(TILE_PX, right - left - x)
                    part = (y, x, max(0, -y), last, max(0, -x), end)
                    tile = index[ty, tx]
                    if flat:
                        _add(sums[tile, c], inner, part)
                    else:
                        _add_product(sums[tile, c], inner, weights, part)
                    if c == 0 and flat:
                        _add_one(total[tile], part)
                    elif c == 0:
                        _add(total[tile], weights, part)


@kernel
def paste(
    index: NDArray[np.int32],
    sums: F64,
    total: F64,
    threshold: float,
    x0: int,
    y0: int,
    window: NDArray[np.uint8],
    wx: int,
    wy: int,
) -> tuple[int, int]:
    """Write the thresholded average into the {0, 1} `window`, whose left top is (wx, wy); pixels added and removed."""
    added, removed = 0, 0
    h, w = window.shape
    after = np.empty(TILE_PX, np.uint8)
    one = np.uint8(1)
    for ty in range(index.shape[0]):
        for tx in range(index.shape[1]):
            tile = index[ty, tx]
            if tile < 0:
                continue
            left, top = x0 + tx * TILE_PX - wx, y0 + ty * TILE_PX - wy
            first, last = max(0, -left), min(TILE_PX, w - left)
            n = last - first
            for r in range(max(0, -top), min(TILE_PX, h - top)):
                line = window[top + r, left + first : left + last]
                value, weight = sums[tile, 0, r, first:last], total[tile, r, first:last]
                for k in range(n):  # value >= threshold * weight is value / weight >= threshold
                    now = np.uint8(value[k] >= threshold * weight[k])
                    after[k] = now if weight[k] > 0.0 else line[k]
                plus, minus = np.uint8(0), np.uint8(0)  # a row of a tile cannot overflow a byte
                for k in range(n):
                    plus = np.uint8(plus + (after[k] & np.uint8(one - line[k])))
                    minus = np.uint8(minus + (line[k] & np.uint8(one - after[k])))
                    line[k] = after[k]
                added += int(plus)
                removed += int(minus)
    return added, removed


@kernel
def spread(
    index: NDArray[np.int32],
    sums: F64,
    total: F64,
    channel: int,
    out: F32,
    covered: NDArray[np.bool_],
) -> None:
    """Write the average of a channel into the (h, w) `out`, and True into `covered`, where there is weight."""
    h, w = out.shape
    for ty in range(index.shape[0]):
        for tx in range(index.shape[1]):
            tile = index[ty, tx]
            if tile < 0:
                continue
            left, top = tx * TILE_PX, ty * TILE_PX
            n = min(TILE_PX, w - left)
            for r in range(min(TILE_PX, h - top)):
                line, seen = out[top + r, left : left + n], covered[top + r, left : left + n]
                value, weight = sums[tile, channel, r], total[tile, r]
                for k in range(n):
                    line[k] = value[k] / weight[k] if weight[k] > 0.0 else line[k]
                    seen[k] = weight[k] > 0.0
