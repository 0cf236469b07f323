"""BMask R-CNN: predict the instance's boundary beside its mask and let the two features help each other.

Source: Cheng, Wang, Huang, Liu, *Boundary-preserving Mask R-CNN*, ECCV 2020, section 3.
N RoIs, C classes; features are (N, D, 14, 14), logits (N, 28, 28) of the chosen class.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from refiner_training.heads.layers import MaskPredictor, conv, conv_tower
from refiner_training.heads.losses import bce_loss, boundary_loss
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
from refiner_training.heads.targets import laplace_boundary, sobel_boundary


class BMaskSettings(HeadSettings):
    """Settings of BMask R-CNN.

    Attributes:
        channels: width of the convolutions.
        padding: how the boundary target treats the RoI's border (``zero`` is the reference).
        squared: Dice with squared sums (the paper); False is the released code.
        target: what the boundary branch is trained to give: the ``laplacian``'s inner boundary, ``sobel``'s two-sided
            one, or the ``mask`` itself: the same arithmetic without a boundary.
        dice_weight, bce_weight: of the boundary loss, Dice + lambda BCE; 0 leaves the other alone.
        weighted: balance the two classes in its BCE.
        fusion: which of the two fusions there are; ``none`` leaves two branches that meet in the loss alone.
        max_rois: most RoIs an image the mask branch trains on.
    """

    channels: int = 256
    padding: BoundaryPadding = "zero"
    squared: bool = True
    target: Literal["laplacian", "sobel", "mask"] = "laplacian"
    dice_weight: float = Field(default=1.0, ge=0)
    bce_weight: float = Field(default=1.0, ge=0)
    weighted: bool = False
    fusion: Literal["both", "mask_to_boundary", "boundary_to_mask", "none"] = "both"
    max_rois: int | None = None


class BMaskHead(RoiHead):
    """Mask and boundary branches with mask-to-boundary and boundary-to-mask fusion (figure 4)."""

    def __init__(self, in_channels: int, classes: int, settings: BMaskSettings) -> None:
        super().__init__()
        width = settings.channels
        poolers = {"mask": Pooler(PYRAMID, 14), "boundary": Pooler(FINEST, 28)}
        self.spec = HeadSpec("roi", ("loss_mask", "loss_boundary"), poolers)
        self.settings, self.max_rois = settings, settings.max_rois
        self.mask_tower = conv_tower(in_channels, width, 4)
        self.downsample = nn.Sequential(conv(in_channels, width, stride=2), nn.ReLU(inplace=True))
        to_boundary = settings.fusion in ("both", "mask_to_boundary")
        to_mask = settings.fusion in ("both", "boundary_to_mask")
        self.mask_to_boundary = conv(width, width, 1) if to_boundary else None
        self.boundary_tower = conv_tower(width, width, 2)
        self.boundary_to_mask = conv(width, width, 1) if to_mask else None
        self.fusion = nn.Sequential(conv(width, width), nn.ReLU(inplace=True))
        self.mask_predictor = MaskPredictor(width, width, classes)
        self.boundary_predictor = MaskPredictor(width, width, classes)

    def features(self, pooled: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The fused mask features and the boundary features, each (N, D, 14, 14)."""
        mask = self.mask_tower(pooled["mask"])
        boundary = self.downsample(pooled["boundary"])
        if self.mask_to_boundary is not None:
            boundary = boundary + torch.relu(self.mask_to_boundary(mask))
        boundary = self.boundary_tower(boundary)
        if self.boundary_to_mask is not None:
            mask = mask + torch.relu(self.boundary_to_mask(boundary))
        return self.fusion(mask), boundary

    def forward(self, rois: RoiBatch) -> dict[str, Tensor]:
        mask, boundary = self.features(rois.pooled)
        out = {"mask": self.mask_predictor(mask, rois.labels)}
        if self.training:
            out["boundary"] = self.boundary_predictor(boundary, rois.labels)
        return out

    def losses(self, out: dict[str, Tensor], rois: RoiBatch) -> dict[str, Tensor]:
        settings = self.settings
        operator = sobel_boundary if settings.target == "sobel" else laplace_boundary
        masks, boundaries = rois.boundary_targets(out["mask"].shape[-1], settings.padding, operator)
        return {
            "loss_mask": bce_loss(out["mask"], masks),
            "loss_boundary": boundary_loss(
                out["boundary"],
                masks if settings.target == "mask" else boundaries,
                dice_weight=settings.dice_weight,
                bce_weight=settings.bce_weight,
                weighted=settings.weighted,
                squared=settings.squared,
            ),
        }
