"""The masks of one picture through the refiner, with what it saw of each.

Letters: H, W are the picture's size, px; F the number of features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.masks.mask import Mask
from bpr_service.refine.assess import Surroundings
from bpr_service.refine.estimate import Estimator
from bpr_service.refine.prepared import Prepared
from bpr_service.refine.reassemble import Accumulator
from bpr_service.refine.refiner import Refiner
from bpr_service.refine.scale import Scales
from bpr_service.refine.tasks import InstanceTask
from bpr_service.results import Provenance


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the refiner saw of a mask.

    Attributes:
        refined: the refined mask.
        features: (F,) float32 of `bpr_service.refine.estimate.FEATURES`.
        accepted: whether the model's card expects the refined mask to be the better one.
    """

    refined: Mask
    features: NDArray[np.float32]
    accepted: bool


@dataclass(frozen=True, slots=True, eq=False)
class SeenMasks(Provenance):
    """What was seen of each mask of a picture; None of one that has no patches: it is empty, or fills the picture."""

    masks: list[Seen | None]


class SeeingTask(InstanceTask):
    """Each mask refined on its own, and nothing refused."""

    def __init__(
        self,
        masks: Sequence[Mask],
        scales: Scales,
        surroundings: Surroundings,
        estimator: Estimator | None,
    ) -> None:
        super().__init__(masks, scales)
        self.surroundings, self.estimator = surroundings, estimator
        self._seen: dict[int, Seen] = {}

    def take(self, done: tuple[int, Accumulator]) -> None:
        number, patches = done
        index, scale = self._tries[number]
        coarse = self.masks[index]
        features = self.surroundings.features(coarse, patches.averaged(coarse), scale)
        refined, _ = patches.paste(coarse)
        accepted = self.estimator is None or self.estimator(features).gain >= self.estimator.least_gain
        self._seen[index] = Seen(refined, features, accepted)

    def result(self, provenance: Provenance) -> Any:
        seen = [self._seen.get(i) for i in range(len(self.masks))]
        return SeenMasks(model=provenance.model, device=provenance.device, timings_ms=provenance.timings_ms, masks=seen)


def see(
    refiner: Refiner, image: NDArray[np.uint8], masks: Sequence[Mask], among: Sequence[Mask] | None = None
) -> list[Seen | None]:
    """Refine masks of an (H, W, 3) uint8 RGB picture, wherever the refiner's device is, and say what it saw.

    Args:
        refiner: of a model that has an estimate.
        image: (H, W, 3) uint8 RGB.
        masks: those that are looked at.
        among: all masks of the picture, where `masks` are only some of them.

    Raises:
        ModelError, DeviceError: as `Refiner.refine`.
    """
    return refiner.run(prepare_seeing(refiner, image, masks, among)).masks


def prepare_seeing(
    refiner: Refiner, image: NDArray[np.uint8], masks: Sequence[Mask], among: Sequence[Mask] | None = None
) -> Prepared[SeenMasks]:
    """The first stage of `see`, for an engine that batches across pictures; on the CPU."""
    card, config = refiner.card, refiner.config
    surroundings = Surroundings(image, masks if among is None else among)
    task = SeeingTask(
        masks,
        replace(refiner.scales, tries=(1.0,)),
        surroundings,
        Estimator(card.estimate) if card.estimate else None,
    )
    return Prepared(
        image, task, config,
        model=refiner.model.name, device=refiner.runs_on, outputs=card.outputs, resides=refiner.resides,
    )  # fmt: skip
