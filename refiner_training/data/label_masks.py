"""The masks of a label map, each cut out in its own box: one pass over the map, whatever the number of labels.

Letters: (H, W) the map, N the number of labels asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.kernel import kernel
from bpr_service.masks.mask import Mask


def compact(label_map: NDArray[Any], labels: Sequence[int]) -> NDArray[np.int32]:
    """Replace the labels of a map (H, W) by their positions in `labels`, and all others by -1."""
    wanted = np.asarray(labels, dtype=np.int64)
    order = np.argsort(wanted, kind="stable")
    return np.asarray(_compact(label_map, wanted[order], order.astype(np.int32)))


def masks_of(positions: NDArray[np.int32], count: int) -> list[Mask]:
    """Give the mask of each position 0..count-1 of a compacted map; empty masks for those it has not."""
    height, width = positions.shape
    masks = []
    for n, (x0, y0, x1, y1) in enumerate(_boxes(positions, count).tolist()):
        if x1 <= x0:
            masks.append(Mask(height, width, 0, 0, np.zeros((0, 0), np.uint8)))
        else:
            crop = (positions[y0:y1, x0:x1] == n).view(np.uint8)
            masks.append(Mask(height, width, x0, y0, np.ascontiguousarray(crop)))
    return masks


def label_masks(label_map: NDArray[Any], labels: Sequence[int]) -> list[Mask]:
    """Give the N masks of the labels asked for, in their order."""
    return masks_of(compact(label_map, labels), len(labels))


@kernel
def _compact(label_map: Any, wanted: Any, position: Any) -> Any:
    h, w = label_map.shape
    out = np.empty((h, w), np.int32)
    last, last_position = np.int64(label_map[0, 0]) + 1, np.int32(-1)
    for y in range(h):
        for x in range(w):
            label = np.int64(label_map[y, x])
            if label != last:  # neighbours mostly share their label
                k = np.searchsorted(wanted, label)
                found = k < wanted.size and wanted[k] == label
                last, last_position = label, position[k] if found else np.int32(-1)
            out[y, x] = last_position
    return out


@kernel
def _boxes(positions: Any, count: Any) -> Any:
    h, w = positions.shape
    boxes = np.zeros((count, 4), np.int64)
    boxes[:, 0], boxes[:, 1] = w, h
    for y in range(h):
        for x in range(w):
            n = positions[y, x]
            if n >= 0:
                boxes[n, 0], boxes[n, 1] = min(boxes[n, 0], x), min(boxes[n, 1], y)
                boxes[n, 2], boxes[n, 3] = max(boxes[n, 2], x + 1), y + 1
    return boxes
