"""Small islands and holes that a refined mask has and the coarse one had not: a network's slips, not boundaries.

Letters: h, w are a window's size, px.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]


def take_back_specks(refined: U8, coarse: U8, specks_px: int) -> None:
    """Give back to the coarse mask what is a speck.

    A speck is a part of foreground, or a hole, of fewer than `specks_px` px, of which the coarse mask had less than
    half. Parts are connected by sides and corners, holes by sides; a hole at the window's edge is none.

    Args:
        refined: (h, w) uint8, 0 or 1, outside of which nothing is foreground; changed in place.
        coarse: (h, w) uint8, 0 or 1.
        specks_px: 0 changes nothing.
    """
    if specks_px <= 1 or not refined.size:
        return
    for value, connectivity in ((1, 8), (0, 4)):
        part = refined if value else 1 - refined
        count, labels, stats, _ = cv2.connectedComponentsWithStats(part, connectivity=connectivity)
        small = stats[:, cv2.CC_STAT_AREA] < specks_px
        small[0] = False  # all that is not `value`
        if not value:
            small &= ~_at_edge(stats, part.shape)
        if not small.any():
            continue
        at = np.flatnonzero(small[labels])
        label = labels.ravel()[at]
        kept = np.bincount(label, coarse.ravel()[at] == value, count)
        speck = small & (kept < 0.5 * stats[:, cv2.CC_STAT_AREA])
        refined.reshape(-1)[at[speck[label]]] = 1 - value


def _at_edge(stats: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    x, y, w, h = stats[:, :4].T
    return np.asarray((x == 0) | (y == 0) | (x + w == shape[1]) | (y + h == shape[0]))
