"""The kinds of error that an audit names: those that are estimated, and those that can be counted."""

from __future__ import annotations

import numpy as np

from bpr_service.masks.mask import Mask

ESTIMATED = (
    "too fat",
    "too thin",
    "shifted",
    "polygonal",
    "stairs",
    "missing part",
    "swallowed neighbour",
    "hole filled",
)
"""What the model of suspicion tells apart, in the order of its answers."""
TWICE, EMPTY, TINY = "looks like another mask twice", "empty", "tiny piece"
COUNTED = (TWICE, EMPTY, TINY)

NAMED_FROM = dict.fromkeys(ESTIMATED, 0.45) | {"missing part": 0.65}
"""How likely a mask must be to have an error of a kind, for the kind to be named: suspicion times the kind's share."""

TWICE_IOU = 0.9
TWICE_SUSPICION = 0.95
TINY_PX = 64
TINY_SHARE = 0.01


def has_tiny_piece(mask: Mask) -> bool:
    """Whether a piece is under 64 px and under 1 % of the mask, or the mask itself is under 16 px."""
    import cv2

    if mask.area < TINY_PX // 4:
        return not mask.is_empty
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.crop, connectivity=8)
    if count <= 2:
        return False
    areas = stats[1:, 4].astype(np.int64)
    return bool((areas < min(TINY_PX, TINY_SHARE * areas.sum())).any())
