"""A window of a scene around one mask: the picture, the truth and a real coarse mask where there is one.

Shapes: h, w the window (px).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from refiner_training.data.scenes.store import IGNORED, IGNORED_INSIDE, Placed, SceneStore

U8 = NDArray[np.uint8]
Box = tuple[int, int, int, int]

WIDEST_PX = 640
"""Of an object that is longer, a window of this side around a place of its edge is taken."""
SPARE_PX = 24
FAR = 1 << 20


@dataclass(frozen=True, slots=True)
class ViewConfig:
    """Picture px that a patch takes with its padding, and how much the picture is shrunk."""

    side_px: float
    shrink: float = 1.0


@dataclass(frozen=True, slots=True)
class View:
    """A window, resized.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        truth: (h, w) uint8: 0, 1, and what is ignored.
        coarse: (h, w) uint8 0 to 255, a real network's mask, or None.
        is_soft: the real mask has probabilities.
        inside: the image's own extent in the window (x0, y0, x1, y1); sides that are no border are far away.
        usable: where patches may be centred (x0, y0, x1, y1).
        box: the window in the picture (x0, y0, x1, y1).
    """

    image: U8
    truth: U8
    coarse: U8 | None
    is_soft: bool
    inside: Box
    usable: Box
    box: Box

    def others(self, store: SceneStore, index: int) -> U8:
        """(h, w) uint8 {0, 1}: the other masks of the picture that do not overlap the ``index``-th."""
        height, width = self.truth.shape
        whole = _window((self.box[0], self.box[1], np.zeros((0, 0), np.uint8)), self.box)
        _, x, y, crop = store.mask(index)
        own = _window((x, y, (crop == 1).astype(np.uint8)), self.box)
        x0, y0, x1, y1 = self.box
        for other in store.beside(index):
            _, left, top, w, h, _ = store.masks[other]
            if other == index or left >= x1 or top >= y1 or left + w <= x0 or top + h <= y0:
                continue
            _, x, y, crop = store.mask(other)
            mask = _window((x, y, (crop == 1).astype(np.uint8)), self.box)
            if int((mask & own).sum()) <= 0.02 * min(int(mask.sum()), int(own.sum())):
                whole |= mask
        return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def view_of(store: SceneStore, index: int, config: ViewConfig, rng: Generator) -> View:
    """The window around the ``index``-th mask that patches along it need."""
    which, x, y, crop = store.mask(index)
    image = store.image(which)
    height, width = image.shape[:2]
    margin = round((config.side_px / 2 + SPARE_PX) / config.shrink)
    box, cut = _box(x, y, crop, margin, round(WIDEST_PX / config.shrink), rng)
    x0, y0, x1, y1 = max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height)
    part, truth = image[y0:y1, x0:x1], _window((x, y, crop), (x0, y0, x1, y1))
    given = store.coarse(index)
    coarse = None if given is None else _window(given, (x0, y0, x1, y1))
    is_soft = given is not None and bool(((given[2] > 0) & (given[2] < 255)).any())
    if config.shrink != 1.0:
        part, truth, coarse = _shrunk(part, truth, coarse, config.shrink)
    h, w = truth.shape
    inside = (
        0 if x0 == 0 else -FAR, 0 if y0 == 0 else -FAR, w if x1 == width else FAR, h if y1 == height else FAR,
    )  # fmt: skip
    keep = round(margin * config.shrink)
    usable = (
        keep if cut[0] and x0 > 0 else 0, keep if cut[1] and y0 > 0 else 0,
        w - keep if cut[0] and x1 < width else w, h - keep if cut[1] and y1 < height else h,
    )  # fmt: skip
    return View(part, truth, coarse, is_soft, inside, usable, (x0, y0, x1, y1))


def _box(x: int, y: int, crop: U8, margin: int, widest: int, rng: Generator) -> tuple[Box, tuple[bool, bool]]:
    """The window of a mask, and whether it cuts the mask across x and y."""
    h, w = crop.shape
    cut = (w > widest, h > widest)
    if not any(cut):
        return (x - margin, y - margin, x + w + margin, y + h + margin), cut
    edge = cv2.morphologyEx((crop == 1).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    places = np.flatnonzero(edge)
    row, column = divmod(int(places[rng.integers(len(places))]) if len(places) else 0, w)
    half = widest // 2
    x0, x1 = (x + column - half, x + column + half) if cut[0] else (x, x + w)
    y0, y1 = (y + row - half, y + row + half) if cut[1] else (y, y + h)
    return (x0 - margin, y0 - margin, x1 + margin, y1 + margin), cut


def _window(placed: Placed, box: Box) -> U8:
    """What a placed crop shows in a box: (h, w) uint8, 0 outside the crop."""
    x, y, crop = placed
    x0, y0, x1, y1 = box
    out = np.zeros((y1 - y0, x1 - x0), np.uint8)
    h, w = crop.shape
    a, b, c, d = max(x, x0), max(y, y0), min(x + w, x1), min(y + h, y1)
    if a < c and b < d:
        out[b - y0 : d - y0, a - x0 : c - x0] = crop[b - y : d - y, a - x : c - x]
    return out


def _shrunk(image: U8, truth: U8, coarse: U8 | None, scale: float) -> tuple[U8, U8, U8 | None]:
    """Picture, truth and coarse mask resized alike; a pixel that is half ignored is ignored."""
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    part = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    inside = ((truth == 1) | (truth == IGNORED_INSIDE)).astype(np.float32)
    ignored = cv2.resize((truth >= IGNORED_INSIDE).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    small = (cv2.resize(inside, size, interpolation=cv2.INTER_AREA) > 0.5).astype(np.uint8)
    small[ignored] = np.where(small[ignored] == 1, np.uint8(IGNORED_INSIDE), np.uint8(IGNORED))
    if coarse is not None:
        coarse = np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_AREA), np.uint8)
    return part, small, coarse
