"""What every segmenter shares: its interface, clean targets, and predictions as boxes with small mask grids.

Letters: n instances of an image, g_h x g_w cells of a mask grid, H and W the height and width of the image in
pixels, C classes with 0 as background.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpr_service.errors import ConfigError
from bpr_service.masks.mask import Mask
from refiner_training.heads.protocol import OwnRandom

Target = dict[str, Tensor]


@dataclass(frozen=True)
class Detections:
    """Instances found in one image, in pixels of that image, best first.

    Attributes:
        boxes: (n, 4) ``x0 y0 x1 y1``.
        labels: (n,) int64, 1..C-1.
        scores: (n,) what ranks boxes.
        mask_scores: (n,) what ranks masks; equals ``scores`` without a scoring head.
        grids: (n, g_h, g_w) foreground probabilities.
        rects: (n, 4) the rectangle of the image that each grid spans; a mask never leaves its box.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    mask_scores: Tensor
    grids: Tensor
    rects: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def picked(self, which: Tensor) -> Detections:
        """Those of an index or a mask over n, in its order."""
        return Detections(*(getattr(self, name)[which] for name in self.__dataclass_fields__))

    def masks(self, height: int, width: int, threshold: float = 0.5) -> Iterator[Mask]:
        """The instances' masks as box + crop, one at a time, so that no two are ever held as frames."""
        for grid, rect, box in zip(self.grids.float().cpu(), self.rects.tolist(), self.boxes.tolist(), strict=True):
            yield paste(grid, rect, box, height, width, threshold)


def paste(
    grid: Tensor, rect: Sequence[float], box: Sequence[float], height: int, width: int, threshold: float = 0.5
) -> Mask:
    """Sample a grid of probabilities at the centres of the pixels inside ``box`` and threshold it.

    Args:
        grid: (g_h, g_w) float32 on the CPU.
        rect: ``x0 y0 x1 y1`` of the image that the grid spans.
        box: pixels whose centre lies outside are background.
        height: of the image, px.
        width: of the image, px.
        threshold: of foreground.
    """
    x0, y0 = max(round(box[0]), 0), max(round(box[1]), 0)
    x1, y1 = min(round(box[2]), width), min(round(box[3]), height)
    if x1 <= x0 or y1 <= y0:
        return Mask.from_window(np.zeros((1, 1), np.uint8), 0, 0, height, width)
    xs = (torch.arange(x0, x1) + 0.5 - rect[0]) / max(rect[2] - rect[0], 1e-6) * 2 - 1
    ys = (torch.arange(y0, y1) + 0.5 - rect[1]) / max(rect[3] - rect[1], 1e-6) * 2 - 1
    where = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)[None]
    crop = F.grid_sample(grid[None, None], where, padding_mode="border", align_corners=False)[0, 0] >= threshold
    return Mask.from_window(crop.numpy().astype(np.uint8), x0, y0, height, width)


def clean_targets(targets: Sequence[Target], classes: int) -> list[Target]:
    """Targets a model may be trained on: without crowd regions, without boxes of no area or no mask.

    Args:
        targets: per image ``boxes`` (n, 4), ``labels`` (n,), ``masks`` (n, H, W) and optionally ``crowd`` (n,).
        classes: C.

    Raises:
        ConfigError: a label that the model has no class for.
    """
    cleaned = []
    for target in targets:
        boxes, labels, masks = target["boxes"], target["labels"], target["masks"]
        if len(labels) and (int(labels.min()) < 1 or int(labels.max()) >= classes):
            wrong = labels[(labels < 1) | (labels >= classes)][0]
            raise ConfigError(
                "a label has no class in the model",
                expected=f"labels from 1 to {classes - 1}",
                got=str(int(wrong)),
                fix="set data.num_classes to the number of categories of the data",
            )
        keep = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1) & (masks > 0).flatten(1).any(1)
        if "crowd" in target:
            keep = keep & ~target["crowd"].bool()
        cleaned.append({"boxes": boxes[keep].float(), "labels": labels[keep], "masks": masks[keep]})
    return cleaned


def per_image(values: Tensor, boxes: Sequence[Tensor]) -> Sequence[Tensor]:
    """Values of all boxes of a batch, image by image; those of one image as they are, so that no export fixes n."""
    return [values] if len(boxes) == 1 else torch.split(values, [len(each) for each in boxes])


class Segmenter(nn.Module, ABC):
    """A model that segments images.

    ``forward(images, targets)`` takes a list of (3, H, W) float images in [0, 1] and gives a dict of losses in
    training; in evaluation it gives one prediction per image: :class:`Detections`, or for a semantic model the
    (C, H, W) float32 class probabilities.

    Attributes:
        loss_names: keys of the losses, in order.
        score_keys: keys of the scores; the last one ranks masks.
        random: the model's own random numbers (key sampling, caps on RoIs).
        head_names: what the names of the mask branch's parameters begin with.
        nms_threshold, most: the NMS of its detections, and how many there are at most.
    """

    loss_names: tuple[str, ...]
    score_keys: tuple[str, ...] = ("scores",)
    head_names: tuple[str, ...]
    nms_threshold: float = 0.5
    most: int = 100

    def __init__(self) -> None:
        super().__init__()
        self.random = OwnRandom()

    @abstractmethod
    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        """See the class."""

    @abstractmethod
    def set_scale(self, scale: float) -> None:
        """From now on predict at ``scale`` times the configured size of the input."""

    def reseed(self, seed: int) -> None:
        """Start the model's own random numbers anew."""
        self.random.reseed(seed)

    def after_step(self) -> None:
        """Call once after each optimiser step."""

    def training_state(self) -> dict[str, Any]:
        """State that only training needs."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`training_state`."""
