"""A fair baseline of the steps around the network, and the same steps as this package does them.

A 1024 x 2048 image with masks: compressed RLE -> boundary pixels and kept boxes -> crops at 64 px -> (the network's
logits, the same fixed ones for both) -> averaged masks -> compressed RLE. The baseline does no full-frame work but in
pycocotools: it crops to each mask's box, sums with a box filter, runs torchvision's NMS, cuts each patch with OpenCV
and averages with ``np.add.at``. Boxes, crops and masks of both are equal.
"""

from __future__ import annotations

from time import process_time
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from torchvision.ops import nms

from bpr_service.config import RefineConfig, build
from bpr_service.errors import ConflictError
from bpr_service.masks.mask import Mask
from bpr_service.refine.crops import crop_patches
from bpr_service.refine.patches import place_patches
from bpr_service.refine.reassemble import Accumulator

HEIGHT, WIDTH, SIZE = 1024, 2048, 64
Parts = dict[str, float]


def scene(n: int, seed: int) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """An image of noise and `n` RLEs of smooth blobs, 40 to 160 px across."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    rles = []
    for _ in range(n):
        h, w = rng.integers(40, 160, 2)
        rough = cv2.GaussianBlur(rng.normal(size=(h, w)), (0, 0), 8)
        ys, xs = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
        blob = (0.75 - np.hypot(xs, ys) + 4 * rough) > 0
        frame = np.zeros((HEIGHT, WIDTH), np.uint8)
        y, x = int(rng.integers(0, HEIGHT - h + 1)), int(rng.integers(0, WIDTH - w + 1))
        frame[y : y + h, x : x + w] = blob
        rle = coco.encode(np.asfortranarray(frame))
        rles.append({"size": rle["size"], "counts": rle["counts"].decode()})
    return image, rles


class Clock:
    """Milliseconds of each step."""

    def __init__(self) -> None:
        self.ms: Parts = {}
        self._last = process_time()

    def lap(self, step: str) -> None:
        now = process_time()
        self.ms[step] = self.ms.get(step, 0.0) + 1e3 * (now - self._last)
        self._last = now


STEPS = ("RLE -> masks", "boundary, NMS", "crops", "reassembly", "masks -> RLE")


def ours(image: Any, rles: Any, logits: Any, config: RefineConfig) -> tuple[Parts, Any, Any, Any]:
    """The steps as this package does them: their times, boxes, crops and masks."""
    clock = Clock()
    masks = [Mask.from_rle(rle) for rle in rles]
    clock.lap(STEPS[0])
    boxes = [place_patches(mask, config.patch) for mask in masks]
    clock.lap(STEPS[1])
    crops = [crop_patches(image, m, b, config.patch) for m, b in zip(masks, boxes, strict=True)]
    clock.lap(STEPS[2])
    refined, start = [], 0
    for mask, some in zip(masks, boxes, strict=True):
        sums = Accumulator(some, HEIGHT, WIDTH, 1, config)
        sums.add(0, logits[start : start + len(some)])
        refined.append(sums.paste(mask)[0])
        start += len(some)
    clock.lap(STEPS[3])
    out = [mask.to_rle()["counts"] for mask in refined]
    clock.lap(STEPS[4])
    return clock.ms, boxes, crops, out


def baseline_boxes(frame: Any, box: Any, threshold: float) -> Any:
    """Boundary pixels in the mask's box, scored by a box filter; torchvision's NMS of the windows around them."""
    x, y, w, h = (int(v) for v in box)
    x0, y0, x1, y1 = max(x - 2, 0), max(y - 2, 0), min(x + w + 2, WIDTH), min(y + h + 2, HEIGHT)
    sums = cv2.boxFilter(frame[y0:y1, x0:x1], -1, (3, 3), normalize=False, borderType=cv2.BORDER_REPLICATE)
    rank = np.minimum(sums, 9 - sums)
    ys, xs = np.nonzero(rank)
    order = np.argsort(-rank[ys, xs].astype(np.int8), kind="stable")
    left = np.clip(xs[order] + x0 - SIZE // 2, 0, WIDTH - SIZE)
    top = np.clip(ys[order] + y0 - SIZE // 2, 0, HEIGHT - SIZE)
    boxes = np.stack([left, top, left + SIZE, top + SIZE], axis=1).astype(np.int32)
    falling = torch.linspace(1, 0, len(boxes))
    return boxes[nms(torch.from_numpy(boxes).float(), falling, threshold).numpy()]


def baseline(image: Any, rles: Any, logits: Any, config: RefineConfig) -> tuple[Parts, Any, Any, Any]:
    """The same steps on full frames, as they are usually written."""
    clock = Clock()
    frames = [coco.decode(rle) for rle in rles]
    clock.lap(STEPS[0])
    boxes = [baseline_boxes(f, coco.toBbox(r), config.patch.nms_threshold) for f, r in zip(frames, rles, strict=True)]
    clock.lap(STEPS[1])
    crops = []
    for frame, some in zip(frames, boxes, strict=True):
        batch = np.empty((len(some), SIZE, SIZE, 4), np.uint8)
        for i, (x0, y0, x1, y1) in enumerate(some):
            batch[i, :, :, :3] = cv2.resize(image[y0:y1, x0:x1], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
            batch[i, :, :, 3] = cv2.resize(frame[y0:y1, x0:x1] * 255, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        crops.append(batch)
    clock.lap(STEPS[2])
    start, out = 0, []
    across, down = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    for frame, some in zip(frames, boxes, strict=True):
        x0, y0 = some[:, :2].min(axis=0)
        x1, y1 = some[:, 2:].max(axis=0)
        sums, count = np.zeros((y1 - y0, x1 - x0)), np.zeros((y1 - y0, x1 - x0))
        probability = 1 / (1 + np.exp(-logits[start : start + len(some), 0].astype(np.float64)))
        ys = some[:, 1, None, None] - y0 + down
        xs = some[:, 0, None, None] - x0 + across
        at = (ys * (x1 - x0) + xs).ravel()  # flat: the form that np.add.at is quick in
        np.add.at(sums.ravel(), at, probability.ravel())
        np.add.at(count.ravel(), at, 1.0)
        window, seen = frame[y0:y1, x0:x1], count > 0
        window[seen] = sums[seen] / count[seen] >= 0.5
        start += len(some)
    clock.lap(STEPS[3])
    out = [coco.encode(np.asfortranarray(frame))["counts"].decode() for frame in frames]
    clock.lap(STEPS[4])
    return clock.ms, boxes, crops, out


def compare(n_masks: int, nms: float, repeat: int, seed: int) -> tuple[int, dict[str, Parts]]:
    """Patches, and the median milliseconds of processor time a step of ``baseline`` and ``ours``.

    Raises:
        ConflictError: their boxes, crops or masks differ.
    """
    image, rles = scene(n_masks, seed)
    patch = {"padding_px": 0, "network_size_px": SIZE, "nms_threshold": nms, "cover": False}
    config = build(RefineConfig, {**patch, "window": "flat", "specks_px": 0})
    n = sum(len(place_patches(Mask.from_rle(rle), config.patch)) for rle in rles)
    noise = np.random.default_rng(1).normal(0, 40, (n, 1, SIZE, SIZE)).astype(np.float32)
    logits = np.stack([cv2.GaussianBlur(one[0], (0, 0), 5)[None] for one in noise])  # smooth, as a network's are
    runs: dict[str, list[Parts]] = {"baseline": [], "ours": []}
    for _ in range(repeat + 1):  # the first run compiles and warms up
        mine, theirs = ours(image, rles, logits, config), baseline(image, rles, logits, config)
        runs["ours"].append(mine[0])
        runs["baseline"].append(theirs[0])
        equal = [np.array_equal(a, b) for k in (1, 2) for a, b in zip(mine[k], theirs[k], strict=True)]
        if not all(equal) or mine[3] != theirs[3]:
            raise ConflictError("the baseline's results differ", expected="equal boxes, crops and masks")
    return n, {name: {s: float(np.median([r[s] for r in some[1:]])) for s in STEPS} for name, some in runs.items()}
