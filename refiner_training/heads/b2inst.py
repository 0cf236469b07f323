"""B2Inst: a holistic boundary basis in the mask assembly, and boundary-aware mask scores.

Source: Kim, Woo, Lee, Kweon, *The Devil is in the Boundary: Exploiting Boundary Representation for Basis-based
Instance Segmentation*, WACV 2021, sections 4.1 and 4.2.
N instances, B images, C classes, M cells a side of an instance's mask grid, h and w cells of the bases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from refiner_training.heads.layers import conv
from refiner_training.heads.losses import bce_loss, crisp_loss, dice_loss, zero_loss
from refiner_training.heads.protocol import HeadSettings
from refiner_training.heads.targets import binarise, laplace_boundary, laplacian, project_masks

BASIS_GRID = 28  # cells a side of the boxes in which the basis of design ``instance`` is supervised


class B2InstSettings(HeadSettings):
    """Settings of B2Inst; the paper states neither loss weights nor the scoring head's width.

    Attributes:
        basis: the design of the boundary basis, the axes of Table 2: ``none``; ``unsupervised``, one more basis that
            nothing supervises; ``auxiliary``, supervised over the image, but no part of masks; ``instance``, part of
            them and supervised inside each true box by that instance's boundary; ``holistic``, part of them and
            supervised over the image: the paper's choice.
        basis_losses: what its loss is the sum of: ``bce``, ``dice`` and ``crisp`` (reciprocal Dice with a light BCE).
        basis_weight: weight of that sum.
        basis_form: how the basis enters BlendMask's convex sum: as a ``probability``, as a ``signed`` map (-1 to 1), or
            as its ``logits``, which are far below 0 inside an object and pull its interior to the background.
        scoring: what the mask scores are made of: ``both``, the ``mask``'s IoU or its ``boundary``'s Dice alone, or
            ``none``.
        score_weight: weight of each of the two score losses.
        score_channels, score_hidden: width of its convolutions and of its two linear layers.
    """

    basis: Literal["none", "unsupervised", "auxiliary", "instance", "holistic"] = "holistic"
    basis_losses: tuple[Literal["bce", "dice", "crisp"], ...] = Field(default=("bce", "dice", "crisp"), min_length=1)
    basis_weight: float = 1.0
    basis_form: Literal["probability", "signed", "logits"] = "probability"
    scoring: Literal["both", "mask", "boundary", "none"] = "both"
    score_weight: float = 1.0
    score_channels: int = 256
    score_hidden: int = 1024

    @property
    def has_basis(self) -> bool:
        """Whether there is an output for the boundary."""
        return self.basis != "none"

    @property
    def assembled(self) -> bool:
        """Whether masks are made of it, too."""
        return self.basis in ("unsupervised", "instance", "holistic")

    @property
    def supervised(self) -> bool:
        """Whether it has a loss."""
        return self.basis in ("auxiliary", "instance", "holistic")


def boundary_basis_loss(logits: Tensor, targets: Tensor, settings: B2InstSettings) -> Tensor:
    """Loss of the boundary basis (B, h, w), over the whole image or inside boxes (sec. 4.1); 0 of no sample."""
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"bce": bce_loss, "dice": dice_loss, "crisp": crisp_loss}
    parts = [losses[name](logits, targets) for name in settings.basis_losses]
    return settings.basis_weight * torch.stack(parts).sum()


def instance_basis_loss(
    logits: Tensor, targets: Sequence[Mapping[str, Tensor]], cells_per_px: float, settings: B2InstSettings
) -> Tensor:
    """Loss of the basis (B, h, w) inside each true box, against the boundary of that instance alone."""
    boxes = [target["boxes"] for target in targets]
    size = (BASIS_GRID, BASIS_GRID)
    inside = roi_align(logits[:, None].float(), boxes, size, cells_per_px, aligned=True)[:, 0]
    truth = [
        project_masks(t["masks"], t["boxes"], torch.arange(len(t["boxes"]), device=logits.device), BASIS_GRID)
        for t in targets
    ]
    return boundary_basis_loss(inside, laplace_boundary(binarise(torch.cat(truth))), settings)


def basis_map(logits: Tensor, settings: B2InstSettings) -> Tensor:
    """The boundary basis as it enters BlendMask's sum, of the logits' shape; see ``basis_form``."""
    if settings.basis_form == "logits":
        return logits
    probability = torch.sigmoid(logits)
    return probability if settings.basis_form == "probability" else 2 * probability - 1


def head_losses(settings: B2InstSettings | None) -> tuple[str, ...]:
    """Names of the losses that the settings add to a basis model."""
    if settings is None:
        return ()
    scores = {"mask": ("loss_mask_iou",), "boundary": ("loss_mask_boundary",), "none": ()}
    both = ("loss_mask_iou", "loss_mask_boundary")
    return ("loss_boundary_basis",) * settings.supervised + scores.get(settings.scoring, both)


def score_targets(predicted: Tensor, truth: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Mask IoU and boundary Dice of binary masks (N, M, M), each (N,) in [0, 1] (sec. 4.2).

    The smoothing is tiny on purpose: 1, as in the losses, would inflate the scores of small objects.
    """
    both = (predicted * truth).flatten(1).sum(1)
    union = torch.maximum(predicted, truth).flatten(1).sum(1)
    boundary, boundary_truth = laplace_boundary(predicted).flatten(1), laplace_boundary(truth).flatten(1)
    shared = (boundary * boundary_truth).sum(1)
    total = boundary.square().sum(1) + boundary_truth.square().sum(1)
    return both / union.clamp(min=1), (2 * shared + eps) / (total + eps)


def rescore(scores: Tensor, factors: dict[str, Tensor]) -> Tensor:
    """S_class * sqrt(S_IoU * S_boundary), or times the one factor that there is, (N,) (eq. 2).

    Predicted factors are clamped to [0, 1] first.
    """
    both = torch.stack([factor.float().clamp(0, 1) for factor in factors.values()])
    return scores * both.prod(0) ** (1 / len(both))


class MaskScoring(nn.Module):
    """Predicts a mask's IoU and its boundary's Dice from the mask, its boundary and the RoI's features.

    The layout is Mask Scoring R-CNN's: four 3x3 convolutions (the last strided), two linear layers, one output
    per class. Mask inputs are detached: scoring must not change the masks.
    """

    roi_size = 14

    def __init__(self, in_channels: int, classes: int, settings: B2InstSettings, edges: bool = True) -> None:
        """``edges``: the boundary is an input, too; Mask Scoring R-CNN has the mask alone."""
        super().__init__()
        self.edges = edges
        width, hidden = settings.score_channels, settings.score_hidden
        self.settings = settings
        steps: list[nn.Module] = []
        for index in range(4):
            source = in_channels + 1 + edges if index == 0 else width
            steps += [conv(source, width, stride=2 if index == 3 else 1), nn.ReLU(inplace=True)]
        self.tower = nn.Sequential(*steps)
        self.linear = nn.Sequential(
            nn.Linear(width * (self.roi_size // 2) ** 2, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
        )
        names = ("mask", "boundary") if settings.scoring == "both" else (settings.scoring,)
        self.outputs = nn.ModuleDict({name: nn.Linear(hidden, classes) for name in names})

    def forward(self, masks: Tensor, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Raw scores (N,), one or two, of masks.

        Args:
            masks: (N, M, M) probabilities, M a multiple of 14.
            features: (N, D, 14, 14) of the RoIs.
            labels: (N,).
        """
        masks = masks.detach().float()
        inputs = [masks, laplacian(masks).clamp(0, 1)] if self.edges else [masks]
        pooled = F.max_pool2d(torch.stack(inputs, dim=1), int(masks.shape[-1]) // self.roi_size)
        hidden = self.tower(torch.cat([pooled.to(features.dtype), features], dim=1))
        hidden = self.linear(hidden.flatten(1))
        return {name: output(hidden).gather(1, labels[:, None])[:, 0] for name, output in self.outputs.items()}

    def losses(self, masks: Tensor, truth: Tensor, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """``loss_mask_iou`` and ``loss_mask_boundary``: 0.5 (s_hat - s)^2, mean over samples with a target over 0.

        Args:
            masks: (N, M, M) predicted probabilities.
            truth: (N, M, M) binary.
            scores: what :meth:`forward` gave.
        """
        with torch.no_grad():
            iou, boundary = score_targets((masks.detach() >= 0.5).float(), truth.float())
        named = {"mask": ("loss_mask_iou", iou), "boundary": ("loss_mask_boundary", boundary)}
        losses = {}
        for kind, raw in scores.items():
            name, target = named[kind]
            counts = target > 0
            each = 0.5 * (raw.float() - target).square()
            mean = (each * counts).sum() / counts.sum().clamp(min=1) if len(raw) else zero_loss(raw)
            losses[name] = self.settings.score_weight * mean
        return losses
