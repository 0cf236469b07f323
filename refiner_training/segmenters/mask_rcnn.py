"""Mask R-CNN (torchvision) with an exchangeable mask head: ``plain``, ``bmask``, ``bsm``, ``beis``.

Letters: N RoIs of the batch, n instances of an image, C classes with 0 as background.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import MultiScaleRoIAlign

from bpr_service.config import Settings
from refiner_training.heads.mask_scoring import MaskIoU, MaskScoringSettings
from refiner_training.heads.protocol import PYRAMID, RoiBatch, RoiHead, RoiTruth
from refiner_training.segmenters.backbone import FeaturePyramid
from refiner_training.segmenters.base import Detections, Segmenter, Target, clean_targets, per_image

DETECTOR_LOSSES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")


class InputConfig(Settings):
    """Sizes of the network's input, in pixels.

    Attributes:
        min_size: the shorter side; one is drawn per image in training, the last one is used in evaluation.
        max_size: the longer side is never over this.
        mean, std: of the RGB channels in [0, 1].
    """

    min_size: tuple[int, ...] = Field(default=(800,), min_length=1)
    max_size: int = 1333
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


class MaskRcnnConfig(Settings):
    """The detector under the mask head; defaults are torchvision's and the papers'.

    Attributes:
        anchor_sizes: one per pyramid level, in pixels of the network's input.
        rpn_batch, box_batch: anchors and RoIs sampled an image; a quarter of the RoIs at most are positive.
        rpn_top_train, rpn_top_test: proposals kept.
        box_hidden: width of the box head's two linear layers.
        score_threshold, nms_threshold, detections: of the final boxes.
        mask_scoring: rank masks by their predicted IoU, too (Mask Scoring R-CNN); None does not.
    """

    anchor_sizes: tuple[int, int, int, int, int] = (32, 64, 128, 256, 512)
    rpn_batch: int = 256
    rpn_top_train: int = 2000
    rpn_top_test: int = 1000
    box_batch: int = 512
    box_hidden: int = 1024
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections: int = 100
    mask_scoring: MaskScoringSettings | None = None


class FloatRPNHead(RPNHead):  # type: ignore[misc]
    """torchvision's RPN head with float32 outputs: boxes decoded in bfloat16 would be off by pixels."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [each.float() for each in logits], [each.float() for each in deltas]


class GridTransform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's transform that leaves masks on their RoI grids: they are pasted one by one, later."""

    def __init__(self, inputs: InputConfig) -> None:
        super().__init__(list(inputs.min_size), inputs.max_size, list(inputs.mean), list(inputs.std))
        self.inputs = inputs

    def set_scale(self, scale: float) -> None:
        """Resize to ``scale`` times the configured sizes from now on."""
        self.min_size = tuple(max(round(side * scale), 1) for side in self.inputs.min_size)
        self.max_size = max(round(self.inputs.max_size * scale), 1)

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        if not self.training:
            for found, shape, original in zip(result, image_shapes, original_image_sizes, strict=True):
                found["boxes"] = resize_boxes(found["boxes"], shape, original)
        return result


class BoundaryRoIHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's box branch, with a :class:`RoiHead` as its mask branch, and mask scores where there are any."""

    head: RoiHead
    scoring: MaskIoU | None

    @classmethod
    def from_base(cls, base: Any, head: RoiHead, scoring: MaskIoU | None = None) -> BoundaryRoIHeads:
        """Take over box modules, samplers and thresholds of a torchvision ``RoIHeads``; their names survive."""
        heads = cls(
            base.box_roi_pool,
            base.box_head,
            base.box_predictor,
            base.proposal_matcher.high_threshold,
            base.proposal_matcher.low_threshold,
            base.fg_bg_sampler.batch_size_per_image,
            base.fg_bg_sampler.positive_fraction,
            base.box_coder.weights,
            base.score_thresh,
            base.nms_thresh,
            base.detections_per_img,
        )
        heads.head, heads.scoring = head, scoring
        poolers = {**head.spec.poolers, **({} if scoring is None else {scoring.pooled: scoring.pooler})}
        heads.poolers = nn.ModuleDict(
            {
                name: MultiScaleRoIAlign(list(pooler.levels), pooler.size, sampling_ratio=2)
                for name, pooler in poolers.items()
            }
        )
        return heads

    def has_mask(self) -> bool:
        """Always: torchvision tests for its own three mask modules."""
        return True

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's: detections with ``masks`` (n, 1, M, M), or losses."""
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        box_features = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        logits, deltas = self.box_predictor(box_features)
        boxes, scores, labels = self.postprocess_detections(logits.float(), deltas.float(), proposals, image_shapes)
        every = torch.cat(labels)
        rois = RoiBatch(self._pool(features, boxes, image_shapes), boxes, every)
        masks, factors = self.predict(rois)
        return [
            {"boxes": b, "labels": c, "scores": s, "mask_scores": s * f, "masks": m}
            for b, c, s, f, m in zip(
                boxes, labels, scores, per_image(factors, boxes), per_image(masks, boxes), strict=True
            )
        ], {}

    def predict(self, rois: RoiBatch) -> tuple[Tensor, Tensor]:
        """Mask probabilities (N, 1, M, M) and what the boxes' scores are multiplied by, (N,)."""
        out = self.head(rois)
        masks, factor = self.head.predict(out, rois.labels)
        factors = torch.ones_like(rois.labels, dtype=torch.float32) if factor is None else factor
        if self.scoring is not None:
            factors = factors * self.scoring(out["mask"], rois).float().clamp(0, 1)
        return masks, factors

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None,
    ) -> dict[str, Tensor]:
        proposals, matched, labels, regression = self.select_training_samples(proposals, targets)
        box_features = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        logits, deltas = self.box_predictor(box_features)
        loss_classifier, loss_box_reg = fastrcnn_loss(logits.float(), deltas.float(), labels, regression)
        assert targets is not None
        chosen = [self._positives(each) for each in labels]
        boxes = [p[i] for p, i in zip(proposals, chosen, strict=True)]
        truth = RoiTruth(
            [t["masks"] for t in targets],
            [t["labels"] for t in targets],
            [m[i] for m, i in zip(matched, chosen, strict=True)],
        )
        every = torch.cat([each[i] for each, i in zip(labels, chosen, strict=True)])
        rois = RoiBatch(self._pool(features, boxes, image_shapes), boxes, every, truth)
        losses = {"loss_classifier": loss_classifier, "loss_box_reg": loss_box_reg}
        out = self.head(rois)
        losses |= self.head.losses(out, rois)
        if self.scoring is not None:
            losses[self.scoring.loss_name] = self.scoring.loss(out["mask"], rois)
        return losses

    def _positives(self, labels: Tensor) -> Tensor:
        positive = torch.where(labels > 0)[0]
        return positive[self.head.random.choose(len(positive), self.head.max_rois, labels.device)]

    def _pool(
        self, features: Mapping[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> dict[str, Tensor]:
        return {name: pool(features, boxes, image_shapes) for name, pool in self.poolers.items()}


class MaskRcnn(Segmenter):
    """Mask R-CNN as a :class:`Segmenter`."""

    head_names = ("head.", "detector.roi_heads.head.", "detector.roi_heads.scoring.")

    def __init__(self, detector: Any, classes: int) -> None:
        super().__init__()
        self.detector, self.classes = detector, classes
        self.head: RoiHead = detector.roi_heads.head
        self.random = self.head.random
        own = self.head.spec.loss_names
        if detector.roi_heads.scoring is not None:
            own, self.score_keys = (*own, MaskIoU.loss_name), ("scores", "mask_scores")
        self.loss_names = (*DETECTOR_LOSSES[:2], *own, *DETECTOR_LOSSES[2:])
        self.nms_threshold, self.most = detector.roi_heads.nms_thresh, detector.roi_heads.detections_per_img

    def set_scale(self, scale: float) -> None:
        self.detector.transform.set_scale(scale)

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        if self.training:
            assert targets is not None
            losses = self.detector(images, clean_targets(targets, self.classes))
            return OrderedDict((name, losses[name]) for name in self.loss_names)
        return [
            Detections(
                found["boxes"],
                found["labels"],
                found["scores"],
                found["mask_scores"],
                found["masks"][:, 0],
                found["boxes"],
            )
            for found in self.detector(images)
        ]

    def masks_of(self, image: Tensor, boxes: Tensor, labels: Tensor) -> Detections:
        """The masks of given boxes (n, 4) and labels (n,) of one image (3, H, W), in evaluation mode.

        What a mask branch is worth, whatever the detector finds.
        """
        images, targets = self.detector.transform([image], [{"boxes": boxes, "labels": labels}])
        inside = [targets[0]["boxes"]]
        pooled = self.detector.roi_heads._pool(self.detector.backbone(images.tensors), inside, images.image_sizes)
        masks, _ = self.detector.roi_heads.predict(RoiBatch(pooled, inside, labels))
        scores = torch.ones(len(labels), device=labels.device)
        return Detections(boxes, labels, scores, scores, masks[:, 0], boxes)

    def after_step(self) -> None:
        self.head.after_step()

    def training_state(self) -> dict[str, Any]:
        return self.head.training_state()

    def load_training_state(self, state: dict[str, Any]) -> None:
        self.head.load_training_state(state)


def build_detector(pyramid: FeaturePyramid, classes: int, config: MaskRcnnConfig, inputs: InputConfig) -> Any:
    """A Faster R-CNN without a mask branch; built before the head, so that all rows share its initial weights."""
    box_pool = MultiScaleRoIAlign(list(PYRAMID), 7, sampling_ratio=2)
    detector = FasterRCNN(
        pyramid,
        box_roi_pool=box_pool,
        box_head=TwoMLPHead(pyramid.out_channels * 49, config.box_hidden),
        box_predictor=FastRCNNPredictor(config.box_hidden, classes),
        rpn_anchor_generator=AnchorGenerator(tuple((size,) for size in config.anchor_sizes), ((0.5, 1.0, 2.0),) * 5),
        rpn_head=FloatRPNHead(pyramid.out_channels, 3),
        rpn_pre_nms_top_n_train=config.rpn_top_train,
        rpn_post_nms_top_n_train=config.rpn_top_train,
        rpn_pre_nms_top_n_test=config.rpn_top_test,
        rpn_post_nms_top_n_test=config.rpn_top_test,
        rpn_batch_size_per_image=config.rpn_batch,
        box_batch_size_per_image=config.box_batch,
        box_score_thresh=config.score_threshold,
        box_nms_thresh=config.nms_threshold,
        box_detections_per_img=config.detections,
    )
    detector.transform = GridTransform(inputs)
    return detector
