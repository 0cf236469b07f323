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

from bpr_service.core.kernel import kernel
from bpr_service.core.masks import Mask


@dataclass(frozen=True, slots=True, eq=False)
class Boundary:
    """Boundary pixels in the order NMS works in: the best score first, equal scores row by row.

    Attributes
    ----------
    ys, xs : (B,) int32, position in the image, px
    scores : (B,) float32, ``min(s, 9 - s) / 4.5`` with s the sum of the 3x3 neighbourhood
    """

    ys: NDArray[np.int32]
    xs: NDArray[np.int32]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return self.ys.size


@kernel
def _scan(
    crop: NDArray[np.uint8],
    x: int,
    y: int,
    height: int,
    width: int,
    ys: NDArray[np.int32],
    xs: NDArray[np.int32],
    ranks: NDArray[np.uint8],
) -> int:
    """Fill `ys`, `xs`, `ranks` (``min(s, 9 - s)``) row by row; how many there are (may exceed the room).

    A row is done in three passes that the compiler turns into vector code: sums of three down, sums of three
    across, then a search for what is not zero, eight pixels at a time, since nearly all of a mask is
    interior.
    """
    h, w = crop.shape
    y0, y1 = max(0, y - 1), min(height, y + h + 1)
    x0, x1 = max(0, x - 1), min(width, x + w + 1)
    n = x1 - x0
    left = x - x0 + 1  # where the crop's first column lies in `down`
    down = np.zeros(n + 2, np.uint8)  # column c of the image is down[c - x0 + 1]
    words = np.zeros((n + 7) // 8, np.uint64)
    rank = words.view(np.uint8)
    zeros = np.zeros(w, np.uint8)
    found = 0
    for row in range(y0, y1):
        above, below = max(row - 1, 0) - y, min(row + 1, height - 1) - y
        a = crop[above] if 0 <= above < h else zeros
        b = crop[row - y] if 0 <= row - y < h else zeros
        c = crop[below] if 0 <= below < h else zeros
        for i in range(w):
            down[left + i] = a[i] + b[i] + c[i]
        if x0 == 0:
            down[0] = down[1]
        if x1 == width:
            down[n + 1] = down[n]
        for i in range(n):
            s = np.uint8(down[i] + down[i + 1] + down[i + 2])
            rank[i] = min(s, np.uint8(9) - s)
        for k in range(words.size):
            if words[k] == 0:
                continue
            for i in range(8 * k, min(8 * k + 8, n)):
                if rank[i]:
                    if found < ys.size:
                        ys[found] = row
                        xs[found] = x0 + i
                        ranks[found] = rank[i]
                    found += 1
    return found


@kernel
def _order(ranks: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Indices by falling rank (4, 3, 2, 1), in their own order where ranks are equal."""
    starts = np.zeros(6, np.int64)
    for r in ranks:
        starts[4 - r + 1] += 1
    for i in range(1, 6):
        starts[i] += starts[i - 1]
    order = np.empty(ranks.size, np.int64)
    for i in range(ranks.size):
        at = 4 - ranks[i]
        order[starts[at]] = i
        starts[at] += 1
    return order


def boundary_pixels(mask: Mask) -> Boundary:
    """Pixels whose 3x3 neighbourhood is mixed, on both sides of the boundary, with their scores.

    The score is highest (``4 / 4.5``) where the neighbourhood is split in halves. The order is the best score
    first; equal scores keep the order of rows, then columns, which makes the kept patches reproducible.
    """
    if mask.crop.size == 0:
        return Boundary(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))
    room = 8 * sum(mask.crop.shape) + 1024
    while True:
        ys, xs, ranks = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.uint8)
        n = _scan(mask.crop, mask.x, mask.y, mask.height, mask.width, ys, xs, ranks)
        if n <= room:
            break
        room = n
    order = _order(ranks[:n])
    return Boundary(ys[order], xs[order], ranks[order].astype(np.float32) / np.float32(4.5))
