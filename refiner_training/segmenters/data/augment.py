"""What training changes in a picture and its truth: flips, random crops, and the augmentation of SSD and YOLACT.

Letters: n instances of an image, H and W its height and width in pixels.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refiner_training.segmenters.base import Target
from refiner_training.segmenters.config import InstanceData, SemanticData

Sample = tuple[Tensor, Target]
FILL = (0.485, 0.456, 0.406)  # ImageNet's mean colour: what lies around a picture that was zoomed out


def augmented(image: Tensor, target: Target, data: InstanceData, rng: np.random.Generator) -> Sample:
    """An image (3, H, W) in [0, 1] and its instances as ``data`` wants them changed; ``rng`` decides all."""
    if data.augmentation == "ssd":
        image, target = ssd(image, target, int(rng.integers(2**31)))
    return flip_instances(image, target) if rng.random() < data.flip else (image, target)


def ssd(image: Tensor, target: Target, seed: int) -> Sample:
    """Colours distorted, zoomed out, and cropped around an instance (Liu et al., *SSD*, ECCV 2016, section 2.2).

    YOLACT trains so. The image may come back in another size; instances whose centre a crop cut off are gone.
    """
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    size: Any = image.shape[-2:]
    steps = v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill={tv_tensors.Image: list(FILL), "others": 0}),
            v2.RandomIoUCrop(),
            v2.SanitizeBoundingBoxes(labels_getter=lambda both: (both[1]["labels"], both[1]["masks"])),
        ]
    )
    wrapped = {
        "boxes": tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size),
        "labels": target["labels"],
        "masks": tv_tensors.Mask(target["masks"]),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        changed, found = steps(tv_tensors.Image(image), wrapped)
    pure = {name: value.as_subclass(Tensor) for name, value in found.items()}
    return changed.as_subclass(Tensor).clamp(0, 1), pure


def flip_instances(image: Tensor, target: Target) -> Sample:
    """Mirror left and right."""
    width = image.shape[-1]
    boxes = target["boxes"].clone()
    boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return image.flip(-1), {"boxes": boxes, "labels": target["labels"], "masks": target["masks"].flip(-1)}


def scale_crop_flip(
    image: NDArray[Any], labels: NDArray[Any], data: SemanticData, rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Random scale, crop to ``data.crop_px`` (what is missing is ignored) and flip."""
    scale = rng.uniform(*data.scale)
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    rows, columns = data.crop_px
    height, width = labels.shape
    y, x = (int(rng.integers(0, max(have - want, 0) + 1)) for have, want in ((height, rows), (width, columns)))
    image, labels = image[y : y + rows, x : x + columns], labels[y : y + rows, x : x + columns]
    missing = ((0, rows - labels.shape[0]), (0, columns - labels.shape[1]))
    labels = np.pad(labels, missing, constant_values=data.ignore_label)
    image = np.pad(image, (*missing, (0, 0)))
    if rng.random() < data.flip:
        image, labels = image[:, ::-1], labels[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(labels)
