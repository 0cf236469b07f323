"""Fast-SCNN (Poudel et al., BMVC 2019), which neither timm nor segmentation-models-pytorch has.

Shapes: P patches of S x S px; c_in, c_out channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv(c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if act else nn.Sequential(*layers)


def _separable(c_in: int, c_out: int, stride: int = 1) -> nn.Module:
    """Depthwise 3x3, then 1x1 (the paper's DSConv)."""
    return nn.Sequential(_conv(c_in, c_in, 3, stride, groups=c_in), _conv(c_in, c_out))


class _Bottleneck(nn.Module):
    """Inverted residual of MobileNetV2 with expansion 6 (Table 2)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        wide = 6 * c_in
        self.block = nn.Sequential(
            _conv(c_in, wide), _conv(wide, wide, 3, stride, groups=wide), _conv(wide, c_out, act=False)
        )
        self.shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return x + y if self.shortcut else y


class _PyramidPooling(nn.Module):
    """Averages over 1, 2, 3 and 6 bins a side, put beside the features (Zhao et al., CVPR 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bins = (1, 2, 3, 6)
        # no batch norm on the pooled maps: one bin of one patch has no variance
        self.reduce = nn.ModuleList(nn.Conv2d(channels, channels // 4, 1) for _ in self.bins)
        self.out = _conv(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [
            F.interpolate(F.relu(conv(F.adaptive_avg_pool2d(x, n))), x.shape[-2:], mode="bilinear", align_corners=False)
            for n, conv in zip(self.bins, self.reduce, strict=True)
        ]
        y: Tensor = self.out(torch.cat([x, *pooled], 1))
        return y


class FastSCNN(nn.Module):
    """Learning to downsample, global features, feature fusion, classifier (Table 1)."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.downsample = nn.Sequential(_conv(channels, 32, 3, 2), _separable(32, 48, 2), _separable(48, 64, 2))
        blocks: list[nn.Module] = []
        c_in = 64
        for c_out, stride in ((64, 2), (96, 2), (128, 1)):
            blocks += [_Bottleneck(c_in, c_out, stride), _Bottleneck(c_out, c_out, 1), _Bottleneck(c_out, c_out, 1)]
            c_in = c_out
        self.context = nn.Sequential(*blocks, _PyramidPooling(128))
        self.fuse_low = _conv(128, 128, 3, groups=128)
        self.fuse_low_out = _conv(128, 128, act=False)
        self.fuse_high = _conv(64, 128, act=False)
        self.classifier = nn.Sequential(
            _separable(128, 128), _separable(128, 128), nn.Dropout(0.1), nn.Conv2d(128, outputs, 1)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """(P, channels, S, S) -> (P, outputs, S, S) logits; S a multiple of 32."""
        high = self.downsample(patches)
        low = F.interpolate(self.context(high), high.shape[-2:], mode="bilinear", align_corners=False)
        fused = F.relu(self.fuse_high(high) + self.fuse_low_out(self.fuse_low(low)))
        return F.interpolate(self.classifier(fused), patches.shape[-2:], mode="bilinear", align_corners=False)
