"""Variants of the bases: mask scores for any mask head, deformable convolution in the backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bpr_service.errors import ConfigError
from refiner_training.heads.mask_scoring import MaskIoU, MaskScoringSettings, true_iou
from refiner_training.heads.protocol import RoiBatch, RoiTruth
from refiner_training.segmenters.backbone import BackboneConfig, Deformable, FeaturePyramid
from refiner_training.segmenters.base import Detections
from refiner_training.segmenters.data.sets import open_data
from refiner_training.segmenters.data.stream import collate
from refiner_training.segmenters.registry import build_segmenter

SCORING = {"model.mask_rcnn.mask_scoring": {"channels": 16, "hidden": 32}}


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([loss.float() for loss in losses.values()]).sum()


@pytest.mark.parametrize("head", ["plain", "bmask", "beis"])
def test_mask_scores_go_with_every_head(head: str, configure: Any) -> None:
    config = configure("mask_rcnn", **SCORING, **{"model.mask_rcnn.score_threshold": 0.0})
    model: Any = build_segmenter("mask_rcnn", head, config)
    dataset = open_data(config.data, "train", augment=False)
    batch = collate([dataset[0, 0], dataset[1, 1]])
    losses = model.train()(*batch)
    assert "loss_mask_iou" in losses
    assert tuple(losses) == model.loss_names
    total(losses).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    nothing = model(batch[0], [{name: value[:0] for name, value in target.items()} for target in batch[1]])
    assert torch.isfinite(total(nothing))
    model.eval()
    with torch.no_grad():
        model.detector.roi_heads.scoring.scores.outputs["mask"].bias.fill_(0.5)
        found: Detections = model(batch[0])[0]
        plain = build_segmenter("mask_rcnn", head, configure("mask_rcnn", **{"model.mask_rcnn.score_threshold": 0.0}))
        plain.load_state_dict({n: v for n, v in model.state_dict().items() if ".scoring." not in n})
        without: Detections = plain.eval()(batch[0])[0]
    assert len(found) == 10
    torch.testing.assert_close(found.boxes, without.boxes)
    torch.testing.assert_close(found.scores, without.scores)
    assert (found.mask_scores < without.mask_scores).all()


def test_the_iou_counts_what_lies_outside_the_box() -> None:
    """A square of 20 px; one box is tight, the other cuts off a half: the mask of that has an IoU of a half."""
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[0, 20:40, 20:40] = 1
    boxes = torch.tensor([[20.0, 20, 40, 40], [20, 20, 30, 40], [20, 20, 40, 60]])
    labels, matched = torch.ones(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    rois = RoiBatch({}, [boxes], labels, RoiTruth([mask], [labels[:1]], [matched]))
    found = true_iou(rois.mask_targets(28) > 0, rois)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5, 1.0]), atol=0.03, rtol=0)
    everything = true_iou(torch.ones(3, 28, 28), rois)
    torch.testing.assert_close(everything, torch.tensor([1.0, 0.5, 0.5]), atol=0.1, rtol=0)  # a grid loses a rim


def test_scores_must_not_change_the_masks() -> None:
    torch.manual_seed(0)
    head = MaskIoU(4, 3, MaskScoringSettings(channels=8, hidden=8))
    logits = torch.randn(2, 28, 28).requires_grad_()
    boxes, labels = torch.tensor([[0.0, 0, 20, 20], [5, 5, 30, 30]]), torch.ones(2, dtype=torch.int64)
    truth = RoiTruth([torch.ones(1, 40, 40)], [labels[:1]], [labels * 0])
    head.loss(logits, RoiBatch({"score": torch.randn(2, 4, 14, 14)}, [boxes], labels, truth)).backward()
    assert logits.grad is None or not logits.grad.any()


# ---- deformable convolution ----------------------------------------------------------------------------------------


def test_a_fresh_deformable_convolution_is_the_plain_one() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False)
    images = torch.randn(2, 6, 17, 20)
    deformable = Deformable(plain)
    torch.testing.assert_close(deformable(images), plain(images), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        deformable.offsets.bias[1::2] = 1.0  # type: ignore[index]  # a pixel to the right
    shifted = plain(torch.roll(images, -1, dims=-1))
    torch.testing.assert_close(deformable(images)[:, :, 1:, 1:-1], shifted[:, :, 1:, 1:-1], atol=1e-5, rtol=1e-4)


def test_the_last_stages_are_deformable_and_weights_keep_their_names() -> None:
    torch.manual_seed(0)
    config = BackboneConfig(name="resnet26t", fpn_channels=8)
    plain = FeaturePyramid(config, "p2").eval()
    pyramid = FeaturePyramid(config.with_options(deformable=2), "p2").eval()
    changed = [name for name, part in pyramid.named_modules() if isinstance(part, Deformable)]
    assert changed
    assert all(name.startswith(("body.layer3.", "body.layer4.")) and name.endswith(".conv2") for name in changed)
    left = pyramid.load_state_dict(plain.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert all(".offsets." in name for name in left.missing_keys)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for own, other in zip(pyramid(images).values(), plain(images).values(), strict=True):
            torch.testing.assert_close(own, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "got"), [("resnet10t", "got none"), ("resnext50_32x4d", "groups of 32")])
def test_a_backbone_that_cannot_be_deformable(name: str, got: str) -> None:
    with pytest.raises(ConfigError, match=got), torch.device("meta"):
        FeaturePyramid(BackboneConfig(name=name, deformable=1), "p2")


def test_deeplab_takes_no_deformable_stages(configure: Any) -> None:
    with pytest.raises(ConfigError, match="deformable 1"):
        build_segmenter("deeplabv3plus", "plain", configure("deeplabv3plus", **{"model.backbone.deformable": 1}))
