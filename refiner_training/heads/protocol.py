"""What a head says of itself and how an architecture talks to it.

Letters: N RoIs of the batch, n_i RoIs and G_i instances of image i, M cells along a side of the grid, C classes
with 0 as background, H and W pixels of the (padded) image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bpr_service.config import Settings
from refiner_training.heads.targets import binarise, laplace_boundary, project_masks

PYRAMID = ("0", "1", "2", "3")  # P2..P5 of a Mask R-CNN
FINEST = ("0",)  # P2 alone
BoundaryPadding = Literal["zero", "context"]


class HeadSettings(Settings):
    """Base of every head's settings: frozen, and an unknown key is an error."""


@dataclass(frozen=True)
class Pooler:
    """A RoIAlign: the pyramid levels it reads and the cells along a side of its output."""

    levels: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class HeadSpec:
    """What a head needs and gives.

    Attributes:
        kind: ``roi`` (Mask R-CNN), ``basis`` (BlendMask, YOLACT) or ``dense`` (DeepLabV3+).
        loss_names: keys that the head adds to the architecture's losses, in order.
        poolers: the RoI features it reads.
        score_keys: keys of the scores in a prediction; the last one ranks masks.
    """

    kind: Literal["roi", "basis", "dense"]
    loss_names: tuple[str, ...]
    poolers: Mapping[str, Pooler] = field(default_factory=dict)
    score_keys: tuple[str, ...] = ("scores",)


@dataclass(frozen=True)
class RoiTruth:
    """Ground truth of a batch's RoIs; lists have one entry per image.

    Attributes:
        masks: (G_i, H, W).
        labels: (G_i,) int64.
        matched: (n_i,) int64, the instance of each RoI.
    """

    masks: list[Tensor]
    labels: list[Tensor]
    matched: list[Tensor]


@dataclass(frozen=True)
class RoiBatch:
    """What a RoI head gets for one batch.

    Attributes:
        pooled: for each pooler of the spec (N, D, size, size).
        boxes: per image (n_i, 4), ``x0 y0 x1 y1`` in pixels of the network's input.
        labels: (N,) int64: the matched class in training, the predicted class in evaluation.
        truth: None in evaluation.
    """

    pooled: dict[str, Tensor]
    boxes: list[Tensor]
    labels: Tensor
    truth: RoiTruth | None = None

    def mask_targets(self, size: int, *, soft: bool = False) -> Tensor:
        """(N, M, M) mask targets on the RoI grid: 0 and 1, or fractions when ``soft``."""
        grids = self._project(size, 0)
        return grids if soft else binarise(grids)

    def boundary_targets(
        self, size: int, padding: BoundaryPadding, operator: Callable[..., Tensor] = laplace_boundary
    ) -> tuple[Tensor, Tensor]:
        """Binary masks and their boundary (the inner one, of `laplace_boundary`), each (N, M, M).

        ``zero``: foreground at the border of the RoI becomes boundary (the reference implementations).
        ``context``: one cell beyond the RoI decides, so an object that goes on is not cut.
        """
        if padding == "zero":
            masks = binarise(self._project(size, 0))
            return masks, operator(masks, "zero")
        grown = binarise(self._project(size, 1))
        return grown[:, 1:-1, 1:-1], operator(grown, "none")

    def _project(self, size: int, margin: int) -> Tensor:
        assert self.truth is not None, "targets exist in training only"
        grids = [
            project_masks(masks, boxes, matched, size, margin=margin)
            for masks, boxes, matched in zip(self.truth.masks, self.boxes, self.truth.matched, strict=True)
        ]
        return torch.cat(grids)


class OwnRandom:
    """A model's own random numbers on any device, so that drawing them never shifts the detector's sampling."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def reseed(self, seed: int) -> None:
        """Start all devices' numbers anew; the trainer does this at every step, which makes resuming exact."""
        self._seed = seed
        self._generators.clear()

    def on(self, device: torch.device) -> torch.Generator:
        """The generator of one device."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]

    def choose(self, count: int, most: int | None, device: torch.device) -> Tensor:
        """Indices of at most ``most`` of ``count`` things, ascending; all of them when they are few enough."""
        if most is None or count <= most:
            return torch.arange(count, device=device)
        return torch.randperm(count, generator=self.on(device), device=device)[:most].sort().values


class RoiHead(nn.Module, ABC):
    """A mask head of Mask R-CNN.

    Attributes:
        spec: what it needs and gives.
        max_rois: most RoIs an image that the mask branch trains on; None is all positive ones.
        values: what the last loss was made of, for a log only.
    """

    spec: HeadSpec
    max_rois: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.random = OwnRandom()
        self.values: dict[str, Tensor] = {}

    @abstractmethod
    def forward(self, rois: RoiBatch) -> dict[str, Tensor]:
        """Logits of the classes ``context.labels``; at least ``mask`` (N, M, M). Auxiliary ones in training only."""

    @abstractmethod
    def losses(self, out: dict[str, Tensor], rois: RoiBatch) -> dict[str, Tensor]:
        """Losses, keyed as ``spec.loss_names``; finite zeros on the graph when N is 0."""

    def predict(self, out: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mask probabilities (N, 1, M, M) and a factor (N,) for the scores, or None."""
        return torch.sigmoid(out["mask"].float())[:, None], None

    def after_step(self) -> None:
        """Called once after each optimiser step; a head with a memory writes it here."""

    def training_state(self) -> dict[str, Any]:
        """State that only training needs (it goes into checkpoints, not into the state dict)."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`training_state` gave."""
