"""At which scale a mask's patches are cut, where none is asked for: that of the detail its picture holds.

A photograph that was enlarged holds no more detail than before: patches of the usual size show the network smooth
ramps where it looks for edges, and a coarse mask that was enlarged along with it shows steps of many pixels. Patches
as many times larger see both as they were. What tells:

- what is lost of the picture when it is made smaller by that factor and large again: of an enlarged one little. A
  photograph by a soft lens or a microscope comes near, and gains nothing by larger patches; so either
- the picture has no grain, the finest differences between neighbours, that a sensor or a compression leaves in every
  other (Immerkaer, Fast noise variance estimation, CVIU 1996), or
- every step of the mask's outline lies on a grid of that many pixels, as nearest-neighbour interpolation leaves it.

Chosen on the val sets of a dozen domains, and on them enlarged 2 to 4 times.

Letters: H, W are the picture's size, px.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bpr_service.masks.mask import Mask

FACTORS = (4, 3, 2)
"""What is looked for, the largest first."""
SOFT = {2: 0.034, 3: 0.14, 4: 0.2}
"""Less of a picture is lost where it was enlarged so many times, over the detail it holds."""
SOFT_ON_GRID = {2: 0.1, 3: 0.3, 4: 0.4}
"""The same where its mask says so too."""
GRAIN = 0.008
"""A picture with less grain, over the detail it holds, was enlarged if it is soft at all."""
ON_GRID = 0.98
"""Share of an outline's steps that lie on the grid of a mask that was enlarged."""
_SHARP = 0.2  # more is lost by twice the factor of what was enlarged, and by the least of what was not
_WINDOW_PX = 96  # a multiple of the factors and their doubles
_WINDOWS = 3  # a side of the picture
_LEAST_DETAIL = 1.0  # mean square of the step between neighbours, in grey levels: below it there is nothing to see
_ROUNDING = 1 / 12  # variance that rounding to whole grey levels leaves


@dataclass(frozen=True, slots=True)
class Scales:
    """The scales that masks are refined at: what is asked for, or each mask's own.

    Attributes:
        asked: the scale of all, or ``auto``.
        tries: times the scale, each to be tried, as far as the model was trained at it.
        least: the least scale that the model was trained at.
        most: the greatest.
    """

    asked: float | Literal["auto"]
    tries: tuple[float, ...]
    least: float
    most: float

    def __call__(self, image: NDArray[np.uint8], masks: Sequence[Mask]) -> list[tuple[float, ...]]:
        """Of each of `masks`, those to try in the (H, W, 3) uint8 RGB `image`."""
        own = self._own(image)
        return [self._tried(own(mask)) for mask in masks]

    def of_map(self, image: NDArray[np.uint8], labels: NDArray[Any]) -> float:
        """Of all labels of an (H, W) map, in an image."""
        return self._own(image)(labels)

    def _own(self, image: NDArray[np.uint8]) -> Callable[[Mask | NDArray[Any]], float]:
        asked = self.asked
        return OwnScale(image, self.most) if asked == "auto" else lambda _: asked

    def _tried(self, scale: float) -> tuple[float, ...]:
        return tuple(scale * t for t in self.tries if self.least <= scale * t <= self.most) or (scale,)


class OwnScale:
    """How many times a picture and its masks were enlarged; looked at in a few windows of the picture."""

    def __init__(self, image: NDArray[np.uint8], most: float) -> None:
        """For the (H, W, 3) uint8 RGB `image`; no scale over `most` is considered."""
        factors = [k for k in FACTORS if k <= most]
        found = detail_lost(image, factors) if factors else Detail({}, 1.0)
        self._soft = [k for k in factors if found.lost[k] < SOFT_ON_GRID[k]]
        sure = (k for k in factors if found.lost[k] < SOFT[k]) if found.grain < GRAIN else ()
        self._sure = float(next(iter(sure), 1))

    def __call__(self, mask: Mask | NDArray[Any]) -> float:
        """The scale for a mask, or for an (H, W) label map."""
        if not self._soft:
            return 1.0
        labels, x, y = (mask.crop, mask.x, mask.y) if isinstance(mask, Mask) else (mask, 0, 0)
        steps = [
            np.nonzero(labels[:, 1:] != labels[:, :-1])[1] + x + 1,
            np.nonzero(labels[1:] != labels[:-1])[0] + y + 1,
        ]
        return float(next((k for k in self._soft if _on_grid(steps, k)), self._sure))


def _on_grid(steps: Sequence[NDArray[np.int64]], factor: int) -> bool:
    """Whether the places of an outline's steps, across and down, lie on a grid of `factor` px."""
    if min(len(some) for some in steps) < 2 * factor:
        return False
    return all(np.bincount(some % factor).max() >= ON_GRID * len(some) for some in steps)


class Detail(NamedTuple):
    """What a picture holds, over the mean square of the step between its neighbours."""

    lost: dict[int, float]
    """By factor: mean square of what it loses when it is made smaller by it and large again."""
    grain: float
    """Variance of its grain."""


def detail_lost(image: NDArray[np.uint8], factors: Sequence[int]) -> Detail:
    """What is lost of a picture made smaller by each of `factors`, and its grain.

    The loss is 1 where it cannot be said: of a picture without detail, or of one that loses as little at twice the
    factor, so that its detail has no scale.

    Args:
        image: (H, W, 3) uint8 RGB.
        factors: whole numbers.
    """
    unknown = Detail(dict.fromkeys(factors, 1.0), 1.0)
    windows = [window for window in _windows(image) if min(window.shape) >= 8 * max(factors)]
    detail = float(np.mean([np.square(np.diff(w, axis=a)).mean() for w in windows for a in (0, 1)])) if windows else 0.0
    if detail < _LEAST_DETAIL:
        return unknown

    @cache
    def lost(factor: int) -> float:
        return float(np.mean([_lost(window, factor) for window in windows])) / detail

    if lost(min(factors)) >= _SHARP:  # what was enlarged more loses less there: most pictures end here
        return unknown
    found = {k: lost(k) for k in factors}
    grain = float(np.mean([_grain(window) for window in windows])) - _ROUNDING
    return Detail({k: v if v >= SOFT[k] or lost(2 * k) > _SHARP else 1.0 for k, v in found.items()}, grain / detail)


def _windows(image: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Grey windows spread over the picture; one where it is small."""
    import cv2

    found = []
    starts = [
        sorted({int(s) for s in np.linspace(0, max(n - _WINDOW_PX, 0), _WINDOWS + 2)[1:-1]}) for n in image.shape[:2]
    ]
    for y in starts[0]:
        for x in starts[1]:
            part = np.ascontiguousarray(image[y : y + _WINDOW_PX, x : x + _WINDOW_PX])
            found.append(np.asarray(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY), np.float32))
    return found


def _lost(window: NDArray[np.float32], factor: int) -> float:
    """Mean square of what a grey window loses when it is made smaller by `factor` and large again."""
    import cv2

    h, w = (n - n % factor for n in window.shape)
    small = cv2.resize(window[:h, :w], (w // factor, h // factor), interpolation=cv2.INTER_AREA)
    again = cv2.resize(small, (w, h), interpolation=cv2.INTER_CUBIC)
    inner = slice(2 * factor, -2 * factor)  # at the rim the enlargement has less to go by
    return float(np.square(window[:h, :w] - again)[inner, inner].mean())


def _grain(window: NDArray[np.float32]) -> float:
    """Variance of a grey window's grain: of the second difference across and down."""
    second = np.diff(np.diff(window, 2, axis=0), 2, axis=1)
    return float(np.square(second).mean()) / 36
