"""Test-time augmentation: several views of one image (mirrored, scaled), and their predictions merged into one.

Letters: n instances of an image, g_h x g_w cells of a mask grid, V views, C classes, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_iou

from refiner_training.prediction.options import Options
from refiner_training.segmenters.base import Detections

SAME_OBJECT = 0.5  # boxes of one class that overlap as much in two views are one object's


def views(options: Options) -> Iterator[tuple[float, bool]]:
    """The scale of each view and whether it is mirrored."""
    for scale in options.scales:
        yield from ((scale, mirrored) for mirrored in (False, True)[: 1 + options.flip])


def mirrored_back(found: Detections | Tensor, width: int) -> Detections | Tensor:
    """What was found in a mirrored image, in the image itself."""
    if isinstance(found, Tensor):
        return found.flip(-1)

    def turned(boxes: Tensor) -> Tensor:
        return torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)

    return replace(found, boxes=turned(found.boxes), rects=turned(found.rects), grids=found.grids.flip(-1))


def merged(found: Sequence[Any], nms_threshold: float, most: int) -> Any:
    """One image's views as one prediction: the mean of class probabilities (C, H, W), or `merged_instances`."""
    if len(found) == 1:
        return found[0]
    if isinstance(found[0], Tensor):
        return torch.stack(list(found)).mean(0)
    return merged_instances(found, nms_threshold, most)


def merged_instances(found: Sequence[Detections], nms_threshold: float, most: int) -> Detections:
    """One set of instances out of the views' sets.

    The boxes of all views go through NMS class by class. Each that is left takes, from every view that saw it, the
    best-overlapping box of its class: its mask is the mean of theirs, sampled where its own grid lies, and its scores
    are their sums over V, so that what one view alone saw ranks below what all saw.

    Args:
        found: one a view, in the same image's pixels.
        nms_threshold: of the NMS over all views.
        most: instances that are kept.
    """
    every = Detections(*(torch.cat([getattr(each, name) for each in found]) for name in found[0].__dataclass_fields__))
    keep = batched_nms(every.boxes, every.mask_scores, every.labels, nms_threshold)
    kept = every.picked(keep)
    if len(kept) == 0:
        return kept
    grids, seen = torch.zeros_like(kept.grids, dtype=torch.float32), kept.scores.new_zeros(len(kept))
    scores, mask_scores = torch.zeros_like(kept.scores), torch.zeros_like(kept.mask_scores)
    for view in found:
        if len(view) == 0:
            continue
        overlap = box_iou(kept.boxes, view.boxes) * (kept.labels[:, None] == view.labels[None])
        best, partner = overlap.max(dim=1)
        rows = torch.where(best >= SAME_OBJECT)[0]
        partner = partner[rows]
        grids[rows] += resampled(view.grids[partner], view.rects[partner], kept.rects[rows])
        scores[rows] += view.scores[partner]
        mask_scores[rows] += view.mask_scores[partner]
        seen[rows] += 1
    grids = grids / seen.clamp(min=1)[:, None, None]
    merged = replace(kept, scores=scores / len(found), mask_scores=mask_scores / len(found), grids=grids)
    return merged.picked(merged.mask_scores.argsort(descending=True, stable=True)[:most])


def resampled(grids: Tensor, rects: Tensor, onto: Tensor) -> Tensor:
    """Mask grids (n, g_h, g_w) that span ``rects`` (n, 4), sampled on grids of the same size that span ``onto``."""
    height, width = grids.shape[-2:]
    size = (rects[:, 2:] - rects[:, :2]).clamp(min=1e-6)
    target = onto[:, 2:] - onto[:, :2]
    xs = (torch.arange(width, device=grids.device) + 0.5) / width
    ys = (torch.arange(height, device=grids.device) + 0.5) / height
    x = (onto[:, :1] + xs * target[:, :1] - rects[:, :1]) / size[:, :1] * 2 - 1
    y = (onto[:, 1:2] + ys * target[:, 1:] - rects[:, 1:2]) / size[:, 1:] * 2 - 1
    where = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1)
    sampled: Tensor = F.grid_sample(grids.float()[:, None], where, padding_mode="border", align_corners=False)[:, 0]
    return sampled
