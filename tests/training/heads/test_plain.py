"""The plain rows are torchvision's own models: equal losses for equal weights and random numbers."""

from __future__ import annotations

from typing import Any

import torch
from torchvision.models.detection import FCOS, MaskRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from refiner_training.segmenters.data.sets import open_data
from refiner_training.segmenters.data.stream import collate
from refiner_training.segmenters.registry import build_segmenter


def batch_of(config: Any) -> Any:
    dataset = open_data(config.data, "train", augment=False)
    return collate([dataset[0, 0], dataset[1, 1]])


def stock_mask_rcnn(ours: Any) -> MaskRCNN:
    """torchvision's Mask R-CNN around the same modules, its mask branch loaded with our weights."""
    detector, head = ours.detector, ours.head
    mask_head, predictor = MaskRCNNHeads(64, (16,) * 4, 1), MaskRCNNPredictor(16, 16, 3)
    mask_head.load_state_dict(
        {f"{i}.0.{kind}": head.tower.state_dict()[f"{2 * i}.{kind}"] for i in range(4) for kind in ("weight", "bias")}
    )
    own = head.predictor.state_dict()
    predictor.load_state_dict(
        {
            **{f"conv5_mask.{kind}": own[f"up.{kind}"] for kind in ("weight", "bias")},
            **{f"mask_fcn_logits.{kind}": own[f"logits.{kind}"] for kind in ("weight", "bias")},
        }
    )
    stock = MaskRCNN(
        detector.backbone,
        rpn_anchor_generator=detector.rpn.anchor_generator,
        rpn_head=detector.rpn.head,
        rpn_pre_nms_top_n_train=100,
        rpn_post_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_test=50,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        box_head=detector.roi_heads.box_head,
        box_predictor=detector.roi_heads.box_predictor,
        box_batch_size_per_image=32,
        box_detections_per_img=10,
        mask_head=mask_head,
        mask_predictor=predictor,
    )
    stock.transform = GeneralizedRCNNTransform([96], 128, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return stock


def plain_mask_rcnn(configure: Any) -> Any:
    overrides = {"heads.plain": {"channels": 16, "binarise": False, "init": "torchvision"}}
    return configure("mask_rcnn", **overrides)


def test_mask_rcnn_losses_are_torchvisions(configure: Any) -> None:
    config = plain_mask_rcnn(configure)
    ours = build_segmenter("mask_rcnn", "plain", config).train()
    stock = stock_mask_rcnn(ours).train()
    images, targets = batch_of(config)
    torch.manual_seed(0)
    expected = stock(images, [dict(target) for target in targets])
    torch.manual_seed(0)
    losses = ours(images, targets)
    assert set(losses) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, msg=name)


def test_mask_rcnn_detections_are_torchvisions(configure: Any) -> None:
    config = plain_mask_rcnn(configure)
    ours = build_segmenter("mask_rcnn", "plain", config).eval()
    stock = stock_mask_rcnn(ours).eval()
    images, _ = batch_of(config)
    with torch.no_grad():
        found, expected = ours(images)[0], stock(images)[0]
    torch.testing.assert_close(found.boxes, expected["boxes"])
    torch.testing.assert_close(found.scores, expected["scores"])
    # Pasting differs by half-pixel conventions at the rim only.
    for mask, frame in zip(found.masks(96, 128), expected["masks"], strict=True):
        differ = (torch.from_numpy(mask.to_array()).bool() != (frame[0] >= 0.5)).sum()
        assert differ <= 0.12 * 96 * 128


def test_the_tables_rule_differs_from_the_stock_rule(configure: Any) -> None:
    soft = build_segmenter("mask_rcnn", "plain", plain_mask_rcnn(configure)).train()
    hard = build_segmenter("mask_rcnn", "plain", configure("mask_rcnn", **{"heads.plain.max_rois": None})).train()
    hard.load_state_dict(soft.state_dict())
    images, targets = batch_of(configure("mask_rcnn"))
    values = []
    for model in (soft, hard):
        torch.manual_seed(0)
        values.append(model(images, targets))
    torch.testing.assert_close(values[0]["loss_classifier"], values[1]["loss_classifier"])
    assert values[0]["loss_mask"] != values[1]["loss_mask"]


def test_blendmask_box_losses_are_torchvisions_fcos(configure: Any) -> None:
    config = configure("blendmask")
    ours = build_segmenter("blendmask", "plain", config).train()
    stock = FCOS(ours.detector.backbone, 3).train()  # type: ignore
    own = {name: value for name, value in ours.detector.head.state_dict().items() if "attention" not in name}  # type: ignore[union-attr]
    stock.head.load_state_dict(own)
    stock.transform = GeneralizedRCNNTransform([96], 128, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    images, targets = batch_of(config)
    expected = stock(images, [dict(target) for target in targets])
    losses = ours(images, targets)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, msg=name)


def test_deeplab_plain_is_smps_model(configure: Any) -> None:
    import segmentation_models_pytorch as smp

    ours: Any = build_segmenter("deeplabv3plus", "plain", configure("deeplabv3plus")).eval()
    stock = smp.DeepLabV3Plus(
        "tu-resnet10t",
        encoder_weights=None,
        encoder_output_stride=8,
        decoder_channels=16,
        decoder_atrous_rates=(2, 4, 6),
        classes=3,
    ).eval()
    stock.load_state_dict(ours.model.state_dict())
    image = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(image)["mask"], stock(image))
