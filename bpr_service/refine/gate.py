"""Do no harm: when to keep the coarse mask.

A refined mask is taken where the network is certain of what it changed. Its certainty of a pixel is ``|2 p - 1|``, with
p the averaged foreground probability; over the pixels that a refinement would change, the mean certainty is also the
network's own estimate of the share of them that it mends less the share that it spoils. Masks that are exact already
get few and hesitant changes, and those are what the gate refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from bpr_service.masks.mask import Mask
    from bpr_service.refine.reassemble import Averaged

HESITANT = "the model expects no gain"


@dataclass(frozen=True, slots=True)
class CertaintyGate:
    """Keep the coarse mask when the changes' mean certainty is below ``least`` (0 to 1; from the model's card)."""

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
