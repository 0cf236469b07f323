"""B2Inst: a holistic boundary basis in the mask assembly, and boundary-aware mask scores.

Source: Kim, Woo, Lee, Kweon, *The Devil is in the Boundary: Exploiting Boundary Representation for Basis-based
Instance Segmentation*, WACV 2021, sections 3.2 and 3.3.
N instances, B images, C classes, M cells a side of an instance's mask grid, h and w cells of the bases.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_training.heads.layers import conv
from refiner_training.heads.losses import boundary_loss, crisp_loss, zero_loss
from refiner_training.heads.protocol import HeadSettings
from refiner_training.heads.targets import laplace_boundary, laplacian


class B2InstSettings(HeadSettings):
    """Settings of B2Inst; the paper states neither loss weights nor the scoring head's width.

    Attributes:
        basis_loss: ``bce_dice``, or ``crisp`` (reciprocal Dice with a light BCE).
        basis_weight: weight of the boundary basis' loss.
        scoring: the boundary-aware scoring head; off leaves the basis alone.
        score_weight: weight of each of the two score losses.
        score_channels, score_hidden: width of its convolutions and of its two linear layers.
    """

    basis_loss: Literal["bce_dice", "crisp"] = "bce_dice"
    basis_weight: float = 1.0
    scoring: bool = True
    score_weight: float = 1.0
    score_channels: int = 256
    score_hidden: int = 1024


def boundary_basis_loss(logits: Tensor, targets: Tensor, settings: B2InstSettings) -> Tensor:
    """Loss of the boundary basis (B, h, w) over the whole image, with or without instances (sec. 3.2)."""
    loss = crisp_loss if settings.basis_loss == "crisp" else boundary_loss
    return settings.basis_weight * loss(logits, targets)


def score_targets(predicted: Tensor, truth: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Mask IoU and boundary Dice of binary masks (N, M, M), each (N,) in [0, 1] (sec. 3.3).

    The smoothing is tiny on purpose: 1, as in the losses, would inflate the scores of small objects.
    """
    both = (predicted * truth).flatten(1).sum(1)
    union = torch.maximum(predicted, truth).flatten(1).sum(1)
    boundary, boundary_truth = laplace_boundary(predicted).flatten(1), laplace_boundary(truth).flatten(1)
    shared = (boundary * boundary_truth).sum(1)
    total = boundary.square().sum(1) + boundary_truth.square().sum(1)
    return both / union.clamp(min=1), (2 * shared + eps) / (total + eps)


def rescore(scores: Tensor, iou: Tensor, boundary: Tensor) -> Tensor:
    """S_class * sqrt(S_IoU * S_boundary), (N,); predicted factors are clamped to [0, 1] first (eq. 5)."""
    return scores * (iou.float().clamp(0, 1) * boundary.float().clamp(0, 1)).sqrt()


class MaskScoring(nn.Module):
    """Predicts a mask's IoU and its boundary's Dice from the mask, its boundary and the RoI's features.

    The layout is Mask Scoring R-CNN's: four 3x3 convolutions (the last strided), two linear layers, one output
    per class. Mask inputs are detached: scoring must not change the masks.
    """

    roi_size = 14

    def __init__(self, in_channels: int, classes: int, settings: B2InstSettings) -> None:
        super().__init__()
        width, hidden = settings.score_channels, settings.score_hidden
        self.settings = settings
        steps: list[nn.Module] = []
        for index in range(4):
            source = in_channels + 2 if index == 0 else width
            steps += [conv(source, width, stride=2 if index == 3 else 1), nn.ReLU(inplace=True)]
        self.tower = nn.Sequential(*steps)
        self.linear = nn.Sequential(
            nn.Linear(width * (self.roi_size // 2) ** 2, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
        )
        self.iou, self.boundary = nn.Linear(hidden, classes), nn.Linear(hidden, classes)

    def forward(self, masks: Tensor, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mask probabilities (N, M, M), RoI features (N, D, 14, 14), labels (N,) -> two raw scores (N,)."""
        masks = masks.detach().float()
        edges = laplacian(masks).clamp(0, 1)
        side = self.roi_size
        pooled = F.adaptive_max_pool2d(torch.stack([masks, edges], dim=1), side)
        hidden = self.tower(torch.cat([pooled.to(features.dtype), features], dim=1))
        hidden = self.linear(hidden.flatten(1))
        rows = torch.arange(len(labels), device=labels.device)
        return self.iou(hidden)[rows, labels], self.boundary(hidden)[rows, labels]

    def losses(self, masks: Tensor, truth: Tensor, scores: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """``loss_mask_iou`` and ``loss_mask_boundary``: 0.5 (s_hat - s)^2, mean over samples with a target over 0.

        Args:
            masks: (N, M, M) predicted probabilities.
            truth: (N, M, M) binary.
            scores: what :meth:`forward` gave.
        """
        with torch.no_grad():
            targets = score_targets((masks.detach() >= 0.5).float(), truth.float())
        losses = {}
        for name, raw, target in zip(("loss_mask_iou", "loss_mask_boundary"), scores, targets, strict=True):
            counts = target > 0
            each = 0.5 * (raw.float() - target).square()
            mean = (each * counts).sum() / counts.sum().clamp(min=1) if len(raw) else zero_loss(raw)
            losses[name] = self.settings.score_weight * mean
        return losses
