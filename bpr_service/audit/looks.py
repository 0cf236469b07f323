"""Measures of the picture under a mask: what of the inside looks like the outside, and where the edge is weak.

Letters: h, w are a window's size, px; n points along a contour.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bpr_service.audit.shapes import slopes

U8 = NDArray[np.uint8]

LOOKS = (
    "inside looks like inside",
    "outside looks like outside",
    "inside that looks like outside",
    "its largest blob",
    "its largest blob away from the edge",
    "outside that looks like inside",
    "its largest blob at the edge",
    "weakest tenth of the edge",
    "weakest quarter of the edge",
    "middle of the edge",
    "longest weak run",
    "on the picture's edge",
)
"""What is measured of the picture, in the order of the vector."""

SIDE_PX = 96
"""Longer side to which a window is reduced before colours are compared."""
ODDS = 0.7


def looks(image: U8, mask: U8, soft: NDArray[np.float32]) -> list[float]:
    """The measures of `LOOKS` of a window: (h, w, 3) uint8 RGB, the (h, w) uint8 {0, 1} mask, and that `blurred`."""
    return [*_colours(image, mask), *_edge(image, mask, soft)]


def _colours(image: U8, mask: U8) -> list[float]:
    import cv2

    height, width = mask.shape
    scale = min(1.0, SIDE_PX / max(height, width))
    if scale < 1:
        size = (max(round(width * scale), 4), max(round(height * scale), 4))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        mask = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    inside = mask > 0
    bins = (image >> 5).astype(np.int32)
    index = bins[..., 0] * 64 + bins[..., 1] * 8 + bins[..., 2]
    counts = np.stack([np.bincount(index[where], minlength=512) for where in (~inside, inside)]).astype(np.float64)
    share = (counts + 0.5) / (counts.sum(1, keepdims=True) + 256.0)
    odds = np.log(share[1] / share[0])[index].astype(np.float32)
    odds = cv2.blur(np.clip(odds, -4, 4), (5, 5))
    alien = (inside & (odds < -ODDS)).astype(np.uint8)
    kin = (~inside & (odds > ODDS)).astype(np.uint8)
    area = max(float(inside.sum()), 1.0)
    core = np.asarray(cv2.erode(mask, np.ones((5, 5), np.uint8)), np.uint8)
    grown = np.asarray(cv2.dilate(mask, np.ones((3, 3), np.uint8)), np.uint8)
    blob, deep = _largest(alien, core, whole=True)
    _, near = _largest(kin, grown, whole=False)
    return [
        float(odds[inside].mean()) if inside.any() else 0.0,
        -float(odds[~inside].mean()) if not inside.all() else 0.0,
        float(alien.sum()) / area,
        blob / area,
        deep / area,
        min(float(kin.sum()) / area, 4.0),
        min(near / area, 4.0),
    ]


def _largest(blobs: U8, where: U8, *, whole: bool) -> tuple[float, float]:
    """Area of the largest blob, and of the largest that lies in `where`, all of it (`whole`) or in touch."""
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(blobs, connectivity=4)
    if count < 2:
        return 0.0, 0.0
    areas = stats[1:, 4].astype(np.float64)
    over = np.bincount(labels[where > 0], minlength=count)[1:]
    chosen = areas[over >= areas] if whole else areas[over > 0]
    return float(areas.max()), float(chosen.max(initial=0.0))


def _edge(image: U8, mask: U8, soft: NDArray[np.float32]) -> list[float]:
    """The picture's step across the longest contour, 2 px to both sides, averaged over 9 px along it."""
    import cv2

    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = max(contours, key=len).reshape(-1, 2)
    height, width = mask.shape
    border = (points[:, 0] < 1) | (points[:, 1] < 1) | (points[:, 0] > width - 2) | (points[:, 1] > height - 2)
    if len(points) < 8 or border.all():
        return [0.0, 0.0, 0.0, 0.0, float(border.mean())]
    slope = slopes(soft, points[:, 0], points[:, 1])
    ends = [np.rint(points + k * slope).astype(int) for k in (2.0, -2.0)]
    values = [
        image[np.clip(end[:, 1], 0, height - 1), np.clip(end[:, 0], 0, width - 1)].astype(np.float32) for end in ends
    ]
    step = np.abs(values[0] - values[1]).max(1)
    kernel = np.ones(9) / 9
    smooth = np.convolve(np.concatenate([step[-4:], step, step[:4]]), kernel, "valid")[~border]
    tenth, quarter, middle = np.quantile(smooth, [0.1, 0.25, 0.5])
    return [
        float(np.log1p(tenth)),
        float(np.log1p(quarter)),
        float(np.log1p(middle)),
        _longest_run(smooth < 0.35 * middle) / len(smooth),
        float(border.mean()),
    ]


def _longest_run(flags: NDArray[np.bool_]) -> int:
    """The longest run of True."""
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flags.view(np.int8), [0]])))
    return int((changes[1::2] - changes[::2]).max(initial=0))
