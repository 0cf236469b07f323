"""Measurement on val while training: how well masks fit, quickly, to choose the best checkpoint.

The figures of papers (mask AP, boundary AP, mIoU, boundary F) come from ``bpr-train predict`` and
``bpr-train evaluate``; here one number a measurement is enough.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from refiner_training.segmenters.base import Detections, Segmenter, Target
from refiner_training.segmenters.config import RunConfig
from refiner_training.segmenters.data import InstanceSet, LabelSet


def best_ious(found: Detections, target: Target) -> Tensor:
    """(n,) the best IoU that any of the 20 highest-ranked masks has with each true instance."""
    truth = target["masks"].bool()
    best = torch.zeros(len(truth))
    if len(truth) == 0:
        return best
    order = found.mask_scores.argsort(descending=True)[:20]
    top = Detections(*(getattr(found, name)[order] for name in found.__dataclass_fields__))
    areas = truth.flatten(1).sum(1).float()
    for mask in top.masks(*truth.shape[-2:]):
        h, w = mask.crop.shape
        crop = torch.from_numpy(mask.crop).bool()
        both = (truth[:, mask.y : mask.y + h, mask.x : mask.x + w] & crop).flatten(1).sum(1).float()
        best = torch.maximum(best, both / (areas + mask.area - both))
    return best


@torch.no_grad()
def mean_iou(model: Segmenter, dataset: InstanceSet | LabelSet, kind: str, images: int, device: Any) -> float:
    """Mean over true instances of :func:`best_ious`, or over classes of the IoU (mIoU)."""
    was_training = model.training
    model.eval()
    values: list[Tensor] = []
    count = len(dataset.classes.ids)
    confusion = np.zeros((count, count), np.int64)
    for index in range(min(images, len(dataset))):
        image, target = dataset[index, index]
        found = model([image.to(device)])[0]
        if kind == "instance":
            values.append(best_ious(found, target))
            continue
        labels = target["labels"].numpy()
        valid = labels < count
        predicted = found.argmax(0).cpu().numpy()
        pairs = labels[valid] * count + predicted[valid]
        confusion += np.bincount(pairs, minlength=count * count).reshape(count, count)
    model.train(was_training)
    if kind == "instance":
        every = torch.cat(values) if values else torch.zeros(0)
        return float(every.mean()) if len(every) else 0.0
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    return float((np.diag(confusion)[union > 0] / union[union > 0]).mean())


class Validation(L.Callback):
    """Measures every ``run.validate_every`` steps, keeps the best checkpoint, and stops after ``run.patience``.

    Logs ``val/iou``.
    """

    def __init__(self, dataset: InstanceSet | LabelSet, kind: str, run: RunConfig, best: Path) -> None:
        self.dataset, self.kind, self.run, self.path = dataset, kind, run, best
        self.best, self.stale = -1.0, 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.run.validate_every:
            return
        value = mean_iou(pl_module.model, self.dataset, self.kind, self.run.validation_images, pl_module.device)
        # Every process measured; the first one's value decides, so that all of them stop together.
        value = float(trainer.strategy.broadcast(value))
        pl_module.log("val/iou", value, prog_bar=True)
        if value > self.best:
            self.best, self.stale = value, 0
            trainer.save_checkpoint(self.path)
        else:
            self.stale += 1
            trainer.should_stop = trainer.should_stop or 0 < self.run.patience <= self.stale

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "stale": self.stale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.stale = state_dict["best"], state_dict["stale"]
