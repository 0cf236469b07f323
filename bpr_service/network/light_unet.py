"""A light U-Net made for CPUs: few layers, wide products, no full-resolution convolution.

Shapes: P patches, S network size (px), W channels of the first stage.

The input is folded 2x2 into channels, so every convolution works at half resolution or below, where the products
are large enough to run near the processor's peak; the last one unfolds 2x2 back, so no pixel of detail is lost.
The mask channel is added to the logit (a residual), so that an undecided network keeps the mask it was given.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLE_PX = 16
"""S must be a multiple of this: a 2x2 fold and three halvings."""


class _ConvBlock(nn.Sequential):
    """3x3 convolution, batch norm, ReLU: (P, C_in, h, w) -> (P, C_out, h/stride, w/stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv2d(c_in, c_out, 3, stride, dilation, dilation, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
        )


class _Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut, the second dilated: context without losing resolution."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.first = _ConvBlock(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, dilation, dilation, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class LightUNet(nn.Module):
    """U-Net over 2x2-folded patches (after Ronneberger et al., MICCAI 2015; the fold after Shi et al., CVPR 2016).

    Args:
        widths: channels at 1/2, 1/4, 1/8 and 1/16 of the network size.
        depth: residual blocks at 1/8 and at 1/16.
        outputs: maps out; 1 is the foreground logit.
        mask_channel: False hides the mask from the network, which then sees the image alone (the ablation of Hu et
            al., IJCV 2022, Table 2).
    """

    def __init__(
        self, widths: tuple[int, int, int, int], depth: int = 1, outputs: int = 1, mask_channel: bool = True
    ) -> None:
        super().__init__()
        self.mask_channel = mask_channel
        a, b, c, d = widths
        self.stem = nn.Sequential(_ConvBlock(16, a), _ConvBlock(a, a))
        self.down1 = nn.Sequential(_ConvBlock(a, b, 2), _ConvBlock(b, b))
        self.down2 = nn.Sequential(_ConvBlock(b, c, 2), *[_Residual(c, 1) for _ in range(depth)])
        self.down3 = nn.Sequential(_ConvBlock(c, d, 2), *[_Residual(d, 2) for _ in range(depth)])
        self.up2 = _ConvBlock(d + c, c)
        self.up1 = nn.Sequential(_ConvBlock(c + b, b), _ConvBlock(b, b))
        self.up0 = nn.Sequential(_ConvBlock(b + a, a), _ConvBlock(a, a))
        self.head = nn.Conv2d(a, 4 * outputs, 3, 1, 1)
        self.residual = nn.Parameter(torch.tensor(2.0))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, patches: Tensor) -> Tensor:
        """(P, 4, S, S) normalised RGB + mask in [-1, 1] -> (P, outputs, S, S) logits; S a multiple of 16."""
        if not self.mask_channel:
            patches = torch.cat((patches[:, :3], torch.zeros_like(patches[:, 3:])), 1)
        x0 = self.stem(F.pixel_unshuffle(patches, 2))
        x1 = self.down1(x0)
        x2 = self.down2(x1)
        y = self.down3(x2)
        y = self.up2(torch.cat((_double(y), x2), 1))
        y = self.up1(torch.cat((_double(y), x1), 1))
        y = self.up0(torch.cat((_double(y), x0), 1))
        logits = F.pixel_shuffle(self.head(y), 2)
        foreground = logits[:, :1] + self.residual * patches[:, 3:4]
        return torch.cat((foreground, logits[:, 1:]), 1) if logits.shape[1] > 1 else foreground


def _double(x: Tensor) -> Tensor:
    """(P, C, h, w) -> (P, C, 2h, 2w)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
