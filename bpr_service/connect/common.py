"""What all connectors need of a refiner.

Letters: n masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Refines(Protocol):
    """A `bpr_service.Refiner` or a `bpr_service.client.Client`."""

    def refine(self, image: Any, masks: Any) -> Any:
        """A result whose ``masks`` are those that came, refined, in their order."""


def refined(refiner: Refines, image: Any, masks: Sequence[Any]) -> list[Any]:
    """The refined masks; nothing is asked where there are none."""
    return list(refiner.refine(image, list(masks)).masks) if len(masks) else []


def boxes_of(masks: Sequence[Any], old: NDArray[Any]) -> NDArray[np.float32]:
    """(n, 4) boxes x0, y0, x1, y1 in px of n masks; an empty mask keeps its `old` one."""
    boxes = np.array([mask.bbox for mask in masks], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    empty = np.array([mask.area == 0 for mask in masks], bool)
    return np.where(empty[:, None], old, boxes).astype(np.float32)
