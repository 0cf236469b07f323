"""Encoders with heads, from timm, torchvision and segmentation-models-pytorch, as refinement networks.

Shapes: P patches of S x S px. Nothing is downloaded: weights are fresh.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FCN(nn.Module):
    """An encoder's features at one resolution, a fully convolutional head (Long et al., CVPR 2015), upsampling."""

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


def hrnet(name: str, channels: int, outputs: int = 1) -> nn.Module:
    """HRNet (Wang et al., TPAMI 2020): its four resolutions at stride 4, a 1x1 convolution, the logits."""
    import timm

    encoder: Any = timm.create_model(
        name, pretrained=False, features_only=True, in_chans=channels, feature_location="", out_indices=(1, 2, 3, 4)
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


def resnet(name: str, channels: int, outputs: int = 1) -> nn.Module:
    """ResNet (He et al., CVPR 2016) dilated to stride 8, with torchvision's FCN head."""
    import timm
    from torchvision.models.segmentation.fcn import FCNHead

    encoder: Any = timm.create_model(
        name, pretrained=False, features_only=True, in_chans=channels, output_stride=8, out_indices=(4,)
    )
    return FCN(encoder, FCNHead(encoder.feature_info.channels()[0], outputs))


def deeplab(channels: int, outputs: int = 1) -> nn.Module:
    """DeepLabV3+ (Chen et al., ECCV 2018) on ResNet-50, from segmentation-models-pytorch."""
    import segmentation_models_pytorch as smp

    network: nn.Module = smp.DeepLabV3Plus(
        encoder_name="resnet50", encoder_weights=None, in_channels=channels, classes=outputs
    )
    return network


class UNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le, ICML 2019) under a light U-Net decoder, from segmentation-models-pytorch.

    The mask channel is added to the logit, so that an undecided network keeps the mask it was given.
    """

    def __init__(self, channels: int, outputs: int = 1) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp

        unet = smp.Unet(
            "tu-tf_efficientnet_lite0",
            encoder_weights=None,
            in_channels=channels,
            classes=outputs,
            decoder_channels=(96, 64, 48, 32, 16),
        )
        self.encoder, self.decoder, self.head = unet.encoder, unet.decoder, unet.segmentation_head
        self.residual = nn.Parameter(torch.tensor(2.0))

    def forward(self, patches: Tensor) -> Tensor:
        """(P, 4, S, S) -> (P, outputs, S, S); S a multiple of 32."""
        logits: Tensor = self.head(self.decoder(self.encoder(patches)))
        foreground = logits[:, :1] + self.residual * patches[:, 3:4]
        return torch.cat((foreground, logits[:, 1:]), 1) if logits.shape[1] > 1 else foreground
