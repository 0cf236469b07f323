"""A set of pixels, a bit each, in tiles of 64 x 64 that exist only where they are asked about.

What is remembered so follows the length of a boundary, not the size of the image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bpr_service.kernel import kernel

_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@kernel
def empty_set(xs: NDArray[np.int32], ys: NDArray[np.int32]) -> tuple[int, int, NDArray[np.int32], NDArray[np.uint64]]:
    """The empty set in the tiles that hold a point (`xs`, `ys`).

    Returns:
        (x0, y0), which pixels are counted from: the least of both; the number of each tile, -1 where there is none;
        (n, 64) bits of n tiles, a word a row.
    """
    x0, y0, x1, y1 = xs[0], ys[0], xs[0], ys[0]
    for i in range(xs.size):
        x0, x1 = min(x0, xs[i]), max(x1, xs[i])
        y0, y1 = min(y0, ys[i]), max(y1, ys[i])
    index = np.full((((y1 - y0) >> 6) + 1, ((x1 - x0) >> 6) + 1), -1, np.int32)
    n = 0
    for i in range(xs.size):
        ty, tx = (ys[i] - y0) >> 6, (xs[i] - x0) >> 6
        if index[ty, tx] < 0:
            index[ty, tx] = n
            n += 1
    return int(x0), int(y0), index, np.zeros((n, 64), np.uint64)


@kernel
def has(index: NDArray[np.int32], bits: NDArray[np.uint64], x: int, y: int) -> bool:
    """Whether pixel (x, y), of a tile that exists, is in the set."""
    return bool((bits[index[y >> 6, x >> 6], y & 63] >> np.uint64(x & 63)) & np.uint64(1))


Shape = NDArray[np.int32]
"""(n, 2): from and to which column, half-open, each of n rows reaches; the one in the middle reaches furthest."""


@kernel
def put(index: NDArray[np.int32], bits: NDArray[np.uint64], x: int, y: int, shape: Shape, value: bool) -> None:
    """Put the pixels of `shape` at (x, y) into the set, or take them out, where a tile exists."""
    n = shape.shape[0]
    low, high = x + shape[n // 2, 0], x + shape[n // 2, 1] - 1
    for ty in range(max(y >> 6, 0), min((y + n - 1) >> 6, index.shape[0] - 1) + 1):
        for tx in range(max(low >> 6, 0), min(high >> 6, index.shape[1] - 1) + 1):
            tile = index[ty, tx]
            if tile < 0:
                continue
            left = x - 64 * tx
            for row in range(max(y, 64 * ty), min(y + n, 64 * ty + 64)):
                first, last = max(left + shape[row - y, 0], 0), min(left + shape[row - y, 1], 64)
                if first >= last:
                    continue
                run = (_ALL << np.uint64(first)) & (_ALL >> np.uint64(64 - last))
                if value:
                    bits[tile, row & 63] |= run
                else:
                    bits[tile, row & 63] &= ~run


@kernel
def put_one(index: NDArray[np.int32], bits: NDArray[np.uint64], x: int, y: int) -> None:
    """Put pixel (x, y), of a tile that exists, into the set."""
    bits[index[y >> 6, x >> 6], y & 63] |= np.uint64(1) << np.uint64(x & 63)


@kernel
def square(size: int) -> Shape:
    """The `size` square, from its left top."""
    out = np.zeros((size, 2), np.int32)
    out[:, 1] = size
    return out
