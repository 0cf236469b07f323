"""Any timm backbone with a feature pyramid on it, in the form torchvision's detectors take.

Letters: B images, H and W the network input's height and width in pixels, D channels of the pyramid.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from functools import cache, partial
from typing import Any, Literal

import timm
import torch
from pydantic import Field
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops import deform_conv2d
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
        stride_in_1x1: put a bottleneck's stride into its first 1x1 convolution, as detectron2's default ResNets have
            it; timm's and torchvision's have it in the 3x3.
        deformable: in how many of the last stages each block's 3x3 convolution samples where it has learnt to
            (deformable convolution, torchvision's); bottleneck ResNets alone.
        frozen_stages: parts that are not trained: 1 the stem, 2 the stem and the first stage (detectron2), and so on.
    """

    name: str = "resnet50"
    pretrained: bool = False
    norm: Norm = "batch"
    fpn_channels: int = 256
    stride_in_1x1: bool = False
    deformable: int = Field(default=0, ge=0, le=4)
    frozen_stages: int = Field(default=0, ge=0, le=5)


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
        reductions = _reductions(config.name)
        indices = tuple(reductions.index(stride) for stride in strides)
        body: Any = timm.create_model(config.name, out_indices=indices, **options)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"backbone {config.name}",
            expected=f"a timm model with features at strides {strides} that takes norm: {config.norm}",
            got=str(error),
            fix="choose another backbone or norm",
        ) from None
    if config.stride_in_1x1:
        stride_first(body, config.name)
    if config.deformable:
        deform(body, config)
    freeze(body, config)
    return freeze_batch_norm_2d(body) if config.norm == "frozen" else body  # type: ignore[no-untyped-call]


@cache
def _reductions(name: str) -> list[int]:
    """The strides at which a timm model gives features; built on the meta device, which draws no random numbers."""
    with torch.device("meta"):
        probe: Any = timm.create_model(name, features_only=True, pretrained=False)
    strides: list[int] = probe.feature_info.reduction()
    return strides


def stride_first(body: nn.Module, name: str) -> None:
    """Move the stride of each bottleneck from its 3x3 to its first 1x1 convolution."""
    blocks = [block for block in body.modules() if hasattr(block, "conv3") and hasattr(block, "conv2")]
    if not blocks:
        fix = "leave model.backbone.stride_in_1x1 false"
        raise ConfigError(f"backbone {name}", expected="a ResNet of bottlenecks", got="none", fix=fix)
    block: Any
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


class Deformable(nn.Module):
    """A 3x3 convolution that samples beside its grid, by offsets that a convolution of its own predicts from its input.

    Offsets start at 0, so it begins as the convolution that it takes the place of, whose weights it keeps.
    Source: Dai et al., *Deformable Convolutional Networks*, ICCV 2017, section 2.1.
    """

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        kernel, stride, padding, dilation = plain.kernel_size, plain.stride, plain.padding, plain.dilation
        self.weight, self.bias = plain.weight, plain.bias
        self.geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
        count = 2 * kernel[0] * kernel[1]
        self.offsets = nn.Conv2d(plain.in_channels, count, 3, stride, padding, dilation)  # type: ignore[arg-type]
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.offsets.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """As the convolution's, computed in float32."""
        offsets = self.offsets(features)
        with torch.autocast(features.device.type, enabled=False):
            found: Tensor = deform_conv2d(
                features.float(), offsets.float(), self.weight.float(), self.bias, **self.geometry
            )
        return found.to(offsets.dtype)


def deform(body: nn.Module, config: BackboneConfig) -> None:
    """Make the 3x3 convolutions of the last ``deformable`` stages deformable."""
    stages = [stage for name, stage in body.named_children() if re.fullmatch(r"layer\d", name)]
    blocks: list[Any] = [
        block
        for stage in stages[-config.deformable :]
        for block in stage.modules()
        if isinstance(getattr(block, "conv3", None), nn.Conv2d)
    ]
    if not blocks or any(block.conv2.groups != 1 for block in blocks):
        raise ConfigError(
            f"backbone {config.name}",
            expected="a ResNet of bottlenecks without groups",
            got="none" if not blocks else f"groups of {blocks[0].conv2.groups}",
            fix="leave model.backbone.deformable 0, or use resnet50 or resnet101",
        )
    for block in blocks:
        block.conv2 = Deformable(block.conv2)


def freeze(body: nn.Module, config: BackboneConfig) -> None:
    """Take the first stages out of the training: their weights, and what their norms learn.

    The stem is what comes before the first stage, as timm names both.
    """
    if config.frozen_stages == 0:
        return
    stages = [name for name, _ in body.named_children() if re.fullmatch(r"(layer|stages?_?|blocks_?|res)\d", name)]
    if len(stages) < config.frozen_stages - 1 or not stages:
        raise ConfigError(
            f"backbone {config.name}",
            expected=f"{max(config.frozen_stages - 1, 1)} stages that can be frozen",
            got=", ".join(stages) or "none that timm names so",
            fix="lower model.backbone.frozen_stages, or use a ResNet",
        )
    left = set(stages[config.frozen_stages - 1 :])
    for name, part in body.named_children():
        if name not in left:
            part = freeze_batch_norm_2d(part)  # type: ignore[no-untyped-call]
            setattr(body, name, part.requires_grad_(False))
