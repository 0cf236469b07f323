"""One image between the steps: patches placed, waiting for the network.

Letters: P patches of all masks, S ``network_size_px``, C output maps.

This is what lets an engine batch patches of many images: it asks for crops, runs the network when and with
what it likes, hands the logits back, and asks for the result. Crops are made when asked for and a mask is
finished when its last patch is in, so memory does not grow with the number of patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import RefineConfig
from bpr_service.errors import ConflictError, ModelError
from bpr_service.refine.crops import crop_patches
from bpr_service.refine.patches import Boxes
from bpr_service.refine.reassemble import Accumulator
from bpr_service.refine.resident import Resident, not_finite
from bpr_service.refine.tasks import Run, Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor

R = TypeVar("R", bound=Run)


class Prepared(Generic[R]):
    """The patches of one image and its masks.

    `crops` and `add` may be called in any order of patches, each patch once, from one thread at a time.
    """

    def __init__(
        self,
        image: NDArray[np.uint8],
        task: Task[R],
        config: RefineConfig,
        *,
        model: str,
        device: str,
        outputs: int = 1,
    ) -> None:
        """Find the boundary pixels of every mask of the (H, W, 3) `image` and place the patches."""
        self.image, self.task, self.config, self.outputs = image, task, config, outputs
        self.model, self.device = model, device
        self.timings_ms: dict[str, float] = {"patches": 0.0, "crops": 0.0, "network": 0.0, "reassembly": 0.0}
        self._sums: dict[int, Accumulator] = {}
        self._resident: Resident | None = None
        with self.timed("patches"):
            self._number(task.place(config.patch))
        self._missing = self.n_patches

    def _number(self, boxes: list[Boxes]) -> None:
        """Number the patches, mask after mask."""
        self._boxes = boxes
        counts = [one.shape[0] for one in boxes]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)

    def reside(self, device: torch.device) -> None:
        """Keep pixels and sums on `device`: `crops` gives tensors there from now on, and `add` takes them."""
        if self.n_patches:
            with self.timed("crops"):
                self._number(self.task.unite())  # averages come back, not sums: pieces of a mask could not be joined
                self._resident = Resident(
                    self.image, self.task.masks, self._boxes, device, outputs=self.outputs, config=self.config
                )

    @property
    def n_patches(self) -> int:
        """P."""
        return int(self._starts[-1])

    @property
    def n_masks(self) -> int:
        return len(self._boxes)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time spent inside to ``timings_ms[step]``."""
        start = perf_counter()
        try:
            yield
        finally:
            self.timings_ms[step] += 1e3 * (perf_counter() - start)

    def crops(self, start: int, stop: int) -> NDArray[np.uint8] | Tensor:
        """Patches ``start`` to ``stop`` (exclusive, clipped to P): (n, S, S, 4) uint8, RGB and mask."""
        stop = min(stop, self.n_patches)
        if self._resident is not None and start < stop:
            with self.timed("crops"):
                return self._resident.crops(start, stop)
        side = self.config.patch.network_size_px
        out = np.empty((max(stop - start, 0), side, side, 4), np.uint8)
        with self.timed("crops"):
            for i, first, a, b in self._parts(start, stop):
                boxes = self._boxes[i][a:b]
                crop_patches(self.image, self.task.masks[i], boxes, self.config.patch, out[first : first + b - a])
        return out

    def add(self, start: int, logits: NDArray[np.float32] | Tensor) -> None:
        """Hand back the network's answer for the patches from number `start` on.

        `logits`: (n, C, S, S) float32, or (n, S, S) when C is 1. Raises :class:`ModelError` for another shape
        or values that are not finite.
        """
        side = self.config.patch.network_size_px
        if logits.ndim == 3:
            logits = logits[:, None]
        if logits.shape[1:] != (self.outputs, side, side) or start + logits.shape[0] > self.n_patches:
            raise ModelError(
                f"logits of patch {start} on",
                expected=f"(n, {self.outputs}, {side}, {side}) with n of at most {self.n_patches - start}",
                got=str(logits.shape),
                fix="check that the network gives one logit a pixel at its input's size",
            )
        with self.timed("reassembly"):
            if isinstance(logits, np.ndarray):
                self._add(start, logits)
            else:
                assert self._resident is not None, "tensors are for a resident device"
                self._resident.add(start, logits)
                for i, sums in self._resident.ready():
                    self.task.take(i, sums)
        self._missing -= logits.shape[0]

    def _add(self, start: int, logits: NDArray[np.float32]) -> None:
        if not np.isfinite(logits.sum(dtype=np.float64)):
            raise not_finite()
        for i, first, a, b in self._parts(start, start + logits.shape[0]):
            sums = self._sums.get(i)
            if sums is None:
                height, width = self.image.shape[:2]
                sums = self._sums[i] = Accumulator(self._boxes[i], height, width, self.outputs, self.config)
            sums.add(a, logits[first : first + b - a])
            if sums.missing == 0:
                self.task.take(i, self._sums.pop(i))

    def finish(self) -> R:
        """The result. Raises :class:`ConflictError` while patches are missing."""
        if self._missing:
            raise ConflictError(
                "the result is not complete",
                expected=f"the logits of {self.n_patches} patches",
                got=f"{self.n_patches - self._missing}",
                fix="add each patch once before finish()",
            )
        with self.timed("reassembly"):
            if self._resident is not None:
                for i, sums in self._resident.ready(all_in=True):
                    self.task.take(i, sums)
            run = Run(model=self.model, device=self.device, timings_ms=self.timings_ms)
            return self.task.result(run)

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """(mask, offset in the chunk, first and end of the mask's own patches) for patches `start` to
        `stop`.
        """
        at = start
        while at < stop:
            i = int(np.searchsorted(self._starts, at, side="right")) - 1
            end = min(stop, int(self._starts[i + 1]))
            yield i, at - start, at - int(self._starts[i]), end - int(self._starts[i])
            at = end
