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
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import RefineConfig
from bpr_service.errors import ConflictError, ModelError
from bpr_service.refine.canvas import Canvas
from bpr_service.refine.tasks import Task
from bpr_service.results import Provenance

R = TypeVar("R", bound=Provenance)


class Prepared(Generic[R]):
    """The patches of one image and its masks.

    `crops` and `add` may be called in any order of patches, each patch once, from one thread at a time.

    Attributes:
        task: what is refined, and what comes of it.
        resides: the device whose memory holds pixels and sums; None for the host's.
        timings_ms: milliseconds of each step so far.
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
        resides: str | None = None,
    ) -> None:
        """Find the boundary pixels of every mask of the (H, W, 3) `image` and place the patches."""
        self.image, self.task, self.config, self.outputs = image, task, config, outputs
        self.model, self.device, self.resides = model, device, resides
        self.timings_ms: dict[str, float] = {"patches": 0.0, "crops": 0.0, "network": 0.0, "reassembly": 0.0}
        with self.timed("patches"):
            self._count = task.place(image, config)
        self._missing = self._count
        self._canvas: Canvas[Any] | None = None

    def _open(self) -> Canvas[Any]:
        """The canvas, made when the first patch is asked for: a device is touched then, not before."""
        if self._canvas is None:
            self._canvas = self.task.open(self.image, self.outputs, self.resides)
        return self._canvas

    @property
    def n_patches(self) -> int:
        """P."""
        return self._count

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time spent inside to ``timings_ms[step]``."""
        start = perf_counter()
        try:
            yield
        finally:
            self.timings_ms[step] += 1e3 * (perf_counter() - start)

    def crops(self, start: int, stop: int) -> Any:
        """Patches ``start`` to ``stop`` (exclusive, clipped to P): (n, S, S, 4) uint8, RGB and mask.

        An array, or a tensor on the device where pixels reside.
        """
        with self.timed("crops"):
            return self._open().crops(start, max(start, min(stop, self.n_patches)))

    def add(self, start: int, logits: Any) -> None:
        """Hand back the network's answer for the patches from number `start` on.

        Args:
            start: number of the first patch.
            logits: (n, C, S, S) float32, or (n, S, S) when C is 1, where the crops were.

        Raises:
            ModelError: another shape, or values that are not finite.
        """
        side = self.config.patch.network_size_px
        if logits.ndim == 3:
            logits = logits[:, None]
        if logits.shape[1:] != (self.outputs, side, side) or start + logits.shape[0] > self.n_patches:
            raise ModelError(
                f"logits of patch {start} on",
                expected=f"(n, {self.outputs}, {side}, {side}) with n of at most {self.n_patches - start}",
                got=str(tuple(logits.shape)),
                fix="check that the network gives one logit a pixel at its input's size",
            )
        with self.timed("reassembly"):
            self._open().add(start, logits)
            self._missing -= logits.shape[0]
            if self._missing:
                self._take()

    def _take(self) -> None:
        """Hand what is complete to the task."""
        for done in self._open().finished():
            self.task.take(done)

    def finish(self) -> R:
        """The result.

        Raises:
            ConflictError: patches are missing.
            ModelError: the network gave NaN or infinity.
        """
        if self._missing:
            raise ConflictError(
                "the result is not complete",
                expected=f"the logits of {self.n_patches} patches",
                got=f"{self.n_patches - self._missing}",
                fix="add each patch once before finish()",
            )
        with self.timed("reassembly"):
            if self.n_patches:
                self._take()
            provenance = Provenance(model=self.model, device=self.device, timings_ms=self.timings_ms)
            return self.task.result(provenance)
