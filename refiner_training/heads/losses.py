"""The losses of the heads, each finite for every input, with or without instances.

Letters: N samples (RoIs or maps), Q queries, P positive keys, J negative keys, D feature channels.
Everything is computed in float32, whatever autocast says. With N = 0 a loss is ``sum(logits) * 0``: a zero that
hangs on the graph, so that no parameter goes unused under DDP.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def zero_loss(*tensors: Tensor) -> Tensor:
    """A zero attached to every given tensor."""
    return torch.stack([tensor.float().sum() * 0 for tensor in tensors]).sum()


def bce_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean binary cross entropy over all (valid) pixels of all samples; 0 when there are none.

    Args:
        logits: (N, ...) of any float dtype.
        targets: same shape, in [0, 1].
        valid: same shape, bool; pixels outside do not count.
    """
    if logits.numel() == 0:
        return zero_loss(logits)
    if valid is None:
        return F.binary_cross_entropy_with_logits(logits.float(), targets.float())
    each = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return (each * valid).sum() / valid.sum().clamp(min=1)


def dice_per_sample(
    logits: Tensor, targets: Tensor, *, squared: bool = True, eps: float = 1.0, valid: Tensor | None = None
) -> Tensor:
    """1 - (2 sum(p y) + eps) / (sum(p^2) + sum(y^2) + eps) of each sample, (N,) (BMask R-CNN, eq. 3).

    Args:
        logits: (N, ...); p is their sigmoid.
        targets: same shape, y.
        squared: False takes sum(p) + sum(y) as the denominator, as the released code of BMask R-CNN and of
            BoundarySqueeze does.
        eps: smoothing. A sample without positives costs 1 - 1 / (sum(p^2) + 1).
        valid: same shape, bool; pixels outside do not count.
    """
    p, y = torch.sigmoid(logits.float()).flatten(1), targets.float().flatten(1)
    if valid is not None:
        p, y = p * valid.flatten(1), y * valid.flatten(1)
    total = (p * p).sum(1) + (y * y).sum(1) if squared else p.sum(1) + y.sum(1)
    return 1 - (2 * (p * y).sum(1) + eps) / (total + eps)


def dice_loss(logits: Tensor, targets: Tensor, *, squared: bool = True, eps: float = 1.0) -> Tensor:
    """Mean of :func:`dice_per_sample` over samples; 0 when there are none."""
    if len(logits) == 0:
        return zero_loss(logits)
    return dice_per_sample(logits, targets, squared=squared, eps=eps).mean()


def weighted_bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross entropy, foreground weighed by the background's share and the other way round."""
    if logits.numel() == 0:
        return zero_loss(logits)
    positive = targets.float().mean()
    weight = torch.where(targets > 0, 1 - positive, positive)
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), weight)


def boundary_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    dice_weight: float = 1.0,
    bce_weight: float = 1.0,
    weighted: bool = False,
    squared: bool = True,
) -> Tensor:
    """Dice + lambda * BCE on boundaries (BMask R-CNN, eq. 2, lambda = 1; BoundarySqueeze, eq. 6).

    Args:
        logits: (N, ...).
        targets: of the same shape, 0 and 1.
        dice_weight: of the first term.
        bce_weight: of the second, lambda.
        weighted: take :func:`weighted_bce_loss`.
        squared: see :func:`dice_per_sample`.
    """
    bce = weighted_bce_loss if weighted else bce_loss
    return dice_weight * dice_loss(logits, targets, squared=squared) + bce_weight * bce(logits, targets)


def crisp_loss(logits: Tensor, targets: Tensor, *, bce_weight: float = 0.001, eps: float = 1.0) -> Tensor:
    """Reciprocal Dice (sum(p^2) + sum(g^2)) / (2 sum(p g)) plus a lightly weighted BCE.

    The third candidate B2Inst names for its boundary basis ("Learning to predict crisp boundaries"). The weight
    and the smoothing ``eps``, which keeps samples without positives finite, are ours.
    """
    if len(logits) == 0:
        return zero_loss(logits)
    p, g = torch.sigmoid(logits.float()).flatten(1), targets.float().flatten(1)
    ratio = ((p * p).sum(1) + (g * g).sum(1) + eps) / (2 * (p * g).sum(1) + eps)
    return ratio.mean() + bce_weight * bce_loss(logits, targets)


def pairwise_distance(queries: Tensor, keys: Tensor) -> Tensor:
    """L2 distances (..., Q, P) of queries (..., Q, D) and keys (..., P, D), float32.

    1e-12 under the root keeps the gradient finite where a query equals a key.
    """
    difference = queries.float().unsqueeze(-2) - keys.float().unsqueeze(-3)
    return (difference.square().sum(-1) + 1e-12).sqrt()


def contrastive_loss(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    positive_valid: Tensor,
    negative_valid: Tensor,
    *,
    normalize: bool = False,
    tau: float = 1.0,
) -> Tensor:
    """Loss of each query: logsumexp(-D over all keys) - logsumexp(-D over positive keys) (BEIS, eqs. 3 and 4).

    The paper's equations put features of the *opposite* side into the numerator with exp(-distance); minimising
    that pulls the two sides together, against its text. Here the numerator holds the same-side keys, which is the
    multi-positive InfoNCE that the text describes: bounded below by 0 and led by the nearest negatives.

    Args:
        queries: (..., Q, D).
        positives: (..., P, D) same-side features.
        negatives: (..., J, D) opposite-side features.
        positive_valid: (..., Q, P) bool: keys that count, the query itself excluded.
        negative_valid: (..., J) bool.
        normalize: divide features by their norm first.
        tau: temperature, divides distances.

    Returns:
        (..., Q) float32; 0 for a query that has no positive key.
    """
    if normalize:
        queries, positives, negatives = (F.normalize(t.float(), dim=-1) for t in (queries, positives, negatives))
    lowest = torch.finfo(torch.float32).min
    near = (-pairwise_distance(queries, positives) / tau).masked_fill(~positive_valid, lowest)
    far = (-pairwise_distance(queries, negatives) / tau).masked_fill(~negative_valid.unsqueeze(-2), lowest)
    loss = torch.logsumexp(torch.cat([near, far], dim=-1), dim=-1) - torch.logsumexp(near, dim=-1)
    return torch.where(positive_valid.any(-1), loss, torch.zeros_like(loss))
