"""What BlendMask adds to FCOS: attention in the box head, and the bases.

Source: Chen, Sun, Tian, Shen, Huang, Yan, *BlendMask*, CVPR 2020, section 3.
Letters: B images, n instances, L locations of the pyramid, K bases (the boundary basis included), A cells a side
of an attention map, R cells a side of an instance's mask grid, C classes with 0 as background.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.fcos import FCOSHead, FCOSRegressionHead

from bpr_service.config import Settings
from refiner_training.heads.layers import kaiming, own_rng, predictor, small_start
from refiner_training.segmenters.backbone import group_norm
from refiner_training.segmenters.base import Target


class BlendMaskConfig(Settings):
    """The detector and the basis module.

    Attributes:
        bases: K without the boundary basis.
        basis_channels: width of the basis tower; basis_norm: its norm.
        attention: A; 14 in BlendMask, 7 in B2Inst. None takes the paper's for the head.
        mask_size: R.
        max_masks: most positive locations of a batch whose masks are trained.
        semantic_weight: weight of the auxiliary semantic loss on P3.
        score_threshold: on sqrt(class * centreness); nms_threshold, candidates a level, detections.
    """

    bases: int = 4
    basis_channels: int = 128
    basis_norm: Literal["batch", "group"] = "batch"
    attention: int | None = Field(default=None, ge=1)
    mask_size: int = Field(default=56, ge=14, multiple_of=14)
    max_masks: int = 500
    semantic_weight: float = 0.3
    score_threshold: float = 0.2
    nms_threshold: float = 0.6
    candidates: int = 1000
    detections: int = 100


class AttentionBoxHead(FCOSRegressionHead):  # type: ignore[misc]
    """FCOS' box tower with a third output: the attention, K * A^2 numbers a location."""

    def __init__(self, in_channels: int, numbers: int) -> None:
        super().__init__(in_channels, 1)
        with own_rng():  # its size depends on the head; what follows must not
            self.attention = nn.Conv2d(in_channels, numbers, 3, padding=1)
            nn.init.normal_(self.attention.weight, std=0.01)
            nn.init.constant_(self.attention.bias, 0.0)  # type: ignore[arg-type]

    def forward(self, x: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, L, 4), centreness (B, L, 1), attention (B, L, K * A^2), the first two float32."""
        towers = [self.conv(features) for features in x]

        def flat(maps: list[Tensor]) -> Tensor:
            return torch.cat([each.flatten(2).transpose(1, 2) for each in maps], dim=1)

        return (
            flat([torch.relu(self.bbox_reg(tower)) for tower in towers]).float(),
            flat([self.bbox_ctrness(tower) for tower in towers]).float(),
            flat([self.attention(tower) for tower in towers]),
        )


class AttentionHead(FCOSHead):  # type: ignore[misc]
    """FCOS' head with attention; keeps what the losses matched, for the mask loss."""

    def __init__(self, in_channels: int, classes: int, numbers: int) -> None:
        super().__init__(in_channels, 1, classes)
        self.regression_head = AttentionBoxHead(in_channels, numbers)

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        boxes, centreness, attention = self.regression_head(x)
        logits = self.classification_head(x).float()
        return {
            "cls_logits": logits,
            "bbox_regression": boxes,
            "bbox_ctrness": centreness,
            "attention": attention,
        }

    def compute_loss(
        self,
        targets: list[Target],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Any]:
        losses: dict[str, Any] = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        losses["matched"] = matched_idxs
        return losses


class BasisModule(nn.Module):
    """P3, P4, P5 -> K bases at stride 4, and semantic logits of P3 in training (section 3.2).

    Args:
        in_channels: of the pyramid.
        outputs: K.
        classes: C of the auxiliary semantic loss.
    """

    def __init__(self, in_channels: int, outputs: int, classes: int, config: BlendMaskConfig) -> None:
        super().__init__()
        width = config.basis_channels
        norm = nn.BatchNorm2d if config.basis_norm == "batch" else group_norm

        def block(source: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(source, width, 3, padding=1, bias=False), norm(width), nn.ReLU(inplace=True))

        self.refine = nn.ModuleList(block(in_channels) for _ in range(3))
        self.tower = nn.Sequential(*(block(width) for _ in range(3)))
        self.top = block(width)
        self.semantic = nn.Sequential(block(in_channels), block(width), nn.Conv2d(width, classes, 1))
        kaiming(self)
        small_start(self.semantic[-1])
        with own_rng():
            self.bases = predictor(width, outputs)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels P3, P4, P5 (B, D, h, w) -> (B, K, 2h, 2w) of P3's h, w."""
        merged = self.refine[0](levels[0])
        for refine, level in zip(self.refine[1:], levels[1:3], strict=True):
            merged = merged + F.interpolate(refine(level), merged.shape[-2:], mode="bilinear", align_corners=False)
        fine = F.interpolate(self.tower(merged), scale_factor=2, mode="bilinear", align_corners=False)
        bases: Tensor = self.bases(self.top(fine))
        return bases


def blend(bases: Tensor, attention: Tensor) -> Tensor:
    """Sum of the bases weighted by attention, softmax over the bases (BlendMask, eq. 3).

    Args:
        bases: (n, K, R, R) cut out of the image for each instance.
        attention: (n, K, A, A).

    Returns:
        (n, R, R) mask logits.
    """
    weights = F.interpolate(attention.float(), bases.shape[-2:], mode="bilinear", align_corners=False)
    return (weights.softmax(dim=1) * bases.float()).sum(dim=1)
