"""The loss of a refiner: binary cross-entropy of pixels, heavier in the boundary band.

Shapes: N patches of S x S px, as (N, S, S, 4) uint8 (RGB + mask); targets (N, S, S) uint8 with 0 background,
1 foreground, 255 ignore.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bpr_service.recipe import LossConfig


def pixel_weights(patches: Tensor, targets: Tensor, padding: int, config: LossConfig) -> Tensor:
    """What each pixel weighs in the loss: (N, S, S) float32, 0 where the target is ignored.

    Args:
        patches: (N, S, S, 4) uint8.
        targets: (N, S, S) uint8.
        padding: context (network px) that is never pasted back.
        config: the weights.
    """
    both = torch.stack((targets == 1, patches[..., 3] > 127), 1).float()
    edge = (_widen(both, 1) != -_widen(-both, 1)).any(1, keepdim=True).float()
    band = _widen(edge, config.band_px)[:, 0]
    weights = 1.0 + config.band_weight * band
    if padding:
        inner = torch.full_like(weights, config.padding_weight)
        inner[:, padding:-padding, padding:-padding] = 1.0
        weights = weights * inner
    return weights * (targets != 255)


def _widen(maps: Tensor, radius: int) -> Tensor:
    """Maximum over squares of side 2 radius + 1, one axis at a time: (N, C, S, S) -> (N, C, S, S)."""
    width = 2 * radius + 1
    return F.max_pool2d(F.max_pool2d(maps, (width, 1), 1, (radius, 0)), (1, width), 1, (0, radius))


def boundary_loss(logits: Tensor, patches: Tensor, targets: Tensor, padding: int, config: LossConfig) -> Tensor:
    """Weighted binary cross-entropy of (N, C, S, S) logits: a scalar, 0 where everything is ignored.

    Where C is 2 the second map learns whether the first's decision is wrong: its sigmoid is the probability of an
    error. The decision is taken as it is, so that the second map's loss never bends the first. Pixels that the decision
    changes weigh more: whether to take a change is what the second map is asked.
    """
    weights = pixel_weights(patches, targets, padding, config)
    truth = targets == 1
    losses = F.binary_cross_entropy_with_logits(logits[:, 0].float(), truth.float(), reduction="none")
    loss = (losses * weights).sum() / weights.sum().clamp_min(1.0)
    if logits.shape[1] == 1:
        return loss
    decision = logits[:, 0].detach() > 0
    weights = weights * (1 + config.changed_weight * (decision != (patches[..., 3] > 127)))
    losses = F.binary_cross_entropy_with_logits(logits[:, 1].float(), (decision != truth).float(), reduction="none")
    return loss + config.confidence_weight * (losses * weights).sum() / weights.sum().clamp_min(1.0)
