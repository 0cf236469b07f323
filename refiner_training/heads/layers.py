"""Layers that several heads are made of, all initialised by one rule.

Letters: N RoIs, C classes (0 is the unused background), D channels, M cells along a side of the grid.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

Init = Literal["paper", "torchvision"]


def own_rng() -> AbstractContextManager[None]:
    """Layers built inside leave the CPU's random numbers as they were.

    For layers whose size depends on the head: what is built after them starts from the same weights in all rows.
    """
    context: AbstractContextManager[None] = torch.random.fork_rng(devices=[])
    return context


def kaiming(module: nn.Module) -> None:
    """Kaiming normal (fan-out) weights and zero biases for every convolution inside."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def conv(in_channels: int, out_channels: int, kernel: int = 3, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """A convolution that keeps the size (divided by its stride), initialised by :func:`kaiming`."""
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=bias)
    kaiming(layer)
    return layer


def small_start(layer: nn.Module) -> None:
    """Weights from a normal distribution of std 0.01 and biases of 0: logits start near 0, whatever the features."""
    assert isinstance(layer, nn.Conv2d)
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def predictor(in_channels: int, outputs: int) -> nn.Conv2d:
    """The 1x1 convolution that ends a branch, started by :func:`small_start` as the papers' released code does."""
    layer = nn.Conv2d(in_channels, outputs, 1)
    small_start(layer)
    return layer


def conv_tower(in_channels: int, channels: int, count: int) -> nn.Sequential:
    """``count`` times (3x3 convolution, ReLU)."""
    steps: list[nn.Module] = []
    for index in range(count):
        steps += [conv(in_channels if index == 0 else channels, channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*steps)


class ClassLogits(nn.Conv2d):
    """1x1 convolution to C class maps that can compute one class per RoI only.

    At 112 x 112 cells and many classes the full (N, C, M, M) tensor would not fit, so the predictor's rows of the
    wanted classes are gathered first.
    """

    def __init__(self, in_channels: int, classes: int, init: Init = "paper") -> None:
        super().__init__(in_channels, classes, 1)
        assert self.bias is not None
        if init == "paper":
            nn.init.normal_(self.weight, std=0.001)
            nn.init.zeros_(self.bias)
        else:
            nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, D, M, M) -> (N, C, M, M), or (N, M, M) of the classes ``labels`` (N,) when they are given."""
        if labels is None:
            return super().forward(features)
        assert self.bias is not None
        rows = self.weight[labels, :, 0, 0]
        chosen = torch.bmm(rows[:, None].to(features.dtype), features.flatten(2))[:, 0]
        return chosen.reshape(features.shape[0], *features.shape[-2:]) + self.bias[labels][:, None, None]


class MaskPredictor(nn.Module):
    """Deconvolution 2x2 (stride 2), ReLU, class logits: Mask R-CNN's predictor, doubling the grid."""

    def __init__(self, in_channels: int, channels: int, classes: int, init: Init = "paper") -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, channels, 2, 2)
        if init == "paper":
            kaiming(self.up)
        else:
            nn.init.kaiming_normal_(self.up.weight, mode="fan_out", nonlinearity="relu")
        self.logits = ClassLogits(channels, classes, init)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, D, M, M) -> (N, C, 2M, 2M), or (N, 2M, 2M) of the classes ``labels`` (N,)."""
        logits: Tensor = self.logits(torch.relu(self.up(features)), labels)
        return logits
