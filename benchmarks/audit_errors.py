"""Errors of each kind that an audit is to find, put into true masks.

Letters: h, w are a window's size, px.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from bpr_service.masks.mask import Mask

U8 = NDArray[np.uint8]
LEAST_PX, MOST_PX = 3.0, 12.0
MARGIN_PX = 40


def _disk(radius: int) -> U8:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)), np.uint8)


def _fat(mask: U8, px: float, rng: Generator, others: U8) -> U8:
    return np.asarray(cv2.dilate(mask, _disk(round(px))), np.uint8)


def _thin(mask: U8, px: float, rng: Generator, others: U8) -> U8:
    return np.asarray(cv2.erode(mask, _disk(round(px))), np.uint8)


def _shifted(mask: U8, px: float, rng: Generator, others: U8) -> U8:
    angle = rng.uniform(0, 2 * np.pi)
    move = np.array([[1, 0, round(px * np.cos(angle))], [0, 1, round(px * np.sin(angle))]], np.float64)
    return np.asarray(cv2.warpAffine(mask, move, mask.shape[::-1], flags=cv2.INTER_NEAREST), np.uint8)


def _polygonal(mask: U8, px: float, rng: Generator, others: U8) -> U8:
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    drawn = np.zeros_like(mask)
    parts = [cv2.approxPolyDP(contour, px, True) for contour in contours]
    cv2.fillPoly(drawn, [part for part in parts if len(part) >= 3], 1)
    return drawn


def _stairs(mask: U8, px: float, rng: Generator, others: U8) -> U8:
    step = 2.0 * px
    small = cv2.resize(
        mask.astype(np.float32),
        (max(round(mask.shape[1] / step), 2), max(round(mask.shape[0] / step), 2)),
        interpolation=cv2.INTER_AREA,
    )
    return np.asarray(cv2.resize((small > 0.5).astype(np.uint8), mask.shape[::-1], interpolation=cv2.INTER_NEAREST))


def _missing(mask: U8, px: float, rng: Generator, others: U8) -> U8:
    """What lies beyond a line is gone: a tenth to two fifths of the area."""
    ys, xs = np.nonzero(mask)
    angle = rng.uniform(0, 2 * np.pi)
    along = xs * np.cos(angle) + ys * np.sin(angle)
    gone = along > np.quantile(along, 1 - rng.uniform(0.1, 0.4))
    left = mask.copy()
    left[ys[gone], xs[gone]] = 0
    return left


def _swallowed(mask: U8, px: float, rng: Generator, others: U8) -> U8:
    """A touching neighbour, in part or whole; where there is none, something of the background of its size."""
    size = float(np.sqrt(mask.sum()))
    near = cv2.dilate(mask, _disk(3)) > 0
    count, pieces = cv2.connectedComponents(others & (1 - mask), connectivity=4)
    touching = [k for k in np.unique(pieces[near]).tolist() if k]
    if count > 1 and touching:
        theirs = (pieces == touching[int(rng.integers(len(touching)))]).astype(np.uint8)
        reach = cv2.dilate(mask, _disk(max(round(rng.uniform(0.3, 1.0) * size), 4)))
        if (added := theirs & reach).sum() > 0.08 * mask.sum():
            return np.asarray(mask | added, np.uint8)
    edge = np.argwhere(mask & (1 - cv2.erode(mask, np.ones((3, 3), np.uint8))))
    y, x = edge[int(rng.integers(len(edge)))].tolist()
    axes = np.maximum(rng.uniform(0.2, 0.4, 2) * size, px).astype(int)
    grown = mask.copy()
    cv2.ellipse(grown, (x, y), axes.tolist(), float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return grown


def _filled(mask: U8, px: float, rng: Generator, others: U8) -> U8:
    """Holes filled; where there are none, a bay that a disk of up to a third of the object's size does not enter."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    whole = np.zeros_like(mask)
    cv2.fillPoly(whole, contours, 1)
    if whole.sum() - mask.sum() > 0.02 * mask.sum():
        return whole
    radius = max(round(rng.uniform(0.15, 0.35) * float(np.sqrt(mask.sum()))), round(px))
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, _disk(min(radius, MARGIN_PX - 2))), np.uint8)


ERRORS: dict[str, Callable[[U8, float, Generator, U8], U8]] = {
    "too fat": _fat,
    "too thin": _thin,
    "shifted": _shifted,
    "polygonal": _polygonal,
    "stairs": _stairs,
    "missing part": _missing,
    "swallowed neighbour": _swallowed,
    "hole filled": _filled,
}


def with_error(kind: str, truth: Mask, others: Sequence[Mask], rng: Generator) -> Mask | None:
    """A true mask with an error of a kind of 3 to 12 px, at most a sixth of its size.

    None where it leaves the mask as it is, or less than half of it.
    """
    x0, y0, x1, y1 = truth.box
    x0, y0 = max(x0 - MARGIN_PX, 0), max(y0 - MARGIN_PX, 0)
    x1, y1 = min(x1 + MARGIN_PX, truth.width), min(y1 + MARGIN_PX, truth.height)
    window = truth.window(x0, y0, x1, y1)
    near = np.zeros_like(window)
    for other in others:
        near |= other.window(x0, y0, x1, y1)
    most = max(LEAST_PX, min(MOST_PX, float(np.sqrt(truth.area)) / 6))
    wrong = ERRORS[kind](window, float(rng.uniform(LEAST_PX, most)), rng, near)
    shared, both = int((wrong & window).sum()), int((wrong | window).sum())
    if shared == both or shared < 0.5 * both:
        return None
    return Mask.from_window(wrong, x0, y0, truth.height, truth.width)
