"""The baseline: torchvision's Mask R-CNN mask branch. N RoIs, C classes, 28 x 28 cells."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from refiner_training.heads.layers import Init, MaskPredictor, conv_tower
from refiner_training.heads.losses import bce_loss
from refiner_training.heads.protocol import PYRAMID, HeadSettings, HeadSpec, Pooler, RoiBatch, RoiHead


class PlainSettings(HeadSettings):
    """Settings of the plain mask head.

    Attributes:
        channels: width of the convolutions; convs: their number (8 costs what the boundary heads do).
        binarise: train on 0/1 targets, as the boundary heads do; False is torchvision's soft rule.
        init: ``paper`` initialises the predictor as the boundary heads do, ``torchvision`` as torchvision does.
        max_rois: most RoIs an image the mask branch trains on.
    """

    channels: int = 256
    convs: int = Field(default=4, ge=1)
    binarise: bool = True
    init: Init = "paper"
    max_rois: int | None = None


class PlainMaskHead(RoiHead):
    """Four 3x3 convolutions at 14 x 14, a deconvolution, class logits at 28 x 28 (Mask R-CNN)."""

    def __init__(self, in_channels: int, classes: int, settings: PlainSettings) -> None:
        super().__init__()
        self.spec = HeadSpec("roi", ("loss_mask",), {"mask": Pooler(PYRAMID, 14)})
        self.settings, self.max_rois = settings, settings.max_rois
        self.tower = conv_tower(in_channels, settings.channels, settings.convs)
        self.predictor = MaskPredictor(settings.channels, settings.channels, classes, settings.init)

    def forward(self, rois: RoiBatch) -> dict[str, Tensor]:
        return {"mask": self.predictor(self.tower(rois.pooled["mask"]), rois.labels)}

    def losses(self, out: dict[str, Tensor], rois: RoiBatch) -> dict[str, Tensor]:
        targets = rois.mask_targets(out["mask"].shape[-1], soft=not self.settings.binarise)
        return {"loss_mask": bce_loss(out["mask"], targets)}
