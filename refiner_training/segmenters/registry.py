"""The registry of (architecture, head): one name pair, one builder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from bpr_service.errors import ConfigError, UnknownName
from refiner_training.heads.beis import BeisHead
from refiner_training.heads.bmask import BMaskHead
from refiner_training.heads.boundary_squeeze import BoundarySqueezeHead
from refiner_training.heads.mask_scoring import MaskIoU
from refiner_training.heads.plain import PlainMaskHead
from refiner_training.heads.protocol import RoiHead
from refiner_training.segmenters.backbone import FeaturePyramid
from refiner_training.segmenters.base import Segmenter
from refiner_training.segmenters.blendmask import BlendMask
from refiner_training.segmenters.config import SegmenterConfig, SemanticData
from refiner_training.segmenters.deeplab import DeepLab
from refiner_training.segmenters.mask_rcnn import BoundaryRoIHeads, MaskRcnn, build_detector
from refiner_training.segmenters.yolact import Yolact

Builder = Callable[[SegmenterConfig], Segmenter]
RoiHeadBuilder = Callable[[int, int, SegmenterConfig], RoiHead]


def _mask_rcnn(make_head: RoiHeadBuilder) -> Builder:
    def build(config: SegmenterConfig) -> Segmenter:
        classes = config.data.num_classes + 1
        pyramid = FeaturePyramid(config.model.backbone, "p2")
        detector = build_detector(pyramid, classes, config.model.mask_rcnn, config.model.inputs)
        head = make_head(pyramid.out_channels, classes, config)
        own = config.model.mask_rcnn.mask_scoring
        scoring = None if own is None else MaskIoU(pyramid.out_channels, classes, own)
        detector.roi_heads = BoundaryRoIHeads.from_base(detector.roi_heads, head, scoring)
        return MaskRcnn(detector, classes)

    return build


def _blendmask(boundary: bool) -> Builder:
    def build(config: SegmenterConfig) -> Segmenter:
        pyramid = FeaturePyramid(config.model.backbone, "p3")
        settings = config.heads.b2inst if boundary else None
        model = config.model
        return BlendMask(pyramid, config.data.num_classes + 1, model.blendmask, model.inputs, settings)

    return build


def _yolact(boundary: bool) -> Builder:
    def build(config: SegmenterConfig) -> Segmenter:
        pyramid = FeaturePyramid(config.model.backbone, "p3")
        settings = config.heads.b2inst if boundary else None
        model = config.model
        return Yolact(pyramid, config.data.num_classes + 1, model.yolact, model.inputs, settings)

    return build


def _deeplab(squeeze: bool) -> Builder:
    def build(config: SegmenterConfig) -> Segmenter:
        model, data = config.model, config.data
        assert isinstance(data, SemanticData)
        settings = config.heads.bsm_dense if squeeze else None
        return DeepLab(model.backbone, data.num_classes, model.deeplabv3plus, model.inputs, data.ignore_label, settings)

    return build


ROI_HEADS: dict[str, RoiHeadBuilder] = {
    "plain": lambda width, classes, c: PlainMaskHead(width, classes, c.heads.plain),
    "bmask": lambda width, classes, c: BMaskHead(width, classes, c.heads.bmask),
    "bsm": lambda width, classes, c: BoundarySqueezeHead(width, classes, c.heads.bsm),
    "beis": lambda width, classes, c: BeisHead(width, classes, c.heads.beis),
}
"""The mask heads of Mask R-CNN, by the channels of the pyramid and the number of classes."""

HEADS: dict[tuple[str, str], Builder] = {
    **{("mask_rcnn", name): _mask_rcnn(make) for name, make in ROI_HEADS.items()},
    ("blendmask", "plain"): _blendmask(False),
    ("blendmask", "b2inst"): _blendmask(True),
    ("yolact", "plain"): _yolact(False),
    ("yolact", "b2inst"): _yolact(True),
    ("deeplabv3plus", "plain"): _deeplab(False),
    ("deeplabv3plus", "bsm"): _deeplab(True),
}
"""Every (architecture, head); ``plain`` is always the baseline."""


def kind_of(arch: str) -> Literal["instance", "semantic"]:
    """What an architecture segments."""
    return "semantic" if arch == "deeplabv3plus" else "instance"


def build_segmenter(arch: str, head: str, config: SegmenterConfig) -> Segmenter:
    """A model with fresh weights, drawn from ``config.run.seed``: heads of one architecture share all they can.

    Raises:
        UnknownName: no such pair; the message lists the known ones.
        ConfigError: the data is of the other kind.
    """
    if (arch, head) not in HEADS:
        raise UnknownName("(arch, head)", f"{arch}, {head}", [f"{a}, {h}" for a, h in HEADS])
    if config.data.kind != kind_of(arch):
        raise ConfigError(
            f"data of another kind for {arch}",
            expected=f"data.kind {kind_of(arch)}",
            got=config.data.kind,
            fix="choose another architecture or configuration",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        model = HEADS[arch, head](config)
    model.reseed(config.run.seed)
    return model
