"""Step 3: the refinement networks of the paper's Table 6, and light ones made for CPUs.

Shapes: P patches of S x S px; every network maps (P, 4, S, S), normalised RGB + mask, to (P, outputs, S, S)
logits.

Encoders and heads come from timm, torchvision and segmentation-models-pytorch, without pretrained weights:
nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpr_service.errors import ConfigError, UnknownName

CHANNELS = 4
"""RGB and the mask."""


class FCN(nn.Module):
    """An encoder's features at one resolution, a fully convolutional head (Long et al., CVPR 2015), and
    upsampling.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, patches: Tensor) -> Tensor:
        """(P, 4, S, S) -> (P, outputs, S, S)."""
        features = self.encoder(patches)
        finest = features[0]
        same = [finest, *(_resize(f, finest) for f in features[1:])]
        return _resize(self.head(torch.cat(same, 1)), patches)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, to the height and width of `like`."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _hrnet(name: str, outputs: int = 1) -> nn.Module:
    """HRNet (Wang et al., TPAMI 2020): its four resolutions at stride 4, a 1x1 convolution, the logits."""
    import timm

    encoder: Any = timm.create_model(
        name, pretrained=False, features_only=True, in_chans=CHANNELS, feature_location="", out_indices=(1, 2, 3, 4)
    )
    width = sum(encoder.feature_info.channels())
    return FCN(
        encoder,
        nn.Sequential(
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, outputs, 1),
        ),
    )


def _resnet(name: str, outputs: int = 1) -> nn.Module:
    """ResNet (He et al., CVPR 2016) dilated to stride 8, with torchvision's FCN head."""
    import timm
    from torchvision.models.segmentation.fcn import FCNHead

    encoder: Any = timm.create_model(
        name, pretrained=False, features_only=True, in_chans=CHANNELS, output_stride=8, out_indices=(4,)
    )
    return FCN(encoder, FCNHead(encoder.feature_info.channels()[0], outputs))


def _deeplab(outputs: int = 1) -> nn.Module:
    """DeepLabV3+ (Chen et al., ECCV 2018) on ResNet-50, from segmentation-models-pytorch."""
    import segmentation_models_pytorch as smp

    network: nn.Module = smp.DeepLabV3Plus(
        encoder_name="resnet50", encoder_weights=None, in_channels=CHANNELS, classes=outputs
    )
    return network


def _fast_scnn(outputs: int = 1) -> nn.Module:
    from bpr_service.network.fast_scnn import FastSCNN

    return FastSCNN(CHANNELS, outputs)


def _light(defaults: dict[str, Any], **arguments: Any) -> nn.Module:
    from bpr_service.network.light_unet import LightUNet

    return LightUNet(**{**defaults, **arguments})


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """How a named network is built, and what its network size must be a multiple of."""

    build: Callable[..., nn.Module]
    multiple_px: int


NETWORKS: dict[str, NetworkSpec] = {
    "fcn_hrnet_w18s": NetworkSpec(partial(_hrnet, "hrnet_w18_small_v2"), 32),
    "fcn_hrnet_w18": NetworkSpec(partial(_hrnet, "hrnet_w18"), 32),
    "fcn_hrnet_w48": NetworkSpec(partial(_hrnet, "hrnet_w48"), 32),
    "fcn_resnet18": NetworkSpec(partial(_resnet, "resnet18"), 8),
    "fcn_resnet50": NetworkSpec(partial(_resnet, "resnet50"), 8),
    "deeplabv3plus_resnet50": NetworkSpec(_deeplab, 16),
    "fast_scnn": NetworkSpec(_fast_scnn, 32),
    "light_unet_s": NetworkSpec(partial(_light, {"widths": (24, 48, 64, 96), "depth": 1}), 16),
    "light_unet_m": NetworkSpec(partial(_light, {"widths": (48, 96, 160, 224), "depth": 1}), 16),
    "light_unet_l": NetworkSpec(partial(_light, {"widths": (64, 128, 192, 256), "depth": 2}), 16),
}


def build_network(name: str, **arguments: Any) -> nn.Module:
    """A refinement network with fresh weights.

    Parameters
    ----------
    name : a key of `NETWORKS`
    arguments : ``outputs`` (maps out, default 1) for all of them; ``widths`` and ``depth`` for the light ones

    Raises
    ------
    UnknownName
        No network has that name.
    ConfigError
        An argument the network does not know. The network itself raises it when it is given patches of a
        shape it cannot take, and says which it can.
    """
    if name not in NETWORKS:
        raise UnknownName("network", name, NETWORKS)
    spec = NETWORKS[name]
    try:
        network = spec.build(**arguments)
    except TypeError as cause:
        raise ConfigError(
            f"arguments of network {name}",
            expected="what its builder takes",
            got=str(cause),
            fix="see bpr_service.network.registry.build_network",
        ) from None
    network.register_forward_pre_hook(partial(_check_patches, name, spec.multiple_px))
    return network


def _check_patches(name: str, multiple: int, _network: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Raise :class:`ConfigError` for a batch of another shape than (P, 4, S, S), S a multiple of
    `multiple`.
    """
    shape = tuple(inputs[0].shape)
    if len(shape) != 4 or shape[1] != CHANNELS:
        raise ConfigError(
            f"patches for {name}",
            expected="shape (P, 4, S, S): RGB and mask",
            got=str(shape),
            fix="normalise a (P, S, S, 4) uint8 batch with bpr_service.network.normalise",
        )
    height, width = shape[2:]
    if height % multiple or width % multiple:
        fit = max(multiple, -(-max(height, width) // multiple) * multiple)
        raise ConfigError(
            f"patches for {name}",
            expected=f"sides that are multiples of {multiple} px",
            got=f"{height} x {width}",
            fix=f"set network_size_px={fit}",
        )
