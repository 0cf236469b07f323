"""DeepLabV3+ (segmentation-models-pytorch), ``plain`` or with BoundarySqueeze in the decoder.

Letters: B images, C classes (no background class is added), H and W pixels, h and w cells at stride 4.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import segmentation_models_pytorch as smp
import torch
from pydantic import Field
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from bpr_service.config import Settings
from bpr_service.errors import ConfigError
from refiner_training.heads.boundary_squeeze import BoundarySqueezeModule
from refiner_training.heads.boundary_squeeze_dense import (
    AUXILIARY,
    SPEC,
    DenseSqueezeSettings,
    dense_squeeze_losses,
)
from refiner_training.heads.layers import conv, predictor, small_start
from refiner_training.heads.losses import zero_loss
from refiner_training.segmenters.backbone import BackboneConfig, freeze
from refiner_training.segmenters.base import Segmenter, Target
from refiner_training.segmenters.mask_rcnn import InputConfig

PAD_TO = 32


class DeepLabConfig(Settings):
    """The model.

    Attributes:
        output_stride: of the encoder's last features (BoundarySqueeze trains at 8).
        decoder_channels: width of ASPP, decoder and squeeze modules.
        atrous_rates: of ASPP.
        dropout: of ASPP's projection.
        test_size_px: the shorter side of an image in evaluation; None leaves it as it is.
        test_crop_px: height and width of the windows that an image is seen through in evaluation, at least a third of
            each shared with its neighbours, probabilities averaged; None sees it whole.
    """

    output_stride: int = Field(default=8, ge=8, le=16, multiple_of=8)
    decoder_channels: int = 256
    atrous_rates: tuple[int, int, int] = (12, 24, 36)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    test_size_px: int | None = Field(default=None, ge=32)
    test_crop_px: tuple[int, int] | None = None


class SqueezeDecoder(DeepLabV3PlusDecoder):  # type: ignore[misc]
    """smp's decoder, its concatenation with the stride-4 features included, and BoundarySqueeze on what it gives.

    F_RoI is the decoder's output at stride 4, F' a 1x1 convolution of the encoder's stride-4 features.
    """

    def __init__(self, encoder_channels: list[int], config: DeepLabConfig, detach_sum: bool) -> None:
        super().__init__(
            encoder_channels, 5, config.decoder_channels, config.atrous_rates, config.output_stride, True,
            config.dropout,
        )  # fmt: skip
        self.fine = conv(encoder_channels[2], config.decoder_channels, 1)
        self.squeeze = BoundarySqueezeModule(config.decoder_channels, detach_sum)

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        """``mask, boundary, contraction, expansion``, each (B, D, h, w)."""
        squeezed: dict[str, Tensor] = self.squeeze(super().forward(features), self.fine(features[2]))
        return squeezed


class DeepLab(Segmenter):
    """DeepLabV3+ as a :class:`Segmenter`; targets hold ``labels`` (H, W) int64, images of a batch one size."""

    head_names = ("model.decoder.", "model.segmentation_head.", "auxiliary.")

    def __init__(
        self,
        backbone: BackboneConfig,
        classes: int,
        config: DeepLabConfig,
        inputs: InputConfig,
        ignore_label: int = 255,
        squeeze: DenseSqueezeSettings | None = None,
    ) -> None:
        super().__init__()
        self.classes, self.ignore_label, self.settings = classes, ignore_label, squeeze
        self.inputs, self.config, self.scale = inputs, config, 1.0
        if backbone.norm != "batch" or backbone.stride_in_1x1 or backbone.deformable:
            own = ("norm", "stride_in_1x1", "deformable")
            got = ", ".join(f"{name} {getattr(backbone, name)}" for name in own)
            expected, fix = "norm batch, the stride in the 3x3, no deformable stages", "set model.backbone so"
            raise ConfigError("the backbone of a deeplabv3plus", expected=expected, got=got, fix=fix)
        self.model = smp.DeepLabV3Plus(
            f"tu-{backbone.name}",
            encoder_weights="imagenet" if backbone.pretrained else None,
            encoder_output_stride=config.output_stride,
            decoder_channels=config.decoder_channels,
            decoder_atrous_rates=config.atrous_rates,
            decoder_aspp_dropout=config.dropout,
            classes=classes,
        )
        freeze(self.model.encoder.model, backbone)
        small_start(self.model.segmentation_head[0])
        self.loss_names: tuple[str, ...] = ("loss_ce",)
        if squeeze is not None:
            self.loss_names += SPEC.loss_names
            decoder = SqueezeDecoder(self.model.encoder.out_channels, config, squeeze.detach_sum)
            decoder.load_state_dict(self.model.decoder.state_dict(), strict=False)  # all rows start alike
            self.model.decoder = decoder
            width = config.decoder_channels
            self.auxiliary = nn.ModuleDict({name: predictor(width, classes) for name in AUXILIARY})

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised images -> ``mask`` (B, C, H, W), in training also auxiliary (B, C, h, w)."""
        decoded = self.model.decoder(self.model.encoder(images))
        if self.settings is None:
            return {"mask": self.model.segmentation_head(decoded)}
        out = {"mask": self.model.segmentation_head(decoded["mask"])}
        if self.training:
            out |= {name: layer(decoded[name]) for name, layer in self.auxiliary.items()}
        return out

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        if not self.training:
            return [self._probabilities(image) for image in images]
        assert targets is not None
        if len(images) < 2:  # ASPP's pooled branch is one value a channel and image, and is batch-normalised
            raise ConfigError(
                "a batch of one image", expected="two images a process or more", got="1", fix="raise run.batch_size"
            )
        labels = torch.stack([self._checked(target["labels"]) for target in targets])
        batch = self._normalise(torch.stack(images))
        height, width = batch.shape[-2:]
        out = self.logits(_pad(batch))
        logits = out["mask"][..., :height, :width].float()
        losses = OrderedDict(loss_ce=self._cross_entropy(logits, labels))
        if self.settings is not None:
            # The padding is as unknown as an ignored pixel.
            padded = _pad(labels, self.ignore_label)
            auxiliary = {name: out[name] for name in AUXILIARY}
            losses |= dense_squeeze_losses(auxiliary, padded, self.ignore_label, self.settings)
        return losses

    def _normalise(self, batch: Tensor) -> Tensor:
        mean, std = (batch.new_tensor(each)[:, None, None] for each in (self.inputs.mean, self.inputs.std))
        return (batch - mean) / std

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over valid pixels; 0 on the graph when there are none (the mean over nothing is NaN)."""
        count = (labels != self.ignore_label).sum()
        if int(count) == 0:
            return zero_loss(logits)
        return F.cross_entropy(logits, labels, ignore_index=self.ignore_label, reduction="sum") / count

    def set_scale(self, scale: float) -> None:
        self.scale = scale

    def _probabilities(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        scale = self.scale * (self.config.test_size_px or min(height, width)) / min(height, width)
        if scale == 1:
            return self._through_windows(image)
        seen = (max(round(height * scale), 1), max(round(width * scale), 1))
        scaled = F.interpolate(image[None], seen, mode="bilinear", align_corners=False, antialias=scale < 1)[0]
        found = self._through_windows(scaled)[None]
        return F.interpolate(found, (height, width), mode="bilinear", align_corners=False)[0]

    def _through_windows(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        rows, columns = self.config.test_crop_px or (height, width)
        total, counts = image.new_zeros((self.classes, height, width)), image.new_zeros((height, width))
        for y in _starts(height, rows):
            for x in _starts(width, columns):
                window = image[:, y : y + rows, x : x + columns]
                own = window.shape[-2:]
                logits = self.logits(_pad(self._normalise(window[None])))["mask"][0, :, : own[0], : own[1]]
                total[:, y : y + rows, x : x + columns] += logits.float().softmax(dim=0)
                counts[y : y + rows, x : x + columns] += 1
        return total / counts

    def _checked(self, labels: Tensor) -> Tensor:
        valid = labels[labels != self.ignore_label]
        if len(valid) and (int(valid.max()) >= self.classes or int(valid.min()) < 0):
            raise ConfigError(
                "a label has no class in the model",
                expected=f"labels from 0 to {self.classes - 1}, or {self.ignore_label}",
                got=str(int(valid.max())),
                fix="set data.num_classes to the number of classes of the data",
            )
        return labels


def _starts(length: int, window: int) -> list[int]:
    """Where windows begin that cover ``length`` evenly, a third or more of each shared with the next."""
    count = 1 if window >= length else 1 + -(-3 * (length - window) // (2 * window))
    return [round(index * (length - window) / max(count - 1, 1)) for index in range(count)] if count > 1 else [0]


def _pad(batch: Tensor, value: float = 0.0) -> Tensor:
    """Pad right and bottom to multiples of 32, what the encoder can halve five times."""
    height, width = batch.shape[-2:]
    return F.pad(batch, (0, -width % PAD_TO, 0, -height % PAD_TO), value=value)
