"""Small synthetic masks and networks that the tests share."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bpr_service.config import RefineConfig, build
from bpr_service.network.backends import Forward
from bpr_service.network.model import Model
from bpr_service.network.weights import EstimateCard, ModelCard, NetworkCard
from bpr_service.refine.reassemble import Gate
from bpr_service.refine.refiner import Refiner


def blob(height: int, width: int, seed: int = 0, share: float = 0.5) -> NDArray[np.uint8]:
    """A (height, width) {0, 1} frame of smooth noise, about `share` of it foreground: parts, holes, all
    borders.
    """
    noise = np.random.default_rng(seed).random((height, width))
    smooth = cv2.GaussianBlur(noise, (0, 0), 4).reshape(height, width)
    return (smooth > np.quantile(smooth, 1.0 - share)).astype(np.uint8)


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A (height, width, 3) uint8 image of noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def edge_cases() -> dict[str, NDArray[np.uint8]]:
    """Masks that break refiners: tiny images, empty, full, one pixel, all borders, holes, parts."""
    cases = {f"{h}x{w}": blob(h, w, h + w) for h, w in ((1, 1), (1, 90), (90, 1), (2, 3), (63, 200), (64, 64))}
    cases["full 1x1"] = np.ones((1, 1), np.uint8)
    cases["empty"], cases["full"] = np.zeros((80, 90), np.uint8), np.ones((80, 90), np.uint8)
    for name, at in {"corner": (0, 0), "far corner": (79, 89), "inside": (40, 40), "last row": (79, 5)}.items():
        cases[f"one pixel, {name}"] = np.zeros((80, 90), np.uint8)
        cases[f"one pixel, {name}"][at] = 1
    cases["all borders"] = np.ones((150, 170), np.uint8)
    cases["all borders"][40:90, 50:120] = 0
    cases["parts"] = blob(150, 170, 3, 0.2)
    return cases


class Paint(nn.Module):
    """A network that sees where red is bright: refines any mask to ``red > 127`` under its patches."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, patches: Tensor) -> Tensor:
        red = patches[:, :1] * 0.229 + 0.485
        return torch.cat([(red - 0.5) * 20] * self.outputs, 1)


class Keep(nn.Module):
    """A network that gives its mask channel back."""

    def forward(self, patches: Tensor) -> Tensor:
        return patches[:, 3:4] * 6


class Shift(nn.Module):
    """A network that gives its mask channel back, three pixels to the right."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, patches: Tensor) -> Tensor:
        return torch.cat([torch.roll(patches[:, 3:4], 3, 3) * 6] * self.outputs, 1)


class Smooth(nn.Module):
    """A network that gives each pixel to the majority of the 5x5 around it."""

    def forward(self, patches: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(patches[:, 3:4], 5, 1, 2) * 6


class Accelerator(Model):
    """The processor, standing in for a device with a memory of its own."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.accelerator = True

    def forward(self, config: RefineConfig) -> Forward:
        """Tensors in, tensors out."""
        run = super().forward(config)
        return lambda patches: torch.from_numpy(run(patches.numpy()))


def refiner(
    network: nn.Module | None = None,
    gate: Gate | None = None,
    outputs: Any = 1,
    kind: type[Model] = Model,
    estimate: EstimateCard | None = None,
    scales: tuple[float, float] = (1.0, 1.0),
    **options: Any,
) -> Refiner:
    """A Refiner around a network that is not trained; `kind` is of what runs it, `options` are fields of
    `RefineConfig`, `estimate` and `scales` go into the card; no specks are taken back unless options say so.
    """
    config = build(RefineConfig, {"specks_px": 0, **options})
    card = ModelCard(name="test", version="1", network=NetworkCard(name="none"), patch=config.patch, outputs=outputs)
    card = card.with_options(estimate=estimate, scales=scales)
    return Refiner(kind(network or Keep(), card), config, gate=gate)
