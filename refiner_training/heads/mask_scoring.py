"""Mask scoring for any mask head of Mask R-CNN: predict the mask's IoU, and rank masks by score times IoU.

Source: Huang, Huang, Gong, Huang, Wang, *Mask Scoring R-CNN*, CVPR 2019, section 3.
N RoIs, C classes, M cells a side of the mask grid, G ground-truth instances of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from refiner_training.heads.b2inst import B2InstSettings, MaskScoring
from refiner_training.heads.losses import zero_loss
from refiner_training.heads.protocol import PYRAMID, HeadSettings, Pooler, RoiBatch


class MaskScoringSettings(HeadSettings):
    """Settings of the scores; the paper's.

    Attributes:
        channels: width of the four convolutions.
        hidden: width of the two linear layers.
        weight: of the loss.
    """

    channels: int = 256
    hidden: int = 1024
    weight: float = 1.0


class MaskIoU(nn.Module):
    """Predicts the IoU of each RoI's mask with its instance, from the mask and the RoI's features."""

    pooler = Pooler(PYRAMID, 14)
    pooled = "score"
    loss_name = "loss_mask_iou"

    def __init__(self, in_channels: int, classes: int, settings: MaskScoringSettings) -> None:
        super().__init__()
        self.settings = settings
        own = B2InstSettings(scoring="mask", score_channels=settings.channels, score_hidden=settings.hidden)
        self.scores = MaskScoring(in_channels, classes, own, edges=False)

    def forward(self, logits: Tensor, rois: RoiBatch) -> Tensor:
        """Mask logits (N, M, M) of the RoIs' classes -> raw IoUs (N,)."""
        raw: Tensor = self.scores(torch.sigmoid(logits.float()), rois.pooled[self.pooled], rois.labels)["mask"]
        return raw

    def loss(self, logits: Tensor, rois: RoiBatch) -> Tensor:
        """Mean squared error of the IoUs; a finite zero on the graph when N is 0."""
        raw = self(logits, rois)
        if len(raw) == 0:
            return zero_loss(raw)
        with torch.no_grad():
            target = true_iou(logits > 0, rois)
        return self.settings.weight * F.mse_loss(raw.float(), target)


def true_iou(masks: Tensor, rois: RoiBatch) -> Tensor:
    """IoU (N,) of binary masks (N, M, M) inside their RoIs with the whole instance, also outside the RoI."""
    assert rois.truth is not None
    truth = rois.mask_targets(masks.shape[-1])
    own, shared = truth.flatten(1).mean(1), (masks * truth).flatten(1).mean(1)
    outside = torch.cat([_times(*each) for each in zip(rois.truth.masks, rois.boxes, rois.truth.matched, strict=True)])
    return shared / (masks.float().flatten(1).mean(1) + own * outside - shared).clamp(min=1e-6)


def _times(masks: Tensor, boxes: Tensor, matched: Tensor) -> Tensor:
    """How many times as large as its part inside the box (n, 4) an instance of (G, H, W) is, (n,)."""
    rois = torch.cat([matched[:, None].to(boxes), boxes], dim=1)
    inside = roi_align(masks[:, None].float(), rois, (28, 28), sampling_ratio=2, aligned=True).flatten(1).mean(1)
    pixels = inside * (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).prod(1)
    return (masks.flatten(1).sum(1)[matched].float() / pixels.clamp(min=1)).clamp(min=1)  # type: ignore[no-any-return]
