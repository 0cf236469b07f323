"""Assess each refined mask of a picture: its confidence, and whether it is taken (do no harm).

Letters: H, W are the picture's size, px; F the number of features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bpr_service.refine.estimate import Estimator, features
from bpr_service.refine.gate import HESITANT

if TYPE_CHECKING:
    from bpr_service.masks.mask import Mask
    from bpr_service.refine.reassemble import Averaged


@dataclass(frozen=True, slots=True)
class Assessment:
    """What is thought of a refined mask.

    Attributes:
        reason: why the coarse mask is kept, or None where the refined one is taken.
        confidence: the expected boundary F at 2 px of the mask that is given back, 0 to 1.
    """

    reason: str | None
    confidence: float


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
        if self.gate and estimate.gain < self.estimator.least_gain:
            return Assessment(HESITANT, estimate.coarse_boundary_f)
        return Assessment(None, estimate.boundary_f)
