"""Measurement of a segmenter on val while it trains: how well masks fit, quickly, to choose the best checkpoint.

The figures of papers (mask AP, boundary AP, mIoU, boundary F) come from ``bpr-train predict`` and
``bpr-train evaluate``; here one number a measurement is enough.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from refiner_training.segmenters.base import Detections, Segmenter, Target
from refiner_training.segmenters.data.sets import InstanceSet, LabelSet


class SegmenterScore:
    """Mean over true instances of :func:`best_ious`, or over classes of the IoU (mIoU), image after image.

    Args:
        kind: what is segmented.
        classes: labels of a semantic model.
    """

    def __init__(self, kind: Literal["instance", "semantic"], classes: int) -> None:
        self.kind, self.classes = kind, classes
        self.reset()

    def reset(self) -> None:
        """Forget every image."""
        self.ious: list[Tensor] = []
        self.confusion = np.zeros((self.classes, self.classes), np.int64)

    def add(self, found: Any, target: Target) -> None:
        """Measure one image: its :class:`Detections`, or its (C, H, W) probabilities."""
        if self.kind == "instance":
            self.ious.append(best_ious(found, {name: value.cpu() for name, value in target.items()}))
            return
        labels = target["labels"].cpu().numpy()
        valid = labels < self.classes
        pairs = labels[valid] * self.classes + found.argmax(0).cpu().numpy()[valid]
        self.confusion += np.bincount(pairs, minlength=self.confusion.size).reshape(self.confusion.shape)

    def value(self) -> float:
        """The mean; 0 where nothing was to be found."""
        if self.kind == "instance":
            every = torch.cat(self.ious) if self.ious else torch.zeros(0)
            return float(every.mean()) if len(every) else 0.0
        hit = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hit
        return float((hit[union > 0] / union[union > 0]).mean()) if union.any() else 0.0


def best_ious(found: Detections, target: Target) -> Tensor:
    """(n,) the best IoU that any of the 20 highest-ranked masks has with each true instance."""
    truth = target["masks"].bool()
    best = torch.zeros(len(truth))
    if len(truth) == 0:
        return best
    top = found.picked(found.mask_scores.argsort(descending=True)[:20])
    areas = truth.flatten(1).sum(1).float()
    for mask in top.masks(*truth.shape[-2:]):
        h, w = mask.crop.shape
        crop = torch.from_numpy(mask.crop).bool()
        both = (truth[:, mask.y : mask.y + h, mask.x : mask.x + w] & crop).flatten(1).sum(1).float()
        best = torch.maximum(best, both / (areas + mask.area - both))
    return best


@torch.no_grad()
def mean_iou(model: Segmenter, dataset: InstanceSet | LabelSet, images: int, device: str = "cpu") -> float:
    """:class:`SegmenterScore` of a model over the first images of a data set."""
    kind: Literal["instance", "semantic"] = "semantic" if isinstance(dataset, LabelSet) else "instance"
    score = SegmenterScore(kind, len(dataset.classes.ids))
    was_training = model.training
    model.eval()
    for index in range(min(images, len(dataset))):
        image, target = dataset[index, index]
        score.add(model([image.to(device)])[0], target)
    model.train(was_training)
    return score.value()
