"""The arrays behind semantic and panoptic refinement: a label map as masks, and the contest for its pixels.

Letters: H, W are the map's size, px; L the number of labels in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from bpr_service.core.kernel import kernel
from bpr_service.core.masks import Mask
from bpr_service.core.reassemble import Accumulator, sigmoid
from bpr_service.errors import MaskError

Labels = NDArray[Any]

_TOP = 32767  # confidence 1; the highest bit says that the pixel lies under a patch of its own coarse label
_OWN = 32768
MAX_LABEL = (1 << 24) - 1


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
    boxes : (L, 4) int32, half-open
    areas : (L,) int64, px
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
        self.void = void
        self.dtype = given.dtype
        narrow = np.uint8 if given.dtype.itemsize == 1 else np.uint16 if given.dtype == np.uint16 else np.int32
        self.map: Labels = np.ascontiguousarray(given, dtype=narrow)
        height, width = given.shape
        area = np.zeros(high + 1, np.int64)
        right, bottom, from_right, from_bottom = (np.zeros(high + 1, np.int32) for _ in range(4))
        _measure(self.map, area, right, bottom, from_right, from_bottom)
        found = np.flatnonzero(area)
        found = found[found != void] if void is not None else found
        self.labels: list[int] = found.tolist()
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
        crop = (self.map[y0:y1, x0:x1] == self.map.dtype.type(self.labels[index])).view(np.uint8)
        mask = Mask(self.map.shape[0], self.map.shape[1], x0, y0, crop)
        self._last = (index, mask)
        return mask


@kernel
def _claim(
    index: NDArray[np.int32],
    probability: NDArray[np.float64],
    total: NDArray[np.float64],
    x0: int,
    y0: int,
    label: int,
    void: int,
    coarse: Labels,
    winner: Labels,
    confidence: NDArray[np.uint16],
) -> None:
    """Let `label` contest the pixels under its patches; `probability` (K, T, T) is its average there."""
    height, width = coarse.shape
    side = total.shape[1]  # not a constant of another module: numba's cache would not see it change
    for ty in range(index.shape[0]):
        for tx in range(index.shape[1]):
            tile = index[ty, tx]
            if tile < 0:
                continue
            left, top = x0 + tx * side, y0 + ty * side
            for r in range(min(side, height - top)):
                for k in range(min(side, width - left)):
                    if total[tile, r, k] <= 0.0:
                        continue
                    y, x = top + r, left + k
                    before = coarse[y, x]
                    if before == void:
                        continue
                    mine = int(probability[tile, r, k] * _TOP + 0.5)
                    best = int(confidence[y, x])
                    flag = best & _OWN
                    best &= _TOP
                    own = before == label
                    if own:
                        flag = _OWN
                    held = winner[y, x]
                    if mine > best or (mine == best and (own or (held != before and label < held))):
                        best = mine
                        winner[y, x] = label
                    confidence[y, x] = best | flag


@kernel
def _settle(
    coarse: Labels,
    winner: Labels,
    confidence: NDArray[np.uint16],
    added: NDArray[np.int64],
    removed: NDArray[np.int64],
) -> None:
    """Give back the pixels that no patch of their own coarse label saw: there its confidence is 1. Count the
    rest.
    """
    height, width = coarse.shape
    for y in range(height):
        for x in range(width):
            if winner[y, x] == coarse[y, x]:
                continue
            if confidence[y, x] & _OWN:
                added[winner[y, x]] += 1
                removed[coarse[y, x]] += 1
            else:
                winner[y, x] = coarse[y, x]


class LabelPlanes:
    """Who holds each pixel so far, and how surely: two (H, W) arrays that labels claim in any order."""

    def __init__(self, regions: LabelRegions) -> None:
        self.regions = regions
        self.winner: Labels = regions.map.copy()
        self.confidence = np.zeros(regions.map.shape, np.uint16)

    def claim(self, label: int, patches: Accumulator) -> None:
        """Let `label` contest the pixels under its patches."""
        with np.errstate(invalid="ignore"):  # 0 / 0 where no patch lies; not read
            average = patches.sums[:, 0] / patches.total
        if patches.config.average == "logit":
            average = sigmoid(average.astype(np.float32)).astype(np.float64)
        void = -1 if self.regions.void is None else self.regions.void
        _claim(
            patches.index, average, patches.total, patches.x0, patches.y0, label, void,
            self.regions.map, self.winner, self.confidence,
        )  # fmt: skip

    def settle(self) -> tuple[Labels, NDArray[np.int64], NDArray[np.int64]]:
        """The final map, in the dtype given; pixels won and lost of each label, indexed by label."""
        top = max(self.regions.labels, default=0) + 1
        added, removed = np.zeros(top, np.int64), np.zeros(top, np.int64)
        _settle(self.regions.map, self.winner, self.confidence, added, removed)
        return self.winner.astype(self.regions.dtype, copy=False), added, removed
