"""BoundarySqueeze: two flow-warped features squeeze the boundary from outside and from inside.

Source: He, Li, Cheng, Yan, *BoundarySqueeze: Image Segmentation as Boundary Squeezing*, 2021, section 3.
N RoIs or images, D channels, C classes, h and w cells of the feature map, K the window of the target morphology.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_training.heads.layers import MaskPredictor, conv, conv_tower
from refiner_training.heads.losses import bce_loss, boundary_loss, dice_loss
from refiner_training.heads.protocol import (
    FINEST,
    PYRAMID,
    BoundaryPadding,
    HeadSettings,
    HeadSpec,
    Pooler,
    RoiBatch,
    RoiHead,
)
from refiner_training.heads.targets import squeeze_targets

Auxiliary = Literal["boundary", "contraction", "expansion"]
Fusion = Literal["sum", "concat"]


class SqueezeSettings(HeadSettings):
    """Settings of the instance head.

    Attributes:
        channels: width of the convolutions.
        window_px: K of the dilation and erosion, in cells of the 28 x 28 grid.
        or_boundary: also count the boundary as contraction and expansion (released code; the paper does not).
        fine: add the finest level's features; without them F_sum is F_RoI.
        contraction, expansion: the two directions; each off leaves the other alone.
        auxiliary: which features are trained on targets of their own, of boundary, contraction and expansion.
        dice_weight, bce_weight: of the boundary's loss.
        fusion: how the features become the mask's: their ``sum``, or all of them beside each other (``concat``).
        detach_sum: stop the mask features' gradient in F_sum (released code; the paper does not).
        padding: how the boundary target treats the RoI's border.
        squared: Dice with squared sums (the paper).
        max_rois: most RoIs an image the mask branch trains on.
    """

    channels: int = 256
    window_px: int = 5
    or_boundary: bool = False
    fine: bool = True
    contraction: bool = True
    expansion: bool = True
    auxiliary: tuple[Auxiliary, ...] = ("boundary", "contraction", "expansion")
    dice_weight: float = Field(default=1.0, ge=0)
    bce_weight: float = Field(default=1.0, ge=0)
    fusion: Fusion = "sum"
    detach_sum: bool = False
    padding: BoundaryPadding = "zero"
    squared: bool = True
    max_rois: int | None = None


def warp(features: Tensor, flow: Tensor) -> Tensor:
    """Sample ``features`` (N, D, h, w) at p + flow(p), bilinear, the border continued; float32.

    ``flow`` is (N, 2, h, w), x then y, in cells. The grid runs corner to corner with ``align_corners=True``, so
    a zero flow is the identity. (A corner-to-corner grid read with the default ``align_corners=False``, as
    released, is not: it halves what lies on the edges.)
    """
    height, width = features.shape[-2:]
    with torch.autocast(features.device.type, enabled=False):
        ys = torch.linspace(-1, 1, height, device=features.device)
        xs = torch.linspace(-1, 1, width, device=features.device)
        grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)
        step = torch.tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)], device=features.device)
        where = grid + flow.float().permute(0, 2, 3, 1) * step
        return F.grid_sample(features.float(), where, mode="bilinear", padding_mode="border", align_corners=True)


class Squeeze(nn.Module):
    """One direction: a tower on F_sum gives F'_sum, which a flow warps towards the boundary (eqs. 1 and 2).

    The flow is predicted from F'_sum and F_RoI. What is warped is F'_sum, so the finest level reaches the mask through
    it and the two directions, with towers of their own, differ from the start.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            conv(channels, channels, bias=False), nn.ReLU(inplace=True), conv(channels, channels, bias=False)
        )
        self.flow = conv(2 * channels, 2, bias=False)
        nn.init.zeros_(self.flow.weight)  # training starts from the identity warp

    def forward(self, summed: Tensor, features: Tensor) -> Tensor:
        own = self.tower(summed)
        return warp(own, self.flow(torch.cat([own, features], dim=1))).to(features.dtype)


class BoundarySqueezeModule(nn.Module):
    """Contraction, expansion and boundary features, and their way back into the mask (figure 4, eqs. 3 and 4).

    Args:
        channels: D.
        detach_sum: stop the mask features' gradient in F_sum.
        directions: those that there are, of contraction and expansion.
        fusion: see `SqueezeSettings`.
    """

    def __init__(
        self,
        channels: int,
        detach_sum: bool = False,
        directions: tuple[str, ...] = ("contraction", "expansion"),
        fusion: Fusion = "sum",
    ) -> None:
        super().__init__()
        self.detach_sum, self.concat = detach_sum, fusion == "concat"
        self.directions = nn.ModuleDict({name: Squeeze(channels) for name in directions})
        self.boundary = nn.Sequential(
            conv(channels, channels, bias=False), nn.ReLU(inplace=True), conv(channels, channels, bias=False)
        )
        self.to_mask = conv(channels, channels, 1)
        parts = 2 + len(directions) if self.concat else 1
        self.fusion = nn.Sequential(conv(parts * channels, channels), nn.ReLU(inplace=True))

    def forward(self, features: Tensor, fine: Tensor | None) -> dict[str, Tensor]:
        """F_RoI and F'_RoI (N, D, h, w) -> ``mask, boundary`` and each direction's features of that shape."""
        summed = features.detach() if self.detach_sum else features
        if fine is not None:
            summed = summed + fine
        squeezed = {name: direction(summed, features) for name, direction in self.directions.items()}
        around = sum(squeezed.values(), features)
        boundary = self.boundary(around)
        own = torch.relu(self.to_mask(boundary))
        joined = torch.cat([features, *squeezed.values(), own], dim=1) if self.concat else around + own
        return {"mask": self.fusion(joined), "boundary": boundary, **squeezed}


class BoundarySqueezeHead(RoiHead):
    """BoundarySqueeze as a mask head of Mask R-CNN, 14 x 14 -> 28 x 28."""

    def __init__(self, in_channels: int, classes: int, settings: SqueezeSettings) -> None:
        super().__init__()
        width = settings.channels
        directions = tuple(name for name in ("contraction", "expansion") if getattr(settings, name))
        self.outputs = ("mask", *(name for name in ("boundary", *directions) if name in settings.auxiliary))
        poolers = {"mask": Pooler(PYRAMID, 14)}
        if settings.fine:
            poolers["fine"] = Pooler(FINEST, 28)
        self.spec = HeadSpec("roi", tuple(f"loss_{name}" for name in self.outputs), poolers)
        self.settings, self.max_rois = settings, settings.max_rois
        self.mask_tower = conv_tower(in_channels, width, 4)
        self.downsample: nn.Module | None = None
        if settings.fine:
            self.downsample = nn.Sequential(conv(in_channels, width, stride=2), nn.ReLU(inplace=True))
        self.squeeze = BoundarySqueezeModule(width, settings.detach_sum, directions, settings.fusion)
        self.predictors = nn.ModuleDict({name: MaskPredictor(width, width, classes) for name in self.outputs})

    def forward(self, rois: RoiBatch) -> dict[str, Tensor]:
        fine = None if self.downsample is None else self.downsample(rois.pooled["fine"])
        features = self.squeeze(self.mask_tower(rois.pooled["mask"]), fine)
        wanted = self.outputs if self.training else ("mask",)
        return {name: self.predictors[name](features[name], rois.labels) for name in wanted}

    def losses(self, out: dict[str, Tensor], rois: RoiBatch) -> dict[str, Tensor]:
        masks, boundaries = rois.boundary_targets(out["mask"].shape[-1], self.settings.padding)
        shells = squeeze_targets(masks, boundaries, self.settings.window_px, self.settings.or_boundary)
        squared = self.settings.squared
        losses = {"loss_mask": bce_loss(out["mask"], masks)}
        if "boundary" in self.outputs:
            losses["loss_boundary"] = boundary_loss(
                out["boundary"],
                boundaries,
                dice_weight=self.settings.dice_weight,
                bce_weight=self.settings.bce_weight,
                squared=squared,
            )
        for name, target in zip(("contraction", "expansion"), shells, strict=True):
            if name in self.outputs:
                losses[f"loss_{name}"] = dice_loss(out[name], target, squared=squared)
        return losses
