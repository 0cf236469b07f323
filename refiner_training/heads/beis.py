"""BEIS: contrastive learning of boundary features on a 14 -> 28 -> 56 -> 112 refinement head.

Source: *Boundary-Enhanced Instance Segmentation*: intra-image (IBDL, eq. 3) and cross-image (CBDL, eq. 4) boundary
contrast, adaptive query selection (AQS) and adaptive key selection (AKS) with a category confusion matrix.
N RoIs, M cells a side of a stage's grid, C classes, D channels of a stage's boundary features, P = M * M cells.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_training.heads.beis_contrast import ContrastSettings, StageContrast, StageInput, roi_class_maps
from refiner_training.heads.layers import ClassLogits, conv, conv_tower
from refiner_training.heads.losses import bce_loss, zero_loss
from refiner_training.heads.protocol import (
    FINEST,
    PYRAMID,
    HeadSpec,
    Pooler,
    RoiBatch,
    RoiHead,
)


class BeisSettings(ContrastSettings):
    """Settings of BEIS; what the paper leaves open is named here.

    Attributes:
        channels: D of each stage, X_mid = X_BEF; one entry more than refinements; a fifth goes to 224. The paper states
            none; its speeds leave room for about these (see docs/heads.md).
        sources: the RoI features that are fused: of the pyramid, of the finest level, or both.
        max_rois: most RoIs an image the mask branch trains on (a 112 x 112 map of 32 channels is 1.5 MiB a RoI).
    """

    channels: tuple[int, ...] = Field(default=(256, 128, 64, 32), min_length=2, max_length=5)
    sources: Literal["both", "pyramid", "finest"] = "both"
    max_rois: int | None = None


class BeisStage(nn.Module):
    """X_mid -> boundary-enhanced features X_BEF -> X_ins = concat(X_mid, X_BEF) -> class logits."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.projection = nn.Sequential(conv(channels, channels), nn.ReLU(inplace=True), conv(channels, channels))
        self.logits = ClassLogits(2 * channels, classes)

    def forward(self, mid: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D, M, M) -> X_BEF (N, D, M, M), X_ins (N, 2D, M, M), logits (N, M, M) of the labels' classes."""
        enhanced = self.projection(mid)
        instance = torch.cat([mid, enhanced], dim=1)
        return enhanced, instance, self.logits(instance, labels)


class BeisHead(RoiHead):
    """The multi-stage mask head with both boundary contrast losses."""

    def __init__(self, in_channels: int, classes: int, settings: BeisSettings) -> None:
        super().__init__()
        names = ["loss_mask"] + ["loss_ibdl"] * settings.ibdl + ["loss_cbdl"] * settings.cbdl
        both = {"mask": Pooler(PYRAMID, 14), "fine": Pooler(FINEST, 14)}
        left_out = {"both": "", "pyramid": "fine", "finest": "mask"}[settings.sources]
        poolers = {name: pooler for name, pooler in both.items() if name != left_out}
        self.spec = HeadSpec("roi", tuple(names), poolers)
        self.settings, self.max_rois = settings, settings.max_rois
        widths = settings.channels
        self.fusion = conv_tower(len(poolers) * in_channels, widths[0], 3)
        self.stages = nn.ModuleList(BeisStage(width, classes) for width in widths)
        self.refinements = nn.ModuleList(conv_tower(2 * before + 1, after, 3) for before, after in pairwise(widths))
        self.contrasts = [StageContrast(settings, classes, self.random) for _ in widths]
        self.steps, self._computed = 0, False

    def forward(self, rois: RoiBatch) -> dict[str, Tensor]:
        """``mask`` of the last stage; in training ``mask_s`` and ``features_s`` of every stage s as well."""
        mid = self.fusion(torch.cat([rois.pooled[name] for name in self.spec.poolers], dim=1))
        out: dict[str, Tensor] = {}
        for index, stage in enumerate(self.stages):
            enhanced, instance, logits = stage(mid, rois.labels)
            out["mask"] = logits
            if self.training:
                out[f"mask_{index}"], out[f"features_{index}"] = logits, enhanced
            if index < len(self.refinements):
                guide = torch.sigmoid(logits.float())[:, None].to(instance.dtype)
                refined = self.refinements[index](torch.cat([instance, guide], dim=1))
                mid = F.interpolate(refined, scale_factor=2, mode="bilinear", align_corners=False)
        return out

    def losses(self, out: dict[str, Tensor], rois: RoiBatch) -> dict[str, Tensor]:
        """Sums over stages (eq. 9); the stages' own values are left in ``values``."""
        self._computed = True
        totals = {name: zero_loss(*out.values()) for name in self.spec.loss_names}
        for index, contrast in enumerate(self.contrasts):
            logits = out[f"mask_{index}"]
            size = logits.shape[-1]
            masks, contour = rois.boundary_targets(size, "context")
            parts = {"loss_mask": bce_loss(logits, masks)}
            if len(logits) and (self.settings.ibdl or self.settings.cbdl):
                stage = StageInput(
                    out[f"features_{index}"],
                    masks,
                    contour,
                    torch.sigmoid(logits.detach().float()),
                    rois.labels,
                    roi_class_maps(rois, size),
                )
                weight = self._contrast_weight()
                parts |= {name: weight * value for name, value in contrast.losses(stage).items()}
            for name, value in parts.items():
                totals[name] = totals[name] + value
                self.values[f"{name}_{size}"] = value.detach()
        return totals

    def _contrast_weight(self) -> float:
        """The weight of both losses at this step: it rises from 0 over the first ``contrast_ramp`` steps."""
        ramp = self.settings.contrast_ramp
        return self.settings.contrast_weight * (min(self.steps / ramp, 1.0) if ramp else 1.0)

    def after_step(self) -> None:
        if self._computed:
            self.steps, self._computed = self.steps + 1, False
        for contrast in self.contrasts:
            contrast.remember()

    def training_state(self) -> dict[str, Any]:
        return {"steps": self.steps, "contrasts": [contrast.state() for contrast in self.contrasts]}

    def load_training_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for contrast, saved in zip(self.contrasts, state["contrasts"], strict=True):
            contrast.load_state(saved)
