"""Steps 1 and 2 for all labels of a map at once: one pass finds every label's boundary pixels.

Letters: H, W are the map's size, p is ``patch_size_px``, in px; L the number of labels, B of a label's boundary
pixels, P of its patches, K of tiles.

The same pixels in the same order, and so the same patches, as `boundary_pixels` and `place_patches` give for each label
as a mask. But no label is ever cut out as a mask: the cost follows the map's area once and then the boundary,
whatever the number of labels, and what is remembered of the map is a bit a pixel in 64 px tiles on the boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import PatchConfig
from bpr_service.kernel import kernel
from bpr_service.refine.boundary import Boundary
from bpr_service.refine.labels.regions import LabelRegions, Labels
from bpr_service.refine.patches import Boxes, Positions, grid_patches, squares, stencil, window_positions

_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_SCORES = np.array([4, 3, 2, 1], np.float32) / np.float32(4.5)


# ---- boundary pixels ---------------------------------------------------------------------------------------


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
    """For each label within a mixed 3x3, ``out[at[number[label], 4 - rank]++]`` is the pixel; only counts where `out`
    is empty. The rank is ``min(s, 9 - s)``, s the pixels of the label in the 3x3.
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


# ---- a set of pixels, a bit each, in tiles -----------------------------------------------------------------


@kernel
def _number_tiles(xs: Positions, ys: Positions, index: NDArray[np.int32]) -> int:
    """Number the 64 px tiles that hold a point in `index` (-1 elsewhere); how many."""
    index[:] = -1
    n = 0
    for i in range(xs.size):
        if index[ys[i] >> 6, xs[i] >> 6] < 0:
            index[ys[i] >> 6, xs[i] >> 6] = n
            n += 1
    return n


@kernel
def _has(index: NDArray[np.int32], bits: NDArray[np.uint64], x: int, y: int) -> bool:
    """Whether pixel (x, y), of a tile that exists, is in the set."""
    return bool((bits[index[y >> 6, x >> 6], y & 63] >> np.uint64(x & 63)) & np.uint64(1))


@kernel
def _put(index: NDArray[np.int32], bits: NDArray[np.uint64], y: int, start: int, stop: int, value: bool) -> None:
    """Put pixels `start` to `stop` of row `y` into the set, or take them out, where a tile exists."""
    if y < 0 or y >> 6 >= index.shape[0]:
        return
    start, stop = max(start, 0), min(stop, index.shape[1] * 64)
    for tx in range(start >> 6, ((stop - 1) >> 6) + 1):
        tile = index[y >> 6, tx]
        if tile < 0:
            continue
        first, last = max(start - 64 * tx, 0), min(stop - 64 * tx, 64)
        run = (_ALL << np.uint64(first)) & (_ALL >> np.uint64(64 - last))
        if value:
            bits[tile, y & 63] |= run
        else:
            bits[tile, y & 63] &= ~run


# ---- patches -----------------------------------------------------------------------------------------------


@kernel
def _dense(
    px: Positions, py: Positions, xs: Positions, ys: Positions, size: int, reach: NDArray[np.int32], cover: bool
) -> NDArray[np.int32]:
    """Which of the squares at `xs`, `ys` around `px`, `py` NMS keeps, then those that `cover` adds; in order."""
    n = 0
    kept = np.empty(xs.size, np.int32)
    index = np.empty(((ys.max() >> 6) + 1, (xs.max() >> 6) + 1), np.int32)
    bits = np.zeros((_number_tiles(xs, ys, index), 64), np.uint64)
    for i in range(xs.size):
        if _has(index, bits, xs[i], ys[i]):
            continue
        kept[n] = i
        n += 1
        for k in range(2 * size + 1):
            if reach[k] >= 0:
                _put(index, bits, ys[i] + k - size, xs[i] - reach[k], xs[i] + reach[k] + 1, True)
    if cover:
        index = np.empty(((py.max() >> 6) + 1, (px.max() >> 6) + 1), np.int32)
        bits = np.zeros((_number_tiles(px, py, index), 64), np.uint64)
        for k in range(n):
            for row in range(ys[kept[k]], ys[kept[k]] + size):
                _put(index, bits, row, xs[kept[k]], xs[kept[k]] + size, True)
        for i in range(px.size):
            if not _has(index, bits, px[i], py[i]):
                kept[n] = i
                n += 1
                for row in range(ys[i], ys[i] + size):
                    _put(index, bits, row, xs[i], xs[i] + size, True)
    return kept[:n].copy()


@kernel
def _sparse(px: Positions, py: Positions, x0: int, y0: int, right: int, bottom: int, size: int) -> Positions:
    """(P, 2) left and top, at most `right` and `bottom`, of the squares that `sparse_patches` would place; `px`, `py`
    count from (x0, y0).
    """
    index = np.empty(((py.max() >> 6) + 1, (px.max() >> 6) + 1), np.int32)
    left = np.zeros((_number_tiles(px, py, index), 64), np.uint64)
    for i in range(px.size):
        _put(index, left, py[i], px[i], px[i] + 1, True)
    reach = size // 2 - 1
    placed = np.empty((px.size, 2), np.int32)
    n = 0
    for i in range(px.size):
        if not _has(index, left, px[i], py[i]):
            continue
        sum_x, sum_y, count = 0, 0, 0
        start, stop = max(px[i] - reach, 0), min(px[i] + reach + 1, index.shape[1] * 64)
        for row in range(max(py[i] - reach, 0), min(py[i] + reach + 1, index.shape[0] * 64)):
            for tx in range(start >> 6, ((stop - 1) >> 6) + 1):
                tile = index[row >> 6, tx]
                if tile < 0 or left[tile, row & 63] == 0:
                    continue
                for column in range(max(start, 64 * tx), min(stop, 64 * tx + 64)):
                    if (left[tile, row & 63] >> np.uint64(column & 63)) & np.uint64(1):
                        sum_x += column
                        sum_y += row
                        count += 1
        a = min(max(sum_x // count + x0 - size // 2, 0), right)
        b = min(max(sum_y // count + y0 - size // 2, 0), bottom)
        placed[n, 0], placed[n, 1] = a, b
        n += 1
        for row in range(b - y0, b - y0 + size):
            _put(index, left, row, a - x0, a - x0 + size, False)
    return placed[:n].copy()


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


def place_label_patches(
    boundary: Boundary, box: tuple[int, int, int, int], height: int, width: int, config: PatchConfig
) -> Boxes:
    """(P, 4) int32 boxes of a label's patches, those of `place_patches`; `box` is the label's own (x0, y0, x1, y1)."""
    if len(boundary) == 0:
        return np.empty((0, 4), np.int32)
    size = config.patch_size_px
    if config.scheme == "instance":
        x0, y0, x1, y1 = box
        grow = size // 2
        return np.array(
            [(max(x0 - grow, 0), max(y0 - grow, 0), min(x1 + grow, width), min(y1 + grow, height))], np.int32
        )
    if config.scheme == "grid":
        return grid_patches(boundary, height, width, size)
    xs, ys = window_positions(boundary, height, width, size)
    left, top = xs.min(), ys.min()  # a pixel lies in its square, so nothing is left of or above this
    px, py = boundary.xs - left, boundary.ys - top
    if config.scheme == "sparse":
        placed = _sparse(px, py, int(left), int(top), max(width - size, 0), max(height - size, 0), size)
        return squares(placed[:, 0], placed[:, 1], size)
    kept = _dense(px, py, xs - left, ys - top, size, stencil(size, config.nms_threshold), config.cover)
    return squares(xs[kept], ys[kept], size)


def drop_full_labels(regions: LabelRegions, index: int, boxes: Boxes) -> Boxes:
    """`drop_full` of label number `index`."""
    height, width = regions.map.shape
    keep = np.ones(boxes.shape[0], np.bool_)
    edge = (boxes[:, :2] <= 0).any(axis=1) | (boxes[:, 2] >= width) | (boxes[:, 3] >= height)
    for i in np.flatnonzero(edge):
        x0, y0, x1, y1 = boxes[i]
        keep[i] = (regions.map[y0:y1, x0:x1] != regions.numbers[index]).any()
    return boxes[keep]
