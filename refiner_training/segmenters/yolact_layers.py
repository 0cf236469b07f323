"""YOLACT's parts: anchors, fast NMS, prototypes and the prediction head.

Source: Bolya, Zhou, Xiao, Lee, *YOLACT*, ICCV 2019, section 3.
Letters: B images, n instances, L anchors of an image, K prototypes (the boundary basis included), h and w the
prototypes' height and width in cells, S the input's side in pixels, C classes with 0 as background.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import _topk_min
from torchvision.ops import box_iou

from bpr_service.config import Settings
from refiner_training.heads.b2inst import B2InstSettings
from refiner_training.heads.layers import conv, conv_tower, own_rng, predictor


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
        boxes: (L, 4).
        scores: (L, C - 1) without background.
        threshold: the IoU from which on a box overlaps another.
        candidates: how many of a class are looked at, the best ones.
        most: how many boxes are kept of all classes.
        lowest: the least score that counts.

    Returns:
        anchor indices, labels (1..C-1) and scores, each (n,), best first, n at most ``most``.
    """
    top, places = scores.t().topk(_topk_min(scores, candidates, 0), dim=1)
    chosen = boxes[places]
    overlap = torch.stack([box_iou(each, each) for each in chosen]).triu(1)
    keep = (overlap.amax(dim=1) <= threshold) & (top > lowest)
    labels = torch.arange(1, scores.shape[1] + 1, device=boxes.device)[:, None].expand_as(places)[keep]
    kept = top[keep]
    best, order = kept.topk(_topk_min(kept, most, 0))
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

    def __init__(self, in_channels: int, config: YolactConfig, b2inst: B2InstSettings | None) -> None:
        super().__init__()
        self.tower = conv_tower(in_channels, config.channels, 3)
        self.fine = nn.Sequential(conv(config.channels, config.channels), nn.ReLU(inplace=True))
        self.prototypes = conv(config.channels, config.prototypes, 1)
        with own_rng():
            self.boundary = predictor(config.channels, 1) if b2inst is not None and b2inst.has_basis else None
        self.assembled = b2inst is not None and b2inst.assembled

    def forward(self, finest: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, D, g, g) -> prototypes (B, K, 2g, 2g) and boundary logits (B, 2g, 2g) or None."""
        up = F.interpolate(self.tower(finest), scale_factor=2, mode="bilinear", align_corners=False)
        fine = self.fine(up)
        prototypes = torch.relu(self.prototypes(fine)).float()
        if self.boundary is None:
            return prototypes, None
        boundary = self.boundary(fine)[:, 0].float()
        if not self.assembled:
            return prototypes, boundary
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
