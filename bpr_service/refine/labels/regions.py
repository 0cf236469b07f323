"""A label map as masks: the labels that are in it, where they lie, and each as a mask that is made when asked for;
of a large map, block by block.

Letters: H, W are the map's size, px; L the number of labels in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import MaskError
from bpr_service.kernel import kernel
from bpr_service.masks.dense import dense
from bpr_service.masks.mask import Mask
from bpr_service.refine.patches import Boxes
from bpr_service.refine.reassemble import TILE_PX

Labels = NDArray[Any]

MAX_LABEL = (1 << 24) - 1
SPARSE = 1 << 16
"""Labels from here on are numbered without gaps: a table up to the highest would take longer than the map."""
BLOCK_PX = 1024
"""About the side of the blocks that the patches of a large label map come in."""
SPLIT_PX = 1536
"""Height or width from which a label map is large."""


@kernel
def _measure(
    labels: Labels,
    area: NDArray[np.int64],
    right: NDArray[np.int32],
    bottom: NDArray[np.int32],
    from_right: NDArray[np.int32],
    from_bottom: NDArray[np.int32],
) -> None:
    """Area and extent of each label in one pass, a run at a time. Every table starts at zero and takes
    maxima.
    """
    height, width = labels.shape
    for y in range(height):
        x = 0
        while x < width:
            label = labels[y, x]
            end = x + 1
            while end < width and labels[y, end] == label:
                end += 1
            area[label] += end - x
            right[label] = max(right[label], end)
            from_right[label] = max(from_right[label], width - x)
            bottom[label] = y + 1
            from_bottom[label] = max(from_bottom[label], height - y)
            x = end


class LabelRegions(Sequence[Mask]):
    """The labels of a map, each as a mask that is made when asked for; the last one made is kept.

    Attributes
    ----------
    labels : the L labels present, rising, without `void`
    map : (H, W), what stands for them: the labels themselves, or numbers without gaps where they are large
    numbers : what stands for each of `labels` in `map`
    void : what stands there for void, or None
    boxes : (L, 4) int32, half-open
    areas : (L,) int64, px
    top : the highest value of `map`
    """

    def __init__(self, label_map: Labels, void: int | None) -> None:
        """Raises :class:`MaskError` when `label_map` is no (H, W) array of labels from 0 to 2**24 - 1."""
        given = np.asarray(label_map)
        if given.ndim != 2 or given.size == 0 or given.dtype.kind not in "biu":
            raise MaskError(
                "not a label map",
                expected="an (H, W) integer array",
                got=f"{given.dtype} {given.shape}",
                fix="pass label numbers, one a pixel (argmax of a network's output)",
            )
        low, high = int(given.min()), int(given.max())
        if low < 0 or high > MAX_LABEL:
            raise MaskError(
                "a label is out of range",
                expected=f"labels from 0 to {MAX_LABEL}",
                got=f"{low} to {high}",
                fix="renumber the labels",
            )
        self.dtype, self.void = given.dtype, void
        self._ids: NDArray[np.int64] | None = None  # the label of each number, where they differ
        if high < SPARSE:
            narrow = np.uint8 if given.dtype.itemsize == 1 else np.uint16 if given.dtype == np.uint16 else np.int32
            self.map: Labels = np.ascontiguousarray(given, dtype=narrow)
        else:
            self._ids, self.map = dense(given)
            self.void = next(iter(np.flatnonzero(self._ids == void).tolist()), None)
        height, width = given.shape
        self.top = high if self._ids is None else self._ids.size - 1
        area = np.zeros(self.top + 1, np.int64)
        right, bottom, from_right, from_bottom = (np.zeros(self.top + 1, np.int32) for _ in range(4))
        _measure(self.map, area, right, bottom, from_right, from_bottom)
        found = np.flatnonzero(area)
        found = found[found != self.void] if self.void is not None else found
        self.numbers: list[int] = found.tolist()
        self.labels: list[int] = self.numbers if self._ids is None else self._ids[found].tolist()
        corners = (width - from_right[found], height - from_bottom[found], right[found], bottom[found])
        self.boxes: NDArray[np.int32] = np.stack(corners, axis=1).astype(np.int32)
        self.areas: NDArray[np.int64] = area[found]
        self._last: tuple[int, Mask] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Mask]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Mask: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mask]: ...
    def __getitem__(self, index: int | slice) -> Mask | Sequence[Mask]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        last = self._last
        if last is not None and last[0] == index:
            return last[1]
        x0, y0, x1, y1 = (int(v) for v in self.boxes[index])
        mask = Mask(self.map.shape[0], self.map.shape[1], x0, y0, self.window(index, x0, y0, x1, y1).view(np.uint8))
        self._last = (index, mask)
        return mask

    def window(self, index: int, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.bool_]:
        """(y1 - y0, x1 - x0) bool: where label number `index` lies in a box inside the map."""
        out: NDArray[np.bool_] = self.map[y0:y1, x0:x1] == self.map.dtype.type(self.numbers[index])
        return out

    def named(self, numbers: Labels) -> Labels:
        """A map of the values that `map` has, as one of labels, in the dtype that was given."""
        if self._ids is None:
            return numbers.astype(self.dtype, copy=False)
        return self._ids.astype(self.dtype)[numbers]

    def cut(self, which: Sequence[int], boxes: NDArray[np.int32]) -> LabelRegions:
        """Label number ``which[i]`` inside ``boxes[i]``, (x0, y0, x1, y1) in the map, as region i; `areas` are those
        of the whole labels.
        """
        pieces = copy(self)
        pieces.labels, pieces.numbers = ([of[i] for i in which] for of in (self.labels, self.numbers))
        pieces.boxes, pieces.areas, pieces._last = boxes, self.areas[list(which)], None
        return pieces


# ---- pieces of labels --------------------------------------------------------------------------------------


def by_block(boxes: Sequence[Boxes], height: int, width: int) -> tuple[list[int], list[Boxes]]:
    """The patches of L labels block by block of an (H, W) map: of each piece its label's number, and its boxes.

    A box belongs to the block of its left top. Blocks start at multiples of a tile, so that those beside each other
    share as few as can be.
    """
    rows, columns = max(round(height / BLOCK_PX), 1), max(round(width / BLOCK_PX), 1)
    sides = [-(-length // (n * TILE_PX)) * TILE_PX for length, n in ((height, rows), (width, columns))]
    placed = np.concatenate([*boxes, np.empty((0, 4), np.int32)])
    if placed.shape[0] == 0:
        return [], []
    owners = np.repeat(np.arange(len(boxes)), [b.shape[0] for b in boxes])
    keys = (placed[:, 1] // sides[0] * columns + placed[:, 0] // sides[1]).astype(np.int64) * len(boxes) + owners
    order = np.argsort(keys, kind="stable")  # the patches of a piece keep their order
    firsts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    return owners[order][firsts].tolist(), np.split(placed[order], firsts[1:])


def windows(boxes: Sequence[Boxes], padding: int, height: int, width: int) -> NDArray[np.int32]:
    """(n, 4) int32: what each piece's patches read of an (H, W) map; zeros where it has none."""
    out = np.zeros((len(boxes), 4), np.int32)
    for i, piece in enumerate(boxes):
        if piece.shape[0]:
            out[i, :2] = np.maximum(piece[:, :2].min(axis=0) - padding, 0)
            out[i, 2:] = np.minimum(piece[:, 2:].max(axis=0) + padding, (width, height))
    return out
