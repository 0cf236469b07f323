"""A label map as masks: the labels that are in it, where they lie, and each as a mask that is made when asked for.

Letters: H, W are the map's size, px; L the number of labels in it, C of channels of probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import MaskError
from bpr_service.kernel import kernel
from bpr_service.masks.dense import dense
from bpr_service.masks.mask import Mask
from bpr_service.refine.labels.soft_labels import SoftLabels

Labels = NDArray[Any]

MAX_LABEL = (1 << 24) - 1
SPARSE = 1 << 16
"""Labels from here on are numbered without gaps: a table up to the highest would take longer than the map. Below, the
tables take at most 0.15 ms and 1 MB more than those of labels 1 to 3, and numbering takes 0.8 ns a pixel.
"""


@kernel
def _measure(
    labels: Labels,
    area: NDArray[np.int64],
    right: NDArray[np.int32],
    bottom: NDArray[np.int32],
    from_right: NDArray[np.int32],
    from_bottom: NDArray[np.int32],
) -> None:
    """Area and extent of each label in one pass, a run at a time.

    Every table starts at zero and takes maxima.
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

    Attributes:
        labels: the L labels present, rising, without `void`.
        map: (H, W), what stands for them: the labels themselves, or numbers without gaps where they are large.
        numbers: what stands for each of `labels` in `map`.
        void: what stands there for void, or None.
        boxes: (L, 4) int32, half-open.
        areas: (L,) int64, px.
        top: the highest value of `map`.
        levels: (C, H, W) uint8, the probability of each class times 255; None of a map that has none.
        channels: (top + 1,) int32, the channel of `levels` of each value of `map`, -1 of void.
    """

    def __init__(self, label_map: Labels | SoftLabels, void: int | None) -> None:
        """For the (H, W) integers `label_map`, or such with the probability of each class.

        Raises:
            MaskError: no array of labels from 0 to 2**24 - 1, or pixels without a class that are not void.
        """
        soft = label_map if isinstance(label_map, SoftLabels) else None
        given = np.asarray(label_map.labels if isinstance(label_map, SoftLabels) else label_map)
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
            self.map: Labels = np.ascontiguousarray(given, dtype=np.uint16)  # one type: kernels are compiled once
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
        self.levels = None if soft is None else soft.levels
        self.channels = np.full(self.top + 1, -1, np.int32)
        if soft is not None:
            self._find_channels(soft)

    def _find_channels(self, soft: SoftLabels) -> None:
        channel = {label: i for i, label in enumerate(soft.classes)}
        if odd := [label for label in self.labels if label not in channel]:
            raise MaskError(
                "pixels without a class",
                expected="a probability above 0 for one class, or the ignore label",
                got=f"label {odd[0]}, which is no class and is not ignored",
                fix=f"take {odd[0]} as the ignore label",
            )
        self.channels[self.numbers] = [channel[label] for label in self.labels]

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
