"""Where on its boundary a mask is off: runs of boundary pixels far from the refined outline.

Letters: h, w are a window's size, n boundary pixels; px throughout, in the picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.audit.measures import Offsets
from bpr_service.masks.mask import Mask

LEAST_PX = 1.5
"""A boundary pixel nearer to the refined outline than this is not off."""
SHORTEST_PX = 4
GAP_PX = 5
"""Runs with fewer pixels between them are one."""
MOST = 8


def where_off(mask: Mask, found: Offsets) -> list[dict[str, Any]]:
    """The runs of a mask's boundary that are off, the worst first, at most `MOST`.

    Returns:
        Of each ``box`` [x, y, width, height], ``line`` [[x, y], ...] along the mask's boundary, ``px`` the offset at
        its worst pixel (above 0: the mask ends too early there; below: it goes too far), and ``length_px``.
    """
    import cv2

    if not (np.abs(found.outward) >= LEAST_PX).any():
        return []
    height, width = mask.crop.shape
    offset = np.zeros((height, width), np.float32)
    ys, xs = found.y - mask.y, found.x - mask.x
    offset[ys, xs] = found.outward
    contours, _ = cv2.findContours(mask.crop, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    runs = []
    for contour in contours:
        points = contour.reshape(-1, 2)
        values = offset[points[:, 1], points[:, 0]]
        for run in _runs(np.abs(values) >= LEAST_PX):
            runs.append((points[run], values[run]))
    runs = [run for run in runs if len(run[0]) >= SHORTEST_PX]
    runs.sort(key=lambda run: -float(np.abs(run[1]).sum()))
    return [_told(points + np.array([mask.x, mask.y]), values) for points, values in runs[:MOST]]


def _runs(far: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Indices of each run of True along a closed contour; runs with short gaps between them are one."""
    if far.all():
        return [np.arange(len(far))]
    start = int(np.flatnonzero(~far)[0])  # a run may lie over the end: begin where none is
    at = (np.flatnonzero(np.roll(far, -start)) + start).astype(np.int64)
    if not len(at):
        return []
    parts = np.split(at, np.flatnonzero(np.diff(at) > GAP_PX) + 1)
    if len(parts) > 1 and parts[0][0] + len(far) - parts[-1][-1] <= GAP_PX:
        parts[0] = np.concatenate([parts.pop() - len(far), parts[0]])
    return [np.arange(part[0], part[-1] + 1) % len(far) for part in parts]


def _told(points: NDArray[Any], values: NDArray[np.float32]) -> dict[str, Any]:
    import cv2

    line = cv2.approxPolyDP(points.astype(np.int32).reshape(-1, 1, 2), 1.0, False).reshape(-1, 2)
    (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
    worst = float(values[np.abs(values).argmax()])
    return {
        "box": [x0, y0, x1 - x0 + 1, y1 - y0 + 1],
        "line": line.tolist(),
        "px": round(worst, 1),
        "length_px": len(points),
    }
