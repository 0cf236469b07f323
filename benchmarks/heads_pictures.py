"""Pictures of what each head predicts beside the masks, for ``benchmarks/heads.py pictures``.

Each head is trained for some steps on the bundled photographs and their masks, and draws one of them:

bmask, bsm        the boundary predictor's probability on the instances' boxes
beis              the last stage's boundary features there, their first principal component
b2inst            the boundary basis over the whole image
deeplabv3plus bsm the largest class' boundary probability over the whole image
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bpr_service.examples import NAMES, load_example
from bpr_service.masks.label_maps import write_label_map
from bpr_service.masks.mask import as_mask


def photographs(folder: Path) -> dict[str, str]:
    """Write the photographs with one class of instances, and as label maps; the settings that name them."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, name in enumerate(NAMES, 1):
        example = load_example(name)
        height, width = example.image.shape[:2]
        labels = np.zeros((height, width), np.uint8)
        images.append({"id": number, "file_name": f"{name}.png", "height": height, "width": width})
        for each in example.instances:
            mask = as_mask(each["segmentation"], height, width)
            labels[mask.to_array() > 0] = 1
            entry = {"image_id": number, "category_id": 1, "segmentation": each["segmentation"]}
            annotations.append(entry | {"id": len(annotations) + 1, "bbox": mask.bbox, "area": mask.area, "iscrowd": 0})
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "images" / f"{name}.png"), example.image[:, :, ::-1])
        write_label_map(folder / "labels" / f"{name}.png", labels)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    truth = {"images": "images", "annotations": "instances.json", "labels": "labels"}
    return {kind: str(folder / name) for kind, name in truth.items()}


def draw(checkpoint: Path, arch: str, data: Mapping[str, str], name: str, out: Path) -> None:
    """One JPEG: the photograph beside what the head of a checkpoint predicts of it."""
    from refiner_training.run.segmenter import load_segmenter

    model, _ = load_segmenter(checkpoint)
    image = load_example(name).image
    content = json.loads(Path(data["annotations"]).read_text())
    number = NAMES.index(name) + 1
    boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == number]
    corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=torch.float32)
    heat = boundary_map(model, arch, torch.from_numpy(image).permute(2, 0, 1).float() / 255, corners)
    out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(out), overlay(image, heat)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


def overlay(image: Any, heat: Tensor) -> Any:
    """The photograph beside its prediction, at half size."""
    colours = cv2.applyColorMap((heat.clamp(0, 1) * 255).byte().numpy(), cv2.COLORMAP_INFERNO)[:, :, ::-1]
    both = np.concatenate([image, cv2.addWeighted(image, 0.35, np.ascontiguousarray(colours), 0.65, 0)], axis=1)
    return cv2.resize(both, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


@torch.no_grad()
def boundary_map(model: Any, arch: str, image: Tensor, boxes: Tensor) -> Tensor:
    """(H, W) in [0, 1] of a (3, H, W) image in [0, 1]; RoI heads look at the ``boxes`` (n, 4) alone."""
    size = (int(image.shape[-2]), int(image.shape[-1]))
    if arch == "mask_rcnn":
        return _roi_map(model, image, boxes, size)
    if arch == "deeplabv3plus":
        model.training = True  # the auxiliary predictors alone look at this flag
        height, width = (-side % 32 for side in size)
        out = model.logits(F.pad(model._normalise(image[None]), (0, width, 0, height)))["boundary"]
        model.training = False
        heat = out.float().sigmoid().amax(1)[0]
        return _resize(heat, (size[0] + height, size[1] + width))[: size[0], : size[1]]
    seen: list[Tensor] = []
    part = model.basis if arch == "blendmask" else model.prototype_net

    def keep(_module: Any, _inputs: Any, out: Any) -> None:
        seen.append((out[0, -1] if arch == "blendmask" else out[1][0]).float().sigmoid())

    hook = part.register_forward_hook(keep)
    model([image])
    hook.remove()
    heat = seen[0]
    if arch == "blendmask":  # the batch is padded at the right and the bottom
        resized = model.detector.transform([image])[0].image_sizes[0]
        heat = heat[: round(resized[0] / 4), : round(resized[1] / 4)]
    return _resize(heat, size)


def _roi_map(model: Any, image: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The mask head alone, in training mode, on given boxes: what it says beside the mask, pasted."""
    from refiner_training.heads.protocol import RoiBatch

    detector = model.detector
    images, targets = detector.transform(
        [image], [{"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64)}]
    )
    features = detector.backbone(images.tensors)
    inside = [targets[0]["boxes"]]
    labels = targets[0]["labels"]
    model.head.training = True
    out = model.head(RoiBatch(detector.roi_heads._pool(features, inside, images.image_sizes), inside, labels))
    model.head.training = False
    if "boundary" in out:
        grids = out["boundary"].float().sigmoid()
    else:
        grids = _principal(out[max(name for name in out if name.startswith("features"))].float())
    canvas = torch.zeros(size)
    for grid, box in zip(grids, boxes.round().long().tolist(), strict=True):
        x0, y0, x1, y1 = max(box[0], 0), max(box[1], 0), min(box[2], size[1]), min(box[3], size[0])
        place = canvas[y0:y1, x0:x1]
        torch.maximum(place, _resize(grid, (y1 - y0, x1 - x0)), out=place)
    return canvas


def _principal(features: Tensor) -> Tensor:
    """(N, D, M, M) features -> (N, M, M), their first principal component scaled to [0, 1]."""
    if len(features) == 0:
        return features[:, 0]
    flat = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    centred = flat - flat.mean(0)
    _, _, directions = torch.pca_lowrank(centred[:: max(len(centred) // 20000, 1)], q=1)
    values = (centred @ directions[:, 0]).reshape(features.shape[0], *features.shape[-2:])
    low, high = values.quantile(0.02) if values.numel() < 1e7 else values.min(), values.max()
    return ((values - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


def _resize(grid: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(grid[None, None], size, mode="bilinear", align_corners=False)[0, 0]
