"""Small pictures of coloured ellipses and rectangles with exact labels: for smoke runs and tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bpr_service.masks.label_maps import write_label_map
from bpr_service.masks.mask import Mask

CLASSES = ("ellipse", "rectangle")


def draw(rng: np.random.Generator, height: int, width: int) -> tuple[NDArray[np.uint8], list[tuple[int, Mask]]]:
    """One (H, W, 3) picture and its one to three instances as (class from 1, mask)."""
    image = rng.integers(90, 130, (height, width, 3)).astype(np.uint8)
    found: list[tuple[int, Mask]] = []
    taken = np.zeros((height, width), np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        label = int(rng.integers(1, len(CLASSES) + 1))
        half = (int(rng.integers(width // 10, width // 4)), int(rng.integers(height // 10, height // 4)))
        centre = (int(rng.integers(half[0], width - half[0])), int(rng.integers(half[1], height - half[1])))
        frame = np.zeros((height, width), np.uint8)
        if label == 1:
            cv2.ellipse(frame, centre, half, 0, 0, 360, 1, -1)
        else:
            cv2.rectangle(
                frame, (centre[0] - half[0], centre[1] - half[1]), (centre[0] + half[0], centre[1] + half[1]), 1, -1
            )
        if (frame & taken).any():
            continue
        taken |= frame
        colour = rng.integers(0, 60, 3) if label == 1 else rng.integers(190, 255, 3)
        image[frame > 0] = colour
        found.append((label, Mask.from_array(frame)))
    return image, found


def make_set(folder: Path, count: int, *, height: int = 96, width: int = 128, seed: int = 0) -> dict[str, Path]:
    """Write ``images``, ``labels`` (0 background, 1, 2; a rim of 255) and ``annotations`` (COCO); their paths."""
    rng = np.random.default_rng(seed)
    paths = {"images": folder / "images", "labels": folder / "labels", "annotations": folder / "instances.json"}
    paths["images"].mkdir(parents=True, exist_ok=True)
    paths["labels"].mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        image, found = draw(rng, height, width)
        labels = np.zeros((height, width), np.uint8)
        for label, mask in found:
            labels[mask.to_array() > 0] = label
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": label,
                    "segmentation": mask.to_rle(),
                    "bbox": mask.bbox,
                    "area": mask.area,
                    "iscrowd": 0,
                }
            )
        labels[0] = 255
        name = f"{number:04d}.png"
        cv2.imwrite(str(paths["images"] / name), image[:, :, ::-1])
        write_label_map(paths["labels"] / name, labels)
        images.append({"id": number + 1, "file_name": name, "height": height, "width": width})
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    paths["annotations"].write_text(json.dumps(content))
    return paths


def tiny_config(kind: str, paths: dict[str, Path], **overrides: Any) -> dict[str, Any]:
    """A configuration that trains any architecture at tiny size in a second; dotted ``overrides`` win."""
    from bpr_service.config import with_parts

    data: dict[str, Any] = {"kind": kind, "flip": 0.5}
    for split in ("train", "val"):
        data[f"{split}_images"] = str(paths["images"])
        name = "annotations" if kind == "instance" else "labels"
        data[f"{split}_{name}"] = str(paths[name])
    data["num_classes"] = len(CLASSES) + (kind == "semantic")
    if kind == "semantic":
        data |= {"crop_px": [96, 96], "things": [1, 2]}
    narrow = {"channels": 16, "max_rois": 8}
    values = {
        "name": "smoke",
        "data": data,
        "model": {
            "backbone": {"name": "resnet10t", "fpn_channels": 64},
            "inputs": {"min_size": [96], "max_size": 128},
            "mask_rcnn": {
                "box_hidden": 32,
                "box_batch": 32,
                "detections": 10,
                "rpn_top_train": 100,
                "rpn_top_test": 50,
            },
            "blendmask": {"basis_channels": 16, "score_threshold": 0.05, "detections": 10, "max_masks": 20},
            "yolact": {
                "size_px": 128,
                "anchor_sizes": [12, 24, 48, 96, 192],
                "channels": 16,
                "prototypes": 8,
                "detections": 10,
            },
            "deeplabv3plus": {"decoder_channels": 16, "atrous_rates": [2, 4, 6]},
        },
        "heads": {
            "plain": narrow,
            "bmask": narrow,
            "bsm": narrow,
            "beis": {"channels": [16, 16, 8, 8], "bank_size": 64, "bank_warmup": 2, "max_rois": 8},
            "b2inst": {"score_channels": 16, "score_hidden": 32},
            "bsm_dense": {"window_px": 5, "target_stride": 4},
        },
        "optim": {"name": "adamw", "lr": 0.001, "schedule": "constant", "warmup_steps": 0, "milestones": []},
        "run": {"steps": 2, "batch_size": 2, "precision": "32", "workers": 0},
    }
    return with_parts(values, overrides)
