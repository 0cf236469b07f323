"""Assess each refined mask of a picture: its confidence, and whether it is taken (do no harm).

Where the model's card holds an estimate of what a change is worth, that decides; where it holds none, a refined mask is
taken where the network is certain of what it changed (`CertaintyGate`).

Letters: H, W are the picture's size, px; F the number of features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from bpr_service.refine.estimate import Estimator, features
from bpr_service.refine.reassemble import sigmoid

if TYPE_CHECKING:
    from bpr_service.masks.mask import Mask
    from bpr_service.refine.reassemble import Averaged

Box = tuple[int, int, int, int]
CELL_PX, PLACE_CELLS = 4, 8
MOST_PLACES, WRONG_SHARE = 5, 0.125
HESITANT = "the model expects no gain"


@dataclass(frozen=True, slots=True)
class Assessment:
    """What is thought of a refined mask.

    Attributes:
        reason: why the coarse mask is kept, or None where the refined one is taken.
        confidence: the expected boundary F at 2 px of the mask that is given back, 0 to 1.
        refined: the same of the refined mask, taken or not.
        uncertain: boxes (x, y, width, height) in image px where the network expects many of its decisions to be wrong,
            the worst first.
    """

    reason: str | None
    confidence: float
    refined: float
    uncertain: tuple[Box, ...] = ()


class Surroundings:
    """A picture and its masks, as the features of a change need them."""

    def __init__(self, image: NDArray[np.uint8], masks: Sequence[Mask]) -> None:
        """`image`: (H, W, 3) uint8 RGB; `masks`: all of the picture."""
        self.image, self.masks = image, masks
        self._depth: NDArray[np.uint8] | None = None

    def features(self, coarse: Mask, averaged: Averaged, scale: float) -> NDArray[np.float32]:
        """(F,) float32 features of what became of `coarse`, one of the masks, at `scale`."""
        h, w = averaged.covered.shape
        rows, columns = slice(averaged.y, averaged.y + h), slice(averaged.x, averaged.x + w)
        mask = coarse.window(averaged.x, averaged.y, averaged.x + w, averaged.y + h)
        return features(
            mask,
            averaged.covered,
            averaged.probability,
            self.image[rows, columns],
            area=coarse.area,
            scale=scale,
            soft=coarse.soft is not None,
            auxiliary=averaged.auxiliary,
            others=(self.depth[rows, columns] > mask).astype(np.uint8),
        )

    @property
    def depth(self) -> NDArray[np.uint8]:
        """(H, W) uint8: how many masks lie over a pixel, at most 255; made once a picture."""
        if self._depth is None:
            self._depth = np.zeros(self.image.shape[:2], np.uint8)
            for mask in self.masks:
                part = self._depth[mask.y : mask.y + mask.crop.shape[0], mask.x : mask.x + mask.crop.shape[1]]
                part += (mask.crop > 0) & (part < 255)
        return self._depth


class Assessor:
    """Estimates what each change of a picture's masks is worth, and refuses those expected to be worth too little."""

    def __init__(
        self, image: NDArray[np.uint8], masks: Sequence[Mask], *, estimator: Estimator, gate: bool = True
    ) -> None:
        """As `Surroundings`; `gate`: whether anything is refused."""
        self.surroundings, self.estimator, self.gate = Surroundings(image, masks), estimator, gate

    def __call__(self, coarse: Mask, averaged: Averaged, scale: float) -> Assessment:
        """What is thought of the refined mask that `averaged` gives at `scale`."""
        estimate = self.estimator(self.surroundings.features(coarse, averaged, scale))
        places = uncertain_places(averaged, scale)
        if self.gate and estimate.gain < self.estimator.least_gain:
            return Assessment(HESITANT, estimate.coarse_boundary_f, estimate.boundary_f, places)
        return Assessment(None, estimate.boundary_f, estimate.boundary_f, places)


def uncertain_places(averaged: Averaged, scale: float) -> tuple[Box, ...]:
    """Up to `MOST_PLACES` squares, apart from each other, in which many pixels are probably decided wrongly.

    Many: the network's own second map expects a share of `WRONG_SHARE` of all pixels or more. None where it has no such
    map.

    It is looked at in cells of `CELL_PX` a side; squares are as large as patches are: `PLACE_CELLS` at scale 1.
    """
    if averaged.auxiliary is None:
        return ()
    (h, w), cell = averaged.covered.shape, max(round(CELL_PX * scale), 1)
    size = (-(-w // cell), -(-h // cell))
    log_odds, covered = (
        np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.float32)
        for part in (averaged.auxiliary, averaged.covered.astype(np.float32))
    )
    wrong = cv2.boxFilter(sigmoid(log_odds) * covered, -1, (PLACE_CELLS,) * 2, borderType=cv2.BORDER_CONSTANT)
    places: list[Box] = []
    while len(places) < MOST_PLACES:
        row, column = divmod(int(wrong.argmax()), size[0])
        if wrong[row, column] < WRONG_SHARE:
            break
        top, left = max(row - PLACE_CELLS // 2, 0), max(column - PLACE_CELLS // 2, 0)
        x, y = left * cell, top * cell
        side_x, side_y = min(PLACE_CELLS * cell, w - x), min(PLACE_CELLS * cell, h - y)
        places.append((averaged.x + x, averaged.y + y, side_x, side_y))
        wrong[max(row - PLACE_CELLS, 0) : row + PLACE_CELLS, max(column - PLACE_CELLS, 0) : column + PLACE_CELLS] = 0
    return tuple(places)


@dataclass(frozen=True, slots=True)
class CertaintyGate:
    """Keep the coarse mask when the changes' mean certainty is below ``least`` (0 to 1; from the model's card).

    The certainty of a pixel is ``|2 p - 1|``, with p the averaged foreground probability; over the pixels that a
    refinement would change its mean is also the network's own estimate of the share of them that it mends less the
    share that it spoils. Masks that are exact already get few and hesitant changes, and those are what it refuses.
    """

    least: float

    def __call__(self, coarse: Mask, averaged: Averaged) -> str | None:
        """The reason to keep ``coarse``, or None to take the refined mask."""
        probability = averaged.probability
        height, width = probability.shape
        before = coarse.window(averaged.x, averaged.y, averaged.x + width, averaged.y + height)
        changed = averaged.covered & ((probability >= 0.5) != (before > 0))
        if not changed.any():
            return None
        certainty = float(np.abs(2.0 * probability[changed] - 1.0).mean())
        return HESITANT if certainty < self.least else None
