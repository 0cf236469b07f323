"""BlendMask on torchvision's FCOS, ``plain`` or with B2Inst's boundary basis and mask scores.

Sources: Chen, Sun, Tian, Shen, Huang, Yan, *BlendMask*, CVPR 2020, section 3; B2Inst, section 3.
Letters: B images, n instances, L locations of the pyramid, K bases (the boundary basis included), A cells a side
of an attention map, R cells a side of an instance's mask grid, C classes with 0 as background.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection import FCOS
from torchvision.models.detection._utils import _topk_min
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import MultiScaleRoIAlign, batched_nms, clip_boxes_to_image, roi_align

from refiner_training.heads.b2inst import (
    B2InstSettings,
    MaskScoring,
    basis_map,
    boundary_basis_loss,
    head_losses,
    instance_basis_loss,
    rescore,
)
from refiner_training.heads.losses import zero_loss
from refiner_training.heads.targets import binarise, holistic_boundary, project_masks
from refiner_training.segmenters.backbone import FeaturePyramid
from refiner_training.segmenters.base import Detections, Segmenter, Target, clean_targets, per_image
from refiner_training.segmenters.blendmask_layers import AttentionHead, BasisModule, BlendMaskConfig, blend
from refiner_training.segmenters.mask_rcnn import GridTransform, InputConfig

BASIS_STRIDE = 4


@dataclass(frozen=True)
class _Pass:
    """One pass over a batch.

    The resized images, pyramid levels, head outputs, anchors, bases (B, K, h, w), and the logits of the boundary basis
    (B, h, w) where there is one.
    """

    images: ImageList
    levels: list[Tensor]
    outputs: dict[str, Tensor]
    anchors: list[Tensor]
    bases: Tensor
    boundary: Tensor | None


class BlendMask(Segmenter):
    """BlendMask; with ``b2inst`` settings the last basis is the holistic boundary and masks are rescored."""

    head_names = ("basis.", "scoring.", "detector.head.regression_head.attention.")

    def __init__(
        self,
        pyramid: FeaturePyramid,
        classes: int,
        config: BlendMaskConfig,
        inputs: InputConfig,
        b2inst: B2InstSettings | None = None,
    ) -> None:
        super().__init__()
        self.config, self.classes, self.b2inst = config, classes, b2inst
        self.attention = config.attention or (14 if b2inst is None else 7)
        self.kernels = config.bases + (b2inst is not None and b2inst.assembled)
        outputs = config.bases + (b2inst is not None and b2inst.has_basis)
        width = pyramid.out_channels
        self.detector = FCOS(
            pyramid,
            classes,
            head=AttentionHead(width, classes, self.kernels * self.attention**2),
            score_thresh=config.score_threshold,
            nms_thresh=config.nms_threshold,
            detections_per_img=config.detections,
            topk_candidates=config.candidates,
        )
        self.detector.transform = GridTransform(inputs)
        self.nms_threshold, self.most = config.nms_threshold, config.detections
        self.basis = BasisModule(width, outputs, classes, config)
        names = ["classification", "bbox_regression", "bbox_ctrness", "loss_mask", "loss_semantic"]
        self.scoring: MaskScoring | None = None
        if b2inst is not None and b2inst.scoring != "none":
            self.scoring = MaskScoring(width, classes, b2inst)
            self.score_pool = MultiScaleRoIAlign(["0", "1", "2"], MaskScoring.roi_size, sampling_ratio=2)
            self.score_keys = ("scores", "mask_scores")
        self.loss_names = (*names, *head_losses(b2inst))

    def set_scale(self, scale: float) -> None:
        self.detector.transform.set_scale(scale)

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        if self.training:
            assert targets is not None
            resized, cleaned = self.detector.transform(images, clean_targets(targets, self.classes))
            losses = self._losses(self._run(resized), cleaned)
            return OrderedDict((name, losses[name]) for name in self.loss_names)
        resized, _ = self.detector.transform(images)
        return self._detect(self._run(resized), [(i.shape[-2], i.shape[-1]) for i in images])

    def _run(self, images: ImageList) -> _Pass:
        levels = list(self.detector.backbone(images.tensors).values())
        outputs = self.detector.head(levels)
        anchors = self.detector.anchor_generator(images, levels)
        bases, boundary = self.basis(levels), None
        if self.b2inst is not None and self.b2inst.has_basis:
            bases, boundary = bases[:, :-1], bases[:, -1]
            if self.b2inst.assembled:
                bases = torch.cat([bases, basis_map(boundary, self.b2inst)[:, None]], dim=1)
        return _Pass(images, levels, outputs, anchors, bases, boundary)

    # ---- training ------------------------------------------------------------------------------------------

    def _losses(self, run: _Pass, targets: list[Target]) -> dict[str, Tensor]:
        sizes = [level.shape[-2] * level.shape[-1] for level in run.levels]
        losses: dict[str, Any] = self.detector.compute_loss(targets, run.outputs, run.anchors, sizes)
        matched = losses.pop("matched")
        losses |= self._mask_losses(run, targets, matched)
        losses["loss_semantic"] = self._semantic_loss(run, targets)
        if run.boundary is not None:
            losses |= self._basis_loss(run, run.boundary, targets)
        return losses

    def _basis_loss(self, run: _Pass, boundary: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Of the boundary basis (B, h, w), where it is supervised."""
        assert self.b2inst is not None
        if not self.b2inst.supervised:
            return {}
        if self.b2inst.basis == "instance":
            return {"loss_boundary_basis": instance_basis_loss(boundary, targets, 1 / BASIS_STRIDE, self.b2inst)}
        canvas = (int(run.images.tensors.shape[-2]), int(run.images.tensors.shape[-1]))
        truth = torch.stack([holistic_boundary(t["masks"], canvas, BASIS_STRIDE) for t in targets])
        return {"loss_boundary_basis": boundary_basis_loss(boundary, truth, self.b2inst)}

    def _mask_losses(self, run: _Pass, targets: list[Target], matched: list[Tensor]) -> dict[str, Tensor]:
        """Masks of positive locations on their ground-truth boxes, weighted by the centreness target."""
        image, place = torch.where(torch.stack(matched) >= 0)
        chosen = self.random.choose(len(image), self.config.max_masks, image.device)
        image, place = image[chosen], place[chosen]
        counts = torch.tensor([0, *(len(t["labels"]) for t in targets)], device=image.device).cumsum(0)
        instance = torch.stack(matched)[image, place] + counts[image]  # index over the batch's instances
        boxes = [t["boxes"] for t in targets]
        size = self.config.mask_size
        bases = self._cut(run.bases, boxes)
        attention = self._shape(run.outputs["attention"][image, place])
        logits = blend(bases[instance], attention)
        truth = torch.cat(
            [
                project_masks(t["masks"], t["boxes"], torch.arange(len(t["labels"]), device=image.device), size)
                for t in targets
            ]
        )
        truth = binarise(truth)
        if len(logits) == 0:
            zero = zero_loss(logits, run.bases, run.outputs["attention"])
            losses = {"loss_mask": zero}
        else:
            weight = self._centreness(run.anchors, boxes, image, place, instance)
            each = F.binary_cross_entropy_with_logits(logits, truth[instance], reduction="none").mean(dim=(1, 2))
            losses = {"loss_mask": (each * weight).sum() / weight.sum().clamp(min=1e-6)}
            if self.scoring is not None:
                # GT boxes have no attention of their own: each instance takes its most central location's.
                order = weight.argsort(descending=True)
                first = torch.full((int(counts[-1]),), len(order), device=order.device)
                first.scatter_reduce_(0, instance[order], torch.arange(len(order), device=order.device), "amin")
                order = order[first[first < len(order)]]
                image, instance, logits = image[order], instance[order], logits[order]
        if self.scoring is not None:
            labels = torch.cat([t["labels"] for t in targets])[instance]
            every = torch.cat(boxes)[instance]
            per_image = [every[image == index] for index in range(len(targets))]
            by_image = torch.argsort(image, stable=True)
            features = self._score_features(run, per_image)
            masks = torch.sigmoid(logits)[by_image]
            scores = self.scoring(masks, features, labels[by_image])
            losses |= self.scoring.losses(masks, truth[instance][by_image], scores)
        return losses

    def _centreness(
        self, anchors: list[Tensor], boxes: list[Tensor], image: Tensor, place: Tensor, instance: Tensor
    ) -> Tensor:
        """FCOS' centreness target of the positive locations (n,)."""
        anchor = torch.stack(anchors)[image, place]
        centre, box = (anchor[:, :2] + anchor[:, 2:]) / 2, torch.cat(boxes)[instance]
        before, after = centre - box[:, :2], box[:, 2:] - centre
        return (torch.minimum(before, after) / torch.maximum(before, after)).clamp(min=0).prod(dim=1).sqrt()

    def _semantic_loss(self, run: _Pass, targets: list[Target]) -> Tensor:
        """Cross entropy of the classes on P3; of overlapping instances the smaller one counts."""
        logits = self.basis.semantic(run.levels[0]).float()
        height, width = run.images.tensors.shape[-2:]
        labels = torch.zeros((len(targets), height, width), dtype=torch.int64, device=logits.device)
        for image, target in zip(labels, targets, strict=True):
            for index in target["masks"].flatten(1).sum(1).argsort(descending=True).tolist():
                mask = target["masks"][index]
                image[: mask.shape[0], : mask.shape[1]][mask > 0] = target["labels"][index]
        small = F.interpolate(labels[:, None].float(), logits.shape[-2:], mode="nearest")[:, 0].long()
        return self.config.semantic_weight * F.cross_entropy(logits, small)

    # ---- both ----------------------------------------------------------------------------------------------

    def _cut(self, bases: Tensor, boxes: list[Tensor]) -> Tensor:
        """(n, K, R, R): the bases inside each box, one bilinear sample a cell."""
        size = self.config.mask_size
        return roi_align(  # type: ignore[no-any-return]
            bases.float(), boxes, (size, size), 1 / BASIS_STRIDE, sampling_ratio=1, aligned=True
        )

    def _shape(self, attention: Tensor) -> Tensor:
        return attention.reshape(-1, self.kernels, self.attention, self.attention)

    def _score_features(self, run: _Pass, boxes: list[Tensor]) -> Tensor:
        features = OrderedDict((str(index), level) for index, level in enumerate(run.levels[:3]))
        pooled: Tensor = self.score_pool(features, boxes, run.images.image_sizes)
        return pooled

    # ---- evaluation ----------------------------------------------------------------------------------------

    def _detect(self, run: _Pass, originals: list[tuple[int, int]]) -> list[Detections]:
        levels = [level.shape[-2] * level.shape[-1] for level in run.levels]
        found = [self._select(run, index, levels) for index in range(len(originals))]
        boxes = [each["boxes"] for each in found]
        bases = self._cut(run.bases, boxes)
        masks = torch.sigmoid(blend(bases, self._shape(torch.cat([each["attention"] for each in found]))))
        labels = torch.cat([each["labels"] for each in found])
        scores = torch.cat([each["scores"] for each in found])
        mask_scores = scores
        if self.scoring is not None:
            mask_scores = rescore(scores, self.scoring(masks, self._score_features(run, boxes), labels))
        results = []
        for index, (grids, ranks) in enumerate(
            zip(per_image(masks, boxes), per_image(mask_scores, boxes), strict=True)
        ):
            placed = resize_boxes(boxes[index], run.images.image_sizes[index], originals[index])
            each = found[index]
            results.append(Detections(placed, each["labels"], each["scores"], ranks, grids, placed))
        return results

    def _select(self, run: _Pass, index: int, levels: list[int]) -> dict[str, Tensor]:
        """FCOS' selection of one image, with each detection's attention."""
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        outputs = {name: torch.split(value[index], levels) for name, value in run.outputs.items()}
        anchors = torch.split(run.anchors[index], levels)
        for level in range(len(levels)):
            logits, centreness = outputs["cls_logits"][level], outputs["bbox_ctrness"][level]
            scores = (logits.sigmoid() * centreness.sigmoid()).sqrt().flatten()
            kept = torch.where(scores > self.config.score_threshold)[0]
            top, order = scores[kept].topk(_topk_min(scores[kept], self.config.candidates, 0))
            place = kept[order] // self.classes
            boxes = self.detector.box_coder.decode(outputs["bbox_regression"][level][place], anchors[level][place])
            boxes = clip_boxes_to_image(boxes, run.images.image_sizes[index])
            parts.append((boxes, top, kept[order] % self.classes, outputs["attention"][level][place]))
        boxes, scores, labels, attention = (torch.cat(part) for part in zip(*parts, strict=True))
        usable = (labels > 0) & ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        boxes, scores, labels, attention = (each[usable] for each in (boxes, scores, labels, attention))
        keep = batched_nms(boxes, scores, labels, self.config.nms_threshold)[: self.config.detections]
        return {
            "boxes": boxes[keep],
            "scores": scores[keep],
            "labels": labels[keep],
            "attention": attention[keep],
        }
