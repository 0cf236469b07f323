"""BoundarySqueeze for semantic segmentation: settings and auxiliary losses.

Source: *BoundarySqueeze*, section 3.4 and the Cityscapes experiments. Its semantic code is not released; the
layout (see :mod:`refiner_training.segmenters.deeplab`) and what is averaged over what are ours.
B images, C classes, H and W pixels of the crop, h and w cells of the logits (stride 4), K the morphology's window.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from refiner_training.heads.losses import bce_loss, dice_per_sample, zero_loss
from refiner_training.heads.protocol import HeadSettings, HeadSpec
from refiner_training.heads.targets import dilate, laplace_boundary, squeeze_targets

AUXILIARY = ("boundary", "contraction", "expansion")
SPEC = HeadSpec("dense", tuple(f"loss_{name}" for name in AUXILIARY))


class DenseSqueezeSettings(HeadSettings):
    """Settings of the semantic head.

    Attributes:
        window_px: K, in pixels at the target's resolution (15 at full resolution, 5 at stride 4).
        target_stride: 1 computes targets at the crop's resolution, 4 at the logits' (a sixteenth of the memory).
        or_boundary, detach_sum, squared: as in the instance head.
    """

    window_px: int = 15
    target_stride: Literal[1, 4] = 1
    or_boundary: bool = False
    detach_sum: bool = False
    squared: bool = True


def dense_squeeze_losses(
    logits: dict[str, Tensor], labels: Tensor, ignore_label: int, settings: DenseSqueezeSettings
) -> dict[str, Tensor]:
    """``loss_boundary`` (BCE + Dice), ``loss_contraction`` and ``loss_expansion`` (Dice) of one-vs-rest maps.

    Pixels of ``ignore_label`` and their K x K neighbourhood do not count. Dice is averaged over the classes that
    an image has, then over images; BCE over all valid pixels. The image's border is no boundary.

    Args:
        logits: for each of ``AUXILIARY`` (B, C, h, w).
        labels: (B, H, W) int64.
        ignore_label: of pixels that do not count.
        settings: K and the weights of the losses.
    """
    window = settings.window_px
    if settings.target_stride == 4:
        size = next(iter(logits.values())).shape[-2:]
        labels = F.interpolate(labels[:, None].float(), size, mode="nearest")[:, 0].long()
    classes = next(iter(logits.values())).shape[1]
    ignored = labels == ignore_label
    maps = F.one_hot(labels.masked_fill(ignored, classes), classes + 1)[..., :classes].permute(0, 3, 1, 2).float()
    valid = (dilate(ignored.float(), window) == 0)[:, None].expand_as(maps)
    boundary = laplace_boundary(maps, "replicate")
    contraction, expansion = squeeze_targets(maps, boundary, window, settings.or_boundary)
    present = (maps * valid).flatten(2).any(2)
    losses = {}
    for name, target in zip(AUXILIARY, (boundary, contraction, expansion), strict=True):
        full = logits[name]
        if full.shape[-2:] != labels.shape[-2:]:
            full = F.interpolate(full.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
        dice = _mean_over_present(full, target, valid, present, settings.squared)
        losses[f"loss_{name}"] = dice + bce_loss(full, target, valid) if name == "boundary" else dice
    return losses


def _mean_over_present(logits: Tensor, target: Tensor, valid: Tensor, present: Tensor, squared: bool) -> Tensor:
    if not bool(present.any()):
        return zero_loss(logits)
    each = dice_per_sample(logits.flatten(0, 1), target.flatten(0, 1), squared=squared, valid=valid.flatten(0, 1))
    per_image = (each.view_as(present) * present).sum(1) / present.sum(1).clamp(min=1)
    return per_image.sum() / torch.count_nonzero(present.any(1))
