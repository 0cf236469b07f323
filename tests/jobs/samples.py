"""A tiny model, and data sets of small images with coarse masks, for the tests of jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bpr_service.config import PatchConfig
from bpr_service.jobs.requests import RefineRequest
from bpr_service.masks.mask import Mask, write_panoptic_png
from bpr_service.network.registry import build_network
from bpr_service.network.weights import ModelCard, NetworkCard, save_model

H, W = 72, 96
SETTINGS: dict[str, Any] = {"network_size_px": 16, "patch_size_px": 24, "padding_px": 4}


def tiny_model(folder: Path, seed: int = 0) -> str:
    """An untrained network: what it says is noise, but the same noise every time."""
    torch.manual_seed(seed)
    network = build_network("light_unet_s")
    list(network.parameters())[-2].data *= 30  # far from undecided, so masks do change
    card = ModelCard(name="tiny", version=str(seed), network=NetworkCard(name="light_unet_s"), patch=PatchConfig())
    save_model(folder, network, card)
    return str(folder)


def disc(y: float, x: float, radius: float) -> np.ndarray:
    ys, xs = np.mgrid[:H, :W]
    return ((ys - y) ** 2 + (xs - x) ** 2 <= radius**2).astype(np.uint8)


def picture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 255, (H // 8, W // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def coco_set(root: Path, images: int, per_image: int = 2) -> RefineRequest:
    """COCO results over ``images`` pictures, instances of an image not side by side in the file."""
    (root / "images").mkdir(parents=True)
    records, entries = [], []
    for i in range(images):
        Image.fromarray(picture(i)).save(root / "images" / f"{i}.png")
        entries.append({"id": i + 1, "file_name": f"{i}.png", "height": H, "width": W})
    for k in range(per_image):
        for i in range(images):
            mask = Mask.from_array(disc(30 + 7 * k + i % 5, 40 + 9 * k, 14 + i % 7))
            record = {"image_id": i + 1, "category_id": k, "segmentation": mask.to_rle(), "score": 0.5 + i / 1000}
            records.append({**record, "bbox": mask.bbox, "note": f"{i}/{k}"})
    (root / "pred.json").write_text(json.dumps(records))
    (root / "ann.json").write_text(json.dumps({"images": entries}))
    return RefineRequest(
        task="instance",
        images=str(root / "images"),
        predictions=str(root / "pred.json"),
        dataset=str(root / "ann.json"),
        out=str(root / "out.json"),
        model=tiny_model(root / "model"),
        settings=SETTINGS,
        part_images=4,
    )


def semantic_set(root: Path, images: int) -> RefineRequest:
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i in range(images):
        Image.fromarray(picture(i)).save(root / "images" / f"{i}.png")
        labels = disc(40, 50, 20) * 3 + disc(60, 80, 9)
        labels[:5] = 255
        Image.fromarray(labels).save(root / "labels" / f"{i}.png")
    return RefineRequest(
        task="semantic",
        images=str(root / "images"),
        predictions=str(root / "labels"),
        out=str(root / "out"),
        model=tiny_model(root / "model"),
        settings=SETTINGS,
        part_images=2,
    )


def panoptic_set(root: Path, images: int) -> RefineRequest:
    for folder in ("images", "png"):
        (root / folder).mkdir(parents=True)
    annotations = []
    for i in range(images):
        Image.fromarray(picture(i)).save(root / "images" / f"{i}.png")
        ids = np.full((H, W), 7, np.int32)
        ids[disc(40, 50, 20) > 0] = 1000 + i
        ids[:4] = 0
        write_panoptic_png(root / "png" / f"{i}.png", ids)
        infos = [{"id": 7, "category_id": 1, "isthing": 0}, {"id": 1000 + i, "category_id": 2}]
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": infos})
    (root / "pan.json").write_text(json.dumps({"annotations": annotations, "info": {}}))
    return RefineRequest(
        task="panoptic",
        images=str(root / "images"),
        predictions=str(root / "pan.json"),
        panoptic_dir=str(root / "png"),
        out=str(root / "out"),
        model=tiny_model(root / "model"),
        settings=SETTINGS,
        part_images=2,
    )
