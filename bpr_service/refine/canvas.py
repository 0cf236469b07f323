"""Steps 2 and 4 of one image's masks: what patches are cut from, and where their answers are summed.

Letters: H, W are the image's size; S ``network_size_px``, in px; P is the number of patches of all masks, n of those in
a batch, C of output maps.

There are two canvases, one in host memory and one in a device's (:mod:`bpr_service.refine.device_canvas`). Which one is
decided by where the network runs, when an image is prepared, so whoever works on a device gets the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import RefineConfig
from bpr_service.errors import ModelError
from bpr_service.masks.mask import Mask
from bpr_service.refine.crops import crop_patches
from bpr_service.refine.patches import Boxes
from bpr_service.refine.reassemble import Accumulator

Done = TypeVar("Done", covariant=True)


class Canvas(Protocol[Done]):
    """The patches of one image's masks, numbered: each is cut once and added once, in any order."""

    def crops(self, start: int, stop: int) -> Any:
        """Patches `start` to `stop` (exclusive): (n, S, S, 4) uint8 RGB and mask, where the network takes them.

        An array, or a tensor on a device.
        """

    def add(self, start: int, logits: Any) -> None:
        """Add the (n, C, S, S) float32 `logits` of the patches from number `start` on."""

    def finished(self) -> Iterator[Done]:
        """What is complete and was not handed out, for the task to take; may wait for a device.

        Of masks, the number and the sums of each whose last patch is in.

        Raises:
            ModelError: the network gave NaN or infinity.
        """


class HostCanvas:
    """A canvas in the processor's memory. Crops are made when asked for, and sums are held of masks under way only."""

    def __init__(
        self,
        image: NDArray[np.uint8],
        masks: Sequence[Mask],
        boxes: Sequence[Boxes],
        *,
        outputs: int,
        config: RefineConfig,
    ) -> None:
        """For an image, its masks and their patches.

        Args:
            image: (H, W, 3) uint8.
            masks: of the image.
            boxes: where the patches of each mask lie: (P_i, 4) int32, squares of one size.
            outputs: C, of the network's maps those that are summed.
            config: the settings that the patches were placed with.
        """
        self._image, self._masks, self._boxes = image, masks, boxes
        self._outputs, self._config = outputs, config
        self._starts = np.cumsum([0, *(len(some) for some in boxes)])
        self._sums: dict[int, Accumulator] = {}

    def crops(self, start: int, stop: int) -> NDArray[np.uint8]:
        """See `Canvas.crops`."""
        side = self._config.patch.network_size_px
        out = np.empty((stop - start, side, side, 4), np.uint8)
        for i, at, first, last in self._parts(start, stop):
            boxes, into = self._boxes[i][first:last], out[at : at + last - first]
            crop_patches(self._image, self._masks[i], boxes, self._config.patch, into)
        return out

    def add(self, start: int, logits: NDArray[np.float32]) -> None:
        """See `Canvas.add`."""
        if not np.isfinite(logits.sum(dtype=np.float64)):
            raise not_finite()
        height, width = self._image.shape[:2]
        for i, at, first, last in self._parts(start, start + len(logits)):
            if i not in self._sums:
                self._sums[i] = Accumulator(self._boxes[i], height, width, self._outputs, self._config)
            self._sums[i].add(first, logits[at : at + last - first])

    def finished(self) -> Iterator[tuple[int, Accumulator]]:
        """See `Canvas.finished`."""
        for i in [i for i, sums in self._sums.items() if sums.missing == 0]:
            yield i, self._sums.pop(i)

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Patches `start` to `stop` mask by mask: its number, the offset from `start`, first and end of its own."""
        at = start
        while at < stop:
            i = int(np.searchsorted(self._starts, at, side="right")) - 1
            end = min(stop, int(self._starts[i + 1]))
            yield i, at - start, at - int(self._starts[i]), end - int(self._starts[i])
            at = end


def not_finite() -> ModelError:
    """The network's answer cannot be used."""
    return ModelError(
        "the network's answer",
        expected="finite logits",
        got="NaN or infinity",
        fix="check the weights, or run in float32",
    )
