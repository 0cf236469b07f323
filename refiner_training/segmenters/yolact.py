"""YOLACT, ``plain`` or with B2Inst's boundary basis and mask scores.

Sources: Bolya, Zhou, Xiao, Lee, *YOLACT*, ICCV 2019, section 3; B2Inst, section 3.
Letters: B images, n instances, L anchors of an image, K prototypes (the boundary basis included), h and w the
prototypes' height and width in cells, S the input's side in pixels, C classes with 0 as background.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection import _utils as detection
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import MultiScaleRoIAlign, box_iou, clip_boxes_to_image, roi_align

from refiner_training.heads.b2inst import (
    B2InstSettings,
    MaskScoring,
    boundary_basis_loss,
    head_losses,
    instance_basis_loss,
    rescore,
)
from refiner_training.heads.layers import predictor
from refiner_training.heads.losses import zero_loss
from refiner_training.heads.targets import binarise, laplace_boundary, project_masks
from refiner_training.segmenters.backbone import FeaturePyramid
from refiner_training.segmenters.base import Detections, Segmenter, Target, clean_targets
from refiner_training.segmenters.mask_rcnn import InputConfig
from refiner_training.segmenters.yolact_layers import (
    PredictionHead,
    PrototypeNet,
    YolactConfig,
    crop_mask,
    fast_nms,
    make_anchors,
)

SCORE_GRID = 28  # cells a side of the masks that the scoring head reads


@dataclass(frozen=True)
class _Pass:
    levels: list[Tensor]
    outputs: dict[str, Tensor]
    anchors: Tensor
    prototypes: Tensor
    boundary: Tensor | None


class Yolact(Segmenter):
    """YOLACT; with ``b2inst`` settings the last prototype is the holistic boundary and masks are rescored."""

    head_names = ("prototype_net.", "semantic.", "scoring.", "prediction.outputs.coefficients.")

    def __init__(
        self,
        pyramid: FeaturePyramid,
        classes: int,
        config: YolactConfig,
        inputs: InputConfig,
        b2inst: B2InstSettings | None = None,
    ) -> None:
        super().__init__()
        self.config, self.classes, self.b2inst = config, classes, b2inst
        width = pyramid.out_channels
        self.kernels = config.prototypes + (b2inst is not None and b2inst.assembled)
        self.pyramid = pyramid
        self.nms_threshold, self.most = config.nms_threshold, config.detections
        side = config.size_px
        self.transform = GeneralizedRCNNTransform(
            side, side, list(inputs.mean), list(inputs.std), size_divisible=1, fixed_size=(side, side)
        )
        self.set_scale(1.0)
        self.prediction = PredictionHead(width, classes, self.kernels, config.channels)
        self.prototype_net = PrototypeNet(width, config, b2inst)
        self.semantic = predictor(width, classes - 1)
        self.coder = detection.BoxCoder((10.0, 10.0, 5.0, 5.0))
        self.matcher = detection.Matcher(0.5, 0.4, allow_low_quality_matches=True)
        names = ["loss_class", "loss_box", "loss_mask", "loss_semantic"]
        self.scoring: MaskScoring | None = None
        if b2inst is not None and b2inst.scoring != "none":
            self.scoring = MaskScoring(width, classes, b2inst)
            self.score_pool = MultiScaleRoIAlign(["0", "1", "2"], MaskScoring.roi_size, sampling_ratio=2)
            self.score_keys = ("scores", "mask_scores")
        self.loss_names = (*names, *head_losses(b2inst))

    def set_scale(self, scale: float) -> None:
        self.side_px = max(round(self.config.size_px * scale), 32)
        self.transform.fixed_size = self._corner

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        if self.training:
            assert targets is not None
            resized, cleaned = self.transform(images, clean_targets(targets, self.classes))
            losses = self._losses(self._run(resized.tensors), cleaned)
            return OrderedDict((name, losses[name]) for name in self.loss_names)
        run = self._run(self.transform(images)[0].tensors)
        return [self._detect(run, index, (image.shape[-2], image.shape[-1])) for index, image in enumerate(images)]

    def _run(self, images: Tensor) -> _Pass:
        levels = list(self.pyramid(images).values())
        shapes = [(int(level.shape[-2]), int(level.shape[-1])) for level in levels]
        anchors = make_anchors(shapes, self.config.anchor_sizes, self.side_px).to(images.device)
        return _Pass(levels, self.prediction(levels), anchors, *self.prototype_net(levels[0]))

    @property
    def _corner(self) -> tuple[int, int]:
        return self.side_px, self.side_px

    # ---- training ------------------------------------------------------------------------------------------

    def _match(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """(L,) int64: the instance of each anchor, -1 background, -2 neither."""
        if len(boxes) == 0:
            return torch.full((len(anchors),), -1, device=anchors.device)
        matched: Tensor = self.matcher(box_iou(boxes, anchors))
        return matched

    def _losses(self, run: _Pass, targets: list[Target]) -> dict[str, Tensor]:
        matched = torch.stack([self._match(run.anchors, t["boxes"]) for t in targets])
        positive = matched >= 0
        count = positive.sum().clamp(min=1)
        losses = {"loss_class": self._class_loss(run.outputs["classes"], matched, targets) / count}
        box = zero_loss(run.outputs["boxes"], run.outputs["coefficients"])
        masks: dict[str, list[Tensor]] = {"loss": [], "pred": [], "truth": [], "labels": []}
        boxes: list[Tensor] = []
        for index, target in enumerate(targets):
            rows = torch.where(positive[index])[0]
            own = matched[index][rows]
            if len(rows):
                goal = self.coder.encode_single(target["boxes"][own], run.anchors[rows])
                box = box + F.smooth_l1_loss(run.outputs["boxes"][index][rows], goal, reduction="sum")
            self._image_masks(run, index, rows, own, target, masks, boxes)
        losses["loss_box"] = self.config.box_weight * box / count
        each = torch.cat(masks["loss"])
        mean = each.mean() if len(each) else zero_loss(run.prototypes, run.outputs["coefficients"])
        losses["loss_mask"] = self.config.mask_weight * mean
        losses["loss_semantic"] = self._semantic_loss(run.levels[0], targets)
        if self.b2inst is not None and run.boundary is not None and self.b2inst.supervised:
            side = run.boundary.shape[-1]
            if self.b2inst.basis == "instance":
                loss = instance_basis_loss(run.boundary, targets, side / self.side_px, self.b2inst)
            else:
                truth = torch.stack([self._boundary(t["masks"], side) for t in targets])
                loss = boundary_basis_loss(run.boundary, truth, self.b2inst)
            losses["loss_boundary_basis"] = loss
        if self.scoring is not None:
            predicted, truth = torch.cat(masks["pred"]), torch.cat(masks["truth"])
            scores = self.scoring(predicted, self._score_features(run, boxes), torch.cat(masks["labels"]))
            losses |= self.scoring.losses(predicted, truth, scores)
        return losses

    def _class_loss(self, logits: Tensor, matched: Tensor, targets: list[Target]) -> Tensor:
        """Cross entropy of positives and the three times as many hardest negatives of each image, summed."""
        labels = torch.zeros_like(matched)
        for index, target in enumerate(targets):
            if len(target["labels"]):
                labels[index] = target["labels"][matched[index].clamp(min=0)]
        labels[matched < 0] = 0
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        hardness = each.detach().masked_fill(matched != -1, -1.0)
        rank = hardness.argsort(dim=1, descending=True).argsort(dim=1)
        negative = (rank < 3 * (matched >= 0).sum(1, keepdim=True)) & (matched == -1)
        return (each * ((matched >= 0) | negative)).sum()

    def _image_masks(
        self,
        run: _Pass,
        index: int,
        rows: Tensor,
        own: Tensor,
        target: Target,
        masks: dict[str, list[Tensor]],
        boxes: list[Tensor],
    ) -> None:
        """Mask losses of one image's positives, and one predicted mask an instance for the scoring head."""
        chosen = self.random.choose(len(rows), self.config.max_masks, rows.device)
        rows, own = rows[chosen], own[chosen]
        prototypes = run.prototypes[index]
        height, width = prototypes.shape[-2:]
        logits = torch.einsum("nk,khw->nhw", run.outputs["coefficients"][index][rows], prototypes)
        small = self._shrink(target["masks"], (height, width))
        cells = target["boxes"] * (width / self.side_px)
        inside = crop_mask(cells, height, width)
        each = F.binary_cross_entropy_with_logits(logits, small[own], reduction="none") * inside[own]
        masks["loss"].append(each.sum(dim=(1, 2)) / inside[own].sum(dim=(1, 2)).clamp(min=1))
        if self.scoring is None:
            return
        overlap = box_iou(target["boxes"], run.anchors[rows])
        overlap[own[None] != torch.arange(len(target["boxes"]), device=own.device)[:, None]] = -1
        known = torch.where((overlap >= 0).any(1))[0] if len(rows) else own[:0]
        best = overlap[known].argmax(1) if len(known) else own[:0]
        probabilities = logits[best].sigmoid() * inside[known]
        masks["pred"].append(self._roi_masks(probabilities, cells[known]))
        at = target["boxes"][known]
        masks["truth"].append(binarise(project_masks(target["masks"], at, known, SCORE_GRID)))
        masks["labels"].append(target["labels"][known])
        boxes.append(at)

    def _semantic_loss(self, finest: Tensor, targets: list[Target]) -> Tensor:
        """Binary cross entropy of each class' presence on P3: summed over classes, mean over cells."""
        logits = self.semantic(finest).float()
        truth = torch.zeros_like(logits)
        for index, target in enumerate(targets):
            small = self._shrink(target["masks"], (int(logits.shape[-2]), int(logits.shape[-1])))
            where = (target["labels"] - 1)[:, None, None].expand_as(small)
            truth[index].scatter_reduce_(0, where, small, "amax")
        each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return self.config.semantic_weight * each.sum(1).mean()

    def _shrink(self, masks: Tensor, size: tuple[int, int]) -> Tensor:
        if len(masks) == 0:
            return masks.new_zeros((0, *size), dtype=torch.float32)
        return (F.interpolate(masks[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0] > 0.5).float()

    def _boundary(self, masks: Tensor, side: int) -> Tensor:
        """Boundary of each instance at prototype resolution, OR over instances."""
        if len(masks) == 0:
            return torch.zeros((side, side), device=masks.device)
        return laplace_boundary(self._shrink(masks, (side, side)), "replicate").amax(0)

    # ---- both ----------------------------------------------------------------------------------------------

    def _roi_masks(self, probabilities: Tensor, cells: Tensor) -> Tensor:
        """(n, h, w) full masks, boxes in cells -> (n, 28, 28)."""
        if len(cells) == 0 and not torch.onnx.is_in_onnx_export():  # an export must not end here
            return probabilities.new_zeros((0, SCORE_GRID, SCORE_GRID))
        rois = torch.cat([torch.arange(cells.shape[0], device=cells.device)[:, None].to(cells), cells], dim=1)
        size = (SCORE_GRID, SCORE_GRID)
        return roi_align(probabilities[:, None].float(), rois, size, aligned=True)[:, 0]  # type: ignore[no-any-return]

    def _score_features(self, run: _Pass, boxes: list[Tensor]) -> Tensor:
        features = OrderedDict((str(index), level) for index, level in enumerate(run.levels[:3]))
        pooled: Tensor = self.score_pool(features, boxes, [self._corner] * len(boxes))
        return pooled

    # ---- evaluation ----------------------------------------------------------------------------------------

    def _detect(self, run: _Pass, index: int, original: tuple[int, int]) -> Detections:
        config = self.config
        scores = run.outputs["classes"][index].softmax(dim=1)[:, 1:]
        boxes = self.coder.decode_single(run.outputs["boxes"][index], run.anchors)
        boxes = clip_boxes_to_image(boxes, self._corner)
        usable = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1) & (scores.amax(1) > config.score_threshold)
        rows = torch.where(usable)[0]
        order, labels, best = fast_nms(
            boxes[rows], scores[rows], config.nms_threshold, config.candidates, config.detections,
            config.score_threshold,
        )  # fmt: skip
        rows = rows[order]
        boxes = boxes[rows]
        masks = torch.einsum("nk,khw->nhw", run.outputs["coefficients"][index][rows], run.prototypes[index]).sigmoid()
        mask_scores = best
        if self.scoring is not None:
            cells = boxes * (masks.shape[-1] / self.side_px)
            grids = self._roi_masks(masks * crop_mask(cells, *masks.shape[-2:]), cells)
            levels = [level[index : index + 1] for level in run.levels]
            one = _Pass(levels, {}, run.anchors, run.prototypes, None)
            mask_scores = rescore(best, self.scoring(grids, self._score_features(one, [boxes]), labels))
        corner = boxes.new_tensor([0, 0, *self._corner])
        rects = resize_boxes(torch.zeros_like(boxes) + corner, self._corner, original)
        return Detections(resize_boxes(boxes, self._corner, original), labels, best, mask_scores, masks, rects)
