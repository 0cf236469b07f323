"""Any timm backbone with a feature pyramid on it, in the form torchvision's detectors take.

Letters: B images, H and W the network input's height and width in pixels, D channels of the pyramid.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any, Literal

import timm
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import (
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from bpr_service.config import Settings
from bpr_service.errors import ConfigError, UnknownName

Norm = Literal["batch", "group", "frozen"]


class BackboneConfig(Settings):
    """The feature extractor.

    Attributes:
        name: a timm model that gives features at strides 4, 8, 16 and 32.
        pretrained: fetch timm's weights; off, everything is trained from scratch.
        norm: ``batch``; ``group`` (small batches from scratch); ``frozen`` batch norm (the papers' fine-tuning).
        fpn_channels: D.
    """

    name: str = "resnet50"
    pretrained: bool = False
    norm: Norm = "batch"
    fpn_channels: int = 256


def group_norm(channels: int, **_: Any) -> nn.Module:
    """Group norm with 32 groups, or fewer where the channels do not divide."""
    return nn.GroupNorm(next(groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0), channels)


class FeaturePyramid(nn.Module):
    """A timm backbone and an FPN: (B, 3, H, W) -> named levels (B, D, H / stride, W / stride).

    ``levels="p2"``: ``0 1 2 3`` at strides 4..32 and ``pool`` at 64 (Mask R-CNN).
    ``levels="p3"``: ``0 1 2`` at strides 8..32, ``p6`` and ``p7`` (FCOS, YOLACT).
    """

    def __init__(self, config: BackboneConfig, levels: Literal["p2", "p3"]) -> None:
        super().__init__()
        strides = [4, 8, 16, 32] if levels == "p2" else [8, 16, 32]
        self.body = create_body(config, strides)
        self.out_channels = config.fpn_channels
        self.widths = self.body.feature_info.channels()
        extra = LastLevelMaxPool() if levels == "p2" else LastLevelP6P7(self.out_channels, self.out_channels)
        norm = group_norm if config.norm == "group" else None
        self.fpn = FeaturePyramidNetwork(self.widths, self.out_channels, extra, norm_layer=norm)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.body(images)
        # Some timm transformers give channels last.
        maps = [
            m if m.shape[1] == width else m.permute(0, 3, 1, 2).contiguous()
            for m, width in zip(maps, self.widths, strict=True)
        ]
        levels: OrderedDict[str, Tensor] = self.fpn(OrderedDict((str(i), m) for i, m in enumerate(maps)))
        return levels


def create_body(config: BackboneConfig, strides: list[int]) -> Any:
    """The timm feature extractor with the maps at ``strides``.

    Raises:
        UnknownName: timm has no such model.
        ConfigError: the model has no features at these strides, or cannot take the norm.
    """
    if config.name.split(".")[0] not in timm.list_models():
        raise UnknownName("backbone", config.name, timm.list_models(f"*{config.name[:6]}*") or ["resnet18", "resnet50"])
    options: dict[str, Any] = {"features_only": True, "pretrained": config.pretrained}
    if config.norm == "group":
        options["norm_layer"] = partial(group_norm)
    try:
        probe: Any = timm.create_model(config.name, features_only=True, pretrained=False)
        reductions = probe.feature_info.reduction()
        indices = tuple(reductions.index(stride) for stride in strides)
        body: Any = timm.create_model(config.name, out_indices=indices, **options)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"backbone {config.name}",
            expected=f"a timm model with features at strides {strides} that takes norm: {config.norm}",
            got=str(error),
            fix="choose another backbone or norm",
        ) from None
    return freeze_batch_norm_2d(body) if config.norm == "frozen" else body  # type: ignore[no-untyped-call]
