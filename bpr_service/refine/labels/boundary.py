"""Step 1 for all labels of a map at once: one pass finds every label's boundary pixels.

Letters: H, W are the map's size, px; L the number of labels, B of a label's boundary pixels.

The same pixels in the same order as `boundary_pixels` gives for each label as a mask. But no label is ever cut out as a
mask: the cost follows the map's area once and then the boundary, whatever the number of labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from bpr_service.kernel import kernel
from bpr_service.refine.boundary import Boundary
from bpr_service.refine.labels.regions import LabelRegions, Labels
from bpr_service.refine.patches import Positions

_SCORES = np.array([4, 3, 2, 1], np.float32) / np.float32(4.5)


@kernel
def _mixed(above: Labels, here: Labels, below: Labels, column: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """`out`: 1 where the 3x3 around a pixel of the row `here` holds two labels. Loops that become vector code."""
    w = here.size
    for x in range(w):
        column[x] = (above[x] != here[x]) | (below[x] != here[x])
    for x in range(1, w - 1):
        sides = (here[x - 1] != here[x]) | (here[x + 1] != here[x])
        out[x] = column[x - 1] | column[x] | column[x + 1] | sides
    for x in (0, w - 1):
        a, b = max(x - 1, 0), min(x + 1, w - 1)
        out[x] = column[a] | column[x] | column[b] | (here[a] != here[x]) | (here[b] != here[x])


@kernel
def _scan(labels: Labels, number: NDArray[np.int32], at: NDArray[np.int64], out: NDArray[np.uint32]) -> None:
    """For each label within a mixed 3x3, ``out[at[number[label], 4 - rank]++]`` is the pixel.

    Only counts where `out` is empty. The rank is ``min(s, 9 - s)``, s the pixels of the label in the 3x3.
    """
    height, width = labels.shape
    words = np.zeros((2, (width + 7) // 8), np.uint64)
    column, found = words[0].view(np.uint8), words[1].view(np.uint8)
    near = np.empty(9, labels.dtype)
    for y in range(height):
        above, here, below = labels[max(y - 1, 0)], labels[y], labels[min(y + 1, height - 1)]
        _mixed(above, here, below, column, found)
        for k in range(words.shape[1]):
            if words[1, k] == 0:
                continue
            for x in range(8 * k, min(8 * k + 8, width)):
                if not found[x]:
                    continue
                a, b = max(x - 1, 0), min(x + 1, width - 1)
                near[0], near[1], near[2] = above[a], above[x], above[b]
                near[3], near[4], near[5] = here[a], here[x], here[b]
                near[6], near[7], near[8] = below[a], below[x], below[b]
                left = 9
                while left:  # take one label out of the neighbourhood at a time
                    label, kept = near[0], 0
                    for i in range(left):
                        if near[i] != label:
                            near[kept] = near[i]
                            kept += 1
                    s = left - kept
                    left = kept
                    i = number[label]
                    if i >= 0:
                        rank = 4 - min(s, 9 - s)
                        if out.size:
                            out[at[i, rank]] = y * width + x
                        at[i, rank] += 1


@kernel
def _split(pixels: NDArray[np.uint32], width: int, xs: Positions, ys: Positions) -> None:
    """Column and row of pixels numbered row by row."""
    for i in range(pixels.size):
        y = pixels[i] // width
        ys[i], xs[i] = y, pixels[i] - y * width


class LabelBoundaries(Sequence[Boundary]):
    """The boundary pixels of every label of a map, as `boundary_pixels` gives them; held in 4 bytes each."""

    def __init__(self, regions: LabelRegions) -> None:
        labels = regions.map
        self.width = labels.shape[1]
        number = np.full(regions.top + 1, -1, np.int32)
        number[regions.numbers] = np.arange(len(regions))
        self._counts = np.zeros((len(regions), 4), np.int64)  # by falling rank
        numbers = np.uint32 if labels.size <= 1 << 32 else np.uint64
        _scan(labels, number, self._counts, np.empty(0, numbers))
        ends = self._counts.ravel().cumsum().reshape(self._counts.shape)
        self._starts = np.append(0, ends[:, 3])
        self._pixels = np.empty(self._starts[-1], numbers)
        _scan(labels, number, ends - self._counts, self._pixels)

    def __len__(self) -> int:
        return self._counts.shape[0]

    @overload
    def __getitem__(self, index: int) -> Boundary: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Boundary]: ...
    def __getitem__(self, index: int | slice) -> Boundary | Sequence[Boundary]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        pixels = self._pixels[self._starts[index] : self._starts[index + 1]]
        xs, ys = np.empty(pixels.size, np.int32), np.empty(pixels.size, np.int32)
        _split(pixels, self.width, xs, ys)
        return Boundary(ys, xs, _SCORES.repeat(self._counts[index]))
