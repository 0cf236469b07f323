"""Step 1: the boundary pixels of a mask and their scores (Tang et al., CVPR 2021, section 3.2).

Letters: H, W are the image's size, h, w the crop's, in px; B is the number of boundary pixels.

Outside the image nothing is known, so the border is continued: the 3x3 neighbourhood of a pixel on the
image's border repeats the pixels of that border. A mask that ends where the image ends has no boundary there,
and a mask that fills the image has none at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bpr_service.kernel import kernel
from bpr_service.masks.mask import Mask


@dataclass(frozen=True, slots=True, eq=False)
class Boundary:
    """Boundary pixels in the order NMS works in: the best score first, equal scores row by row.

    Attributes:
        ys: (B,) int32, rows in the image, px.
        xs: (B,) int32, columns.
        scores: (B,) float32, ``min(s, 9 - s) / 4.5`` with s the sum of the 3x3 neighbourhood.
    """

    ys: NDArray[np.int32]
    xs: NDArray[np.int32]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return self.ys.size


_BLOCK = 32
"""Pixels of a row ranked at once: a fixed number, so that no loop ends in single steps."""


@kernel
def _scan(crop: NDArray[np.uint8], x: int, y: int, height: int, width: int) -> tuple[NDArray[np.int64], int]:
    """The boundary pixels row by row, each packed as ``row << 34 | column << 3 | rank``.

    An array with spare room, and how many of its places are filled.

    Three rows of the image are held at a time, their borders continued. Ranks are vector code; they are then
    searched eight at a time, since nearly all of a mask is interior.
    """
    h, w = crop.shape
    y0, y1 = max(0, y - 1), min(height, y + h + 1)
    x0, x1 = max(0, x - 1), min(width, x + w + 1)
    n = x1 - x0
    left = x - x0 + 1  # column c of the image is lines[:, c - x0 + 1]
    blocks = (n + _BLOCK - 1) // _BLOCK
    lines = np.zeros((3, blocks * _BLOCK + 2), np.uint8)  # row r of the image is lines[r % 3]
    rank = np.zeros(blocks * _BLOCK, np.uint8)
    words = rank.view(np.uint64)
    pixels = np.empty(8 * (h + w) + 1024, np.int64)
    found, read = 0, -1
    for row in range(y0, y1):
        above, below = max(row - 1, 0), min(row + 1, height - 1)
        for r in range(max(above, read + 1), below + 1):
            line = lines[r % 3]
            if y <= r < y + h:
                line[left : left + w] = crop[r - y]
                if x0 == 0:
                    line[0] = line[1]
                if x1 == width:
                    line[n + 1] = line[n]
            else:
                line[:] = 0
        read = below
        a, b, c = lines[above % 3], lines[row % 3], lines[below % 3]
        for k in range(blocks):
            for i in range(k * _BLOCK, k * _BLOCK + _BLOCK):  # bytes throughout: a wider type would be slower
                s = np.uint8(np.uint8(a[i] + b[i]) + c[i])
                s = np.uint8(s + np.uint8(np.uint8(a[i + 1] + b[i + 1]) + c[i + 1]))
                s = np.uint8(s + np.uint8(np.uint8(a[i + 2] + b[i + 2]) + c[i + 2]))
                rank[i] = min(s, np.uint8(np.uint8(9) - s))
        rank[n:] = 0
        if found + rank.size > pixels.size:
            more = np.empty(2 * pixels.size + rank.size, np.int64)
            more[:found] = pixels[:found]
            pixels = more
        for k in range(words.size):
            if words[k] == 0:
                continue
            at = (row << 34) | ((x0 + 8 * k) << 3)
            for i in range(8):  # without a branch: what is no boundary pixel is written over
                pixels[found] = at + (i << 3) + rank[8 * k + i]
                found += rank[8 * k + i] != 0
    return pixels, found


@kernel
def _boundary(
    crop: NDArray[np.uint8], x: int, y: int, height: int, width: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """`ys`, `xs` and `scores` by falling rank (4, 3, 2, 1), row by row where ranks are equal."""
    pixels, n = _scan(crop, x, y, height, width)
    starts = np.zeros(6, np.int64)
    for i in range(n):
        starts[5 - (pixels[i] & 7)] += 1
    for i in range(1, 6):
        starts[i] += starts[i - 1]
    ys, xs, scores = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.float32)
    for i in range(n):
        pixel = pixels[i]
        rank = pixel & 7
        at = starts[4 - rank]
        starts[4 - rank] += 1
        ys[at], xs[at], scores[at] = pixel >> 34, (pixel >> 3) & 0x7FFFFFFF, np.float32(rank) / np.float32(4.5)
    return ys, xs, scores


def boundary_pixels(mask: Mask) -> Boundary:
    """Pixels whose 3x3 neighbourhood is mixed, on both sides of the boundary, with their scores.

    The score is highest (``4 / 4.5``) where the neighbourhood is split in halves. The order is the best score
    first; equal scores keep the order of rows, then columns, which makes the kept patches reproducible.
    """
    if mask.crop.size == 0:
        return Boundary(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))
    return Boundary(*_boundary(mask.crop, mask.x, mask.y, mask.height, mask.width))
