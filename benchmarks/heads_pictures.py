"""Pictures of what each head predicts beside the masks, for ``benchmarks/heads.py pictures``.

bmask, bsm        the boundary predictor's probability, each detection's pasted into the image
beis              the last stage's boundary features, their first principal component likewise
b2inst            the boundary basis over the whole image
deeplabv3plus bsm the largest class' boundary probability over the whole image
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def draw_all(
    runs: Path, out: Path, rows: Mapping[str, tuple[str, str]], data: Path, slug: Callable[[str], str]
) -> None:
    """One PNG a row that has a checkpoint: photograph (scikit-image's), prediction over it."""
    from skimage.data import astronaut

    out.mkdir(parents=True, exist_ok=True)
    image = astronaut()
    for name, (arch, head) in rows.items():
        checkpoint = runs / f"{slug(name)}_seed0" / "last.ckpt"
        if head == "plain" or not checkpoint.is_file():
            continue
        from refiner_training.segmenters.train import load_segmenter

        model, _ = load_segmenter(checkpoint)
        heat = boundary_map(model, arch, torch.from_numpy(image).permute(2, 0, 1).float() / 255)
        cv2.imwrite(str(out / f"{slug(name)}.png"), overlay(image, heat)[:, :, ::-1])
        print(out / f"{slug(name)}.png", flush=True)


def overlay(image: Any, heat: Tensor) -> Any:
    """The photograph beside its prediction, at half size."""
    colours = cv2.applyColorMap((heat.clamp(0, 1) * 255).byte().numpy(), cv2.COLORMAP_INFERNO)[:, :, ::-1]
    both = np.concatenate([image, cv2.addWeighted(image, 0.35, np.ascontiguousarray(colours), 0.65, 0)], axis=1)
    return cv2.resize(both, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


@torch.no_grad()
def boundary_map(model: Any, arch: str, image: Tensor) -> Tensor:
    """(H, W) in [0, 1]."""
    size = (int(image.shape[-2]), int(image.shape[-1]))
    if arch == "deeplabv3plus":
        model.model.eval()
        model.training = True  # the auxiliary predictors alone look at this flag
        out = model.logits(model._normalise(image[None]))["boundary"]
        model.training = False
        return _resize(out.float().sigmoid().amax(1)[0], size)
    if arch == "mask_rcnn":
        return _roi_map(model, image, size)
    seen: list[Tensor] = []
    if arch == "blendmask":
        hook = model.basis.register_forward_hook(lambda _m, _i, bases: seen.append(bases[0, -1].float().sigmoid()))
    else:
        hook = model.prototype_net.register_forward_hook(lambda _m, _i, out: seen.append(out[1][0].float().sigmoid()))
    model([image])
    hook.remove()
    return _resize(seen[0], size)


def _roi_map(model: Any, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Run the detector with its mask head alone in training mode, and keep what it says beside the mask."""
    seen: list[dict[str, Tensor]] = []
    hook = model.head.register_forward_hook(lambda _m, _i, out: seen.append(out))
    model.head.training = True
    found = model([image])[0]
    hook.remove()
    model.head.training = False
    out = seen[0]
    if "boundary" in out:
        grids = out["boundary"].float().sigmoid()
    else:
        features = out[max(name for name in out if name.startswith("features"))].float()
        grids = _principal(features)
    canvas = torch.zeros(size)
    for grid, box, score in zip(grids, found.boxes.round().long().tolist(), found.scores.tolist(), strict=True):
        x0, y0, x1, y1 = max(box[0], 0), max(box[1], 0), min(box[2], size[1]), min(box[3], size[0])
        if score >= 0.2 and x1 > x0 and y1 > y0:
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
