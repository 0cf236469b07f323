"""What refining the boundary could bring at most: predictions with the truth in a band along their own boundary.

Source: Hu et al., IJCV 2022, Table 1: pixels within 1, 2 or 3 px (Euclidean) of the predicted boundary get their true
label, the others stay.
"""

from __future__ import annotations

import cv2
import numpy as np

from bpr_service.masks.mask import Mask


def with_true_band(mask: Mask, truth: Mask, distance_px: int) -> Mask:
    """A mask with the truth's pixels wherever the other side of its own boundary is within a distance.

    The image's border is no boundary.

    Args:
        mask: the prediction.
        truth: of the same image.
        distance_px: at least 1; at 1 the pixels on either side of the boundary are replaced, at 2 one more each.
    """
    if mask.is_empty:
        return mask
    x0, y0, x1, y1 = mask.box
    reach = distance_px + 1
    x0, y0, x1, y1 = max(x0 - reach, 0), max(y0 - reach, 0), min(x1 + reach, mask.width), min(y1 + reach, mask.height)
    own, true = (_window(m, x0, y0, x1, y1) for m in (mask, truth))
    if own.all():  # it fills the image: there is no boundary
        return mask
    # Each pixel's distance to the nearest one of the other side; on its own side a pixel has 0 in the other map.
    inside, outside = (cv2.distanceTransform(side, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for side in (own, 1 - own))
    band = inside + outside <= distance_px + 1e-3
    return Mask.from_window(np.where(band, true, own), x0, y0, mask.height, mask.width)


def _window(mask: Mask, x0: int, y0: int, x1: int, y1: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """(y1 - y0, x1 - x0) {0, 1}: what lies in the window."""
    out = np.zeros((y1 - y0, x1 - x0), np.uint8)
    mx0, my0, mx1, my1 = mask.box
    left, top, right, bottom = max(x0, mx0), max(y0, my0), min(x1, mx1), min(y1, my1)
    if left < right and top < bottom:
        part = mask.crop[top - mask.y : bottom - mask.y, left - mask.x : right - mask.x]
        out[top - y0 : bottom - y0, left - x0 : right - x0] = part > 0
    return out
