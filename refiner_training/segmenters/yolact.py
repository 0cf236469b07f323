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
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import _utils as detection
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, box_iou, clip_boxes_to_image, roi_align

from bpr_service.config import Settings
from refiner_training.heads.b2inst import B2InstSettings, MaskScoring, boundary_basis_loss, rescore
from refiner_training.heads.layers import conv, conv_tower, own_rng
from refiner_training.heads.losses import zero_loss
from refiner_training.heads.targets import binarise, laplace_boundary, project_masks
from refiner_training.segmenters.backbone import FeaturePyramid
from refiner_training.segmenters.base import Detections, Segmenter, Target, clean_targets
from refiner_training.segmenters.mask_rcnn import InputConfig

SCORE_GRID = 28  # cells a side of the masks that the scoring head reads


class YolactConfig(Settings):
    """The model; defaults are the paper's at 550 x 550.

    Attributes:
        size_px: S; images are resized to S x S whatever their shape.
        anchor_sizes: one per level P3..P7, in pixels of the input; each with the ratios 1, 1/2 and 2.
        prototypes: K without the boundary basis.
        channels: width of the prototype tower and the prediction head.
        max_masks: most positive anchors an image whose masks are trained.
        box_weight, mask_weight, semantic_weight: of the losses; class loss weighs 1.
        score_threshold, nms_threshold, candidates a class, detections.
    """

    size_px: int = Field(default=550, ge=64)
    anchor_sizes: tuple[float, float, float, float, float] = (24, 48, 96, 192, 384)
    prototypes: int = 32
    channels: int = 256
    max_masks: int = 100
    box_weight: float = 1.5
    mask_weight: float = 6.125
    semantic_weight: float = 1.0
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    candidates: int = 200
    detections: int = 100


def make_anchors(shapes: list[tuple[int, int]], sizes: tuple[float, ...], side: int) -> Tensor:
    """(L, 4) anchors ``x0 y0 x1 y1`` in pixels: per level, cell by cell, the ratios 1, 1/2 and 2.

    Centres are spread evenly over the input. torchvision's generator steps by whole pixels and would fall
    67 pixels behind across 550 pixels and 69 cells.
    """
    levels = []
    roots = torch.tensor([1.0, 0.5, 2.0]).sqrt()
    for (rows, columns), size in zip(shapes, sizes, strict=True):
        ys, xs = (torch.arange(rows) + 0.5) * side / rows, (torch.arange(columns) + 0.5) * side / columns
        centres = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).reshape(-1, 1, 2)
        half = torch.stack([size * roots, size / roots], dim=1)[None] / 2
        levels.append(torch.cat([centres - half, centres + half], dim=2).reshape(-1, 4))
    return torch.cat(levels)


def fast_nms(
    boxes: Tensor, scores: Tensor, threshold: float, candidates: int, most: int, lowest: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Fast NMS (YOLACT, sec. 5): a box goes when any better one of its class overlaps it, removed or not.

    Args:
        boxes: (L, 4); scores: (L, C - 1) without background.

    Returns:
        anchor indices, labels (1..C-1) and scores, each (n,), best first, n at most ``most``.
    """
    top, places = scores.t().topk(min(candidates, len(boxes)), dim=1)
    chosen = boxes[places]
    overlap = torch.stack([box_iou(each, each) for each in chosen]).triu(1)
    keep = (overlap.amax(dim=1) <= threshold) & (top > lowest)
    labels = torch.arange(1, scores.shape[1] + 1, device=boxes.device)[:, None].expand_as(places)[keep]
    best, order = top[keep].topk(min(most, int(keep.sum())))
    return places[keep][order], labels[order], best


def crop_mask(boxes: Tensor, height: int, width: int) -> Tensor:
    """(n, h, w) bool: cells whose centre lies in the box, at least one cell; boxes in cells."""
    xs = torch.arange(width, device=boxes.device) + 0.5
    ys = torch.arange(height, device=boxes.device) + 0.5
    x0, y0, x1, y1 = (each[:, None] for each in boxes.unbind(1))
    x0, y0 = x0.floor(), y0.floor()
    x1, y1 = torch.maximum(x1.ceil(), x0 + 1), torch.maximum(y1.ceil(), y0 + 1)
    inside_x, inside_y = (xs > x0) & (xs < x1), (ys > y0) & (ys < y1)
    return inside_y[:, :, None] & inside_x[:, None, :]


class PrototypeNet(nn.Module):
    """P3 -> prototypes at stride 4 (figure 3); the boundary basis, if any, is a last channel of raw logits."""

    def __init__(self, in_channels: int, config: YolactConfig, boundary: bool) -> None:
        super().__init__()
        self.tower = conv_tower(in_channels, config.channels, 3)
        self.fine = nn.Sequential(conv(config.channels, config.channels), nn.ReLU(inplace=True))
        self.prototypes = conv(config.channels, config.prototypes, 1)
        with own_rng():
            self.boundary = conv(config.channels, 1, 1) if boundary else None

    def forward(self, finest: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, D, g, g) -> prototypes (B, K, 2g, 2g) and boundary logits (B, 2g, 2g) or None."""
        up = F.interpolate(self.tower(finest), scale_factor=2, mode="bilinear", align_corners=False)
        fine = self.fine(up)
        prototypes = torch.relu(self.prototypes(fine)).float()
        if self.boundary is None:
            return prototypes, None
        boundary = self.boundary(fine)[:, 0].float()
        return torch.cat([prototypes, boundary.sigmoid()[:, None]], dim=1), boundary


class PredictionHead(nn.Module):
    """Class, box and coefficients of three anchors a cell, shared by all levels (figure 4)."""

    anchors = 3

    def __init__(self, in_channels: int, classes: int, kernels: int, channels: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(conv(in_channels, channels), nn.ReLU(inplace=True))
        numbers = {"classes": classes, "boxes": 4, "coefficients": kernels}
        self.outputs = nn.ModuleDict()
        for name, count in numbers.items():
            with own_rng():  # the coefficients' number depends on the head; what follows must not
                layer = conv(channels, self.anchors * count)
                nn.init.xavier_uniform_(layer.weight)
                self.outputs[name] = layer

    def forward(self, levels: list[Tensor]) -> dict[str, Tensor]:
        """``classes`` (B, L, C), ``boxes`` (B, L, 4), ``coefficients`` (B, L, K) in (-1, 1), all float32."""
        shared = [self.shared(level) for level in levels]
        found = {}
        for name, layer in self.outputs.items():
            maps = [layer(each).permute(0, 2, 3, 1) for each in shared]
            flat = [each.reshape(len(each), -1, each.shape[-1] // self.anchors) for each in maps]
            found[name] = torch.cat(flat, dim=1).float()
        found["coefficients"] = found["coefficients"].tanh()
        return found


@dataclass(frozen=True)
class _Pass:
    levels: list[Tensor]
    outputs: dict[str, Tensor]
    anchors: Tensor
    prototypes: Tensor
    boundary: Tensor | None


class Yolact(Segmenter):
    """YOLACT; with ``b2inst`` settings the last prototype is the holistic boundary and masks are rescored."""

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
        self.kernels = config.prototypes + (b2inst is not None)
        self.pyramid = pyramid
        self.transform = GeneralizedRCNNTransform(
            config.size_px,
            config.size_px,
            list(inputs.mean),
            list(inputs.std),
            size_divisible=1,
            fixed_size=(config.size_px, config.size_px),
        )
        self.prediction = PredictionHead(width, classes, self.kernels, config.channels)
        self.prototype_net = PrototypeNet(width, config, b2inst is not None)
        self.semantic = conv(width, classes - 1, 1)
        self.coder = detection.BoxCoder((10.0, 10.0, 5.0, 5.0))
        self.matcher = detection.Matcher(0.5, 0.4, allow_low_quality_matches=True)
        names = ["loss_class", "loss_box", "loss_mask", "loss_semantic"]
        self.scoring: MaskScoring | None = None
        if b2inst is not None:
            names.append("loss_boundary_basis")
            if b2inst.scoring:
                self.scoring = MaskScoring(width, classes, b2inst)
                self.score_pool = MultiScaleRoIAlign(["0", "1", "2"], MaskScoring.roi_size, sampling_ratio=2)
                self.score_keys = ("scores", "mask_scores")
                names += ["loss_mask_iou", "loss_mask_boundary"]
        self.loss_names = tuple(names)

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        if self.training:
            assert targets is not None
            resized, cleaned = self.transform(images, clean_targets(targets, self.classes))
            losses = self._losses(self._run(resized.tensors), cleaned)
            return OrderedDict((name, losses[name]) for name in self.loss_names)
        run = self._run(self.transform(images)[0].tensors)
        return [
            self._detect(run, index, (int(image.shape[-2]), int(image.shape[-1]))) for index, image in enumerate(images)
        ]

    def _run(self, images: Tensor) -> _Pass:
        levels = list(self.pyramid(images).values())
        shapes = [(int(level.shape[-2]), int(level.shape[-1])) for level in levels]
        anchors = make_anchors(shapes, self.config.anchor_sizes, self.config.size_px).to(images.device)
        return _Pass(levels, self.prediction(levels), anchors, *self.prototype_net(levels[0]))

    @property
    def _corner(self) -> tuple[int, int]:
        return self.config.size_px, self.config.size_px

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
        if self.b2inst is not None and run.boundary is not None:
            truth = torch.stack([self._boundary(t["masks"], run.boundary.shape[-1]) for t in targets])
            losses["loss_boundary_basis"] = boundary_basis_loss(run.boundary, truth, self.b2inst)
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
        cells = target["boxes"] * (width / self.config.size_px)
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
        if len(cells) == 0:
            return probabilities.new_zeros((0, SCORE_GRID, SCORE_GRID))
        rois = torch.cat([torch.arange(len(cells), device=cells.device)[:, None].to(cells), cells], dim=1)
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
            cells = boxes * (masks.shape[-1] / config.size_px)
            grids = self._roi_masks(masks * crop_mask(cells, *masks.shape[-2:]), cells)
            levels = [level[index : index + 1] for level in run.levels]
            one = _Pass(levels, {}, run.anchors, run.prototypes, None)
            mask_scores = rescore(best, *self.scoring(grids, self._score_features(one, [boxes]), labels))
        height, width = original
        scale = boxes.new_tensor([width, height, width, height]) / config.size_px
        rects = boxes.new_tensor([0, 0, width, height]).expand(len(boxes), 4)
        return Detections(boxes * scale, labels, best, mask_scores, masks, rects)
