"""What is measured of each image of a set, and the sums over a set.

An instance's row is that of `measure_triple`, and what `more_of_mask` adds.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from quality_domains import chosen, enlarged, png_pairs, shown, simulated
from quality_sets import Item

from bpr_service.masks.mask import Mask, as_mask

CLASSES = 11
"""Of CamVid; 255 is void."""
BLOCKS_SEED = 20_210_613
AREA, CONFIDENCE, F_2PX, MBA, BOUNDARY_IOUS, WRONG = 10, 11, 12, 13, 14, 17
"""Places in an instance's row: the true mask's area (px); the confidence (NaN where there is none), and the boundary F
at 2 px that it speaks of; mean boundary accuracy; the lesser of IoU and boundary IoU at each of `RATIOS`; wrong pixels
in each band of `DISTANCES_PX`."""
RATIOS = (0.005, 0.01, 0.02)
DISTANCES_PX = (1, 3, 8, 16, np.inf)
"""Ends of bands by distance from the coarse boundary."""
AP_IOUS = np.linspace(0.5, 0.95, 10)


# ---- the pairs of an item -------------------------------------------------------------------------------------------


def pairs(item: Item) -> tuple[list[Mask], list[Mask]]:
    """Coarse and true masks of an instance item, in step."""
    if "ids" in item.payload:
        return png_pairs(item)
    coarse, truth = _coco_pairs(item)
    if "most" in item.payload:
        kept = chosen(len(truth), item.payload["most"], item)
        coarse, truth = [coarse[k] for k in kept], [truth[k] for k in kept]
    times = item.payload.get("enlarge", 1)
    return ([enlarged(m, times) for m in coarse], [enlarged(m, times) for m in truth]) if times > 1 else (coarse, truth)


def _coco_pairs(item: Item) -> tuple[list[Mask], list[Mask]]:
    p = item.payload
    height, width = p["height"], p["width"]
    truth = {a["id"]: as_mask(a["segmentation"], height, width) for a in p["truth"]}
    if p["source"] == "truth":
        return list(truth.values()), list(truth.values())
    if p["source"] == "soft":
        return [simulated(mask, item, k, soft=True) for k, mask in enumerate(truth.values())], list(truth.values())
    if p["source"] == "blocks":
        kept = [(blocks_mask(mask, key), mask) for key, mask in truth.items()]
        kept = [(c, t) for c, t in kept if _iou(c, t) > 0.5]
        return [c for c, _ in kept], [t for _, t in kept]
    coarse = [(c, as_mask(c["segmentation"], height, width)) for c in p["coarse"]]
    if all("gt" in c for c, _ in coarse):
        return [m for _, m in coarse], [truth[c["gt"]] for c, _ in coarse]
    free = {a["id"]: a["category_id"] for a in p["truth"] if not a.get("iscrowd")}
    matched: tuple[list[Mask], list[Mask]] = ([], [])
    for entry, mask in sorted(coarse, key=lambda pair: -float(pair[0].get("score", 0))):
        rivals = [(_iou(mask, truth[key]), key) for key, cat in free.items() if cat == entry["category_id"]]
        overlap, key = max(rivals, default=(0.0, 0))
        if overlap > 0.5:
            del free[key]
            matched[0].append(mask)
            matched[1].append(truth[key])
    return matched


def blocks_mask(mask: Mask, key: int) -> Mask:
    """The held-out kind of error of one mask: the same whenever it is asked for."""
    from refiner_training.data.simulate import blocks

    margin = 24
    x0, y0, x1, y1 = mask.box
    x0, y0 = max(x0 - margin, 0), max(y0 - margin, 0)
    x1, y1 = min(x1 + margin, mask.width), min(y1 + margin, mask.height)
    soft = blocks(mask.window(x0, y0, x1, y1).astype(np.float32), np.random.default_rng([BLOCKS_SEED, key]))
    return Mask.from_window((soft > 0.5).astype(np.uint8), x0, y0, mask.height, mask.width)


def _iou(a: Mask, b: Mask) -> float:
    from refiner_training.metrics.boundary import mask_iou

    return mask_iou(a, b)


# ---- what is measured of one image ----------------------------------------------------------------------------------


def measure_item(item: Item, methods: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Run every method on one image: for each, ``seconds``, ``masks`` and the rows that `summarise_set` gathers."""
    from bpr_service.masks.images import read_image

    image = shown(read_image(item.image), item.payload)
    run = {"instance": _instances, "semantic": _semantic, "panoptic": _panoptic}[item.kind]
    return run(item, image, methods)


def _timed(call: Any, *arguments: Any) -> tuple[Any, float]:
    start = perf_counter()
    return call(*arguments), perf_counter() - start


def _instances(item: Item, image: NDArray[np.uint8], methods: dict[str, Any]) -> dict[str, dict[str, Any]]:
    from refiner_training.metrics.change import measure_triple

    coarse, truth = pairs(item)
    out = {}
    for name, method in methods.items():
        refined, seconds = _timed(method.instances, image, coarse) if coarse else ([], 0.0)
        said = getattr(method, "confidences", None) or [np.nan] * len(coarse)
        rows = [
            (*measure_triple(*of_one), *more_of_mask(*of_one, confidence))
            for *of_one, confidence in zip(coarse, refined, truth, said, strict=True)
        ]
        out[name] = {"seconds": seconds, "masks": len(coarse), "rows": rows}
    return out


def more_of_mask(coarse: Mask, refined: Mask, truth: Mask, confidence: float) -> tuple[float, ...]:
    """The rest of an instance's row, from `AREA` on."""
    from refiner_training.metrics.boundary import boundary_distance_px, boundary_f, boundary_iou

    height, width = truth.height, truth.width
    distances = [boundary_distance_px(height, width, ratio) for ratio in RATIOS]
    overlap = _iou(refined, truth)
    ious = [min(overlap, boundary_iou(refined, truth, distance)) for distance in distances]
    f_2px = boundary_f(refined, truth, 2)
    return (truth.area, confidence, f_2px, boundary_accuracy(refined, truth), *ious, *wrong_px(coarse, refined, truth))


def boundary_accuracy(mask: Mask, truth: Mask) -> float:
    """Mean boundary accuracy (Cheng et al., CascadePSP, CVPR 2020, section 4.1).

    The share of right pixels near the true boundary, averaged over five radii from 1 px to (width + height) / 300, as
    its authors' code has them.
    """
    most = (truth.width + truth.height) / 300
    x0, y0, x1, y1 = _around(truth, truth, margin=int(most) + 2)
    wanted, found = truth.window(x0, y0, x1, y1), mask.window(x0, y0, x1, y1)
    shares = []
    for step in range(5):
        radius = 1 + int((most - 1) / 5 * step)
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
        near = cv2.morphologyEx(wanted, cv2.MORPH_GRADIENT, disc) > 0
        shares.append((wanted == found)[near].mean() if near.any() else 1.0)
    return float(np.mean(shares))


def wrong_px(coarse: Mask, refined: Mask, truth: Mask) -> list[int]:
    """Wrong pixels of the refined mask in each band of `DISTANCES_PX` around the boundary of the coarse one."""
    x0, y0, x1, y1 = _around(coarse, refined, truth, margin=2)
    before = coarse.window(x0, y0, x1, y1)
    inside, outside = (cv2.distanceTransform(part, cv2.DIST_L2, 5) for part in (before, 1 - before))
    distance = np.where(before > 0, inside, outside)
    wrong = refined.window(x0, y0, x1, y1) != truth.window(x0, y0, x1, y1)
    counts = [int((wrong & (distance <= end)).sum()) for end in DISTANCES_PX]
    return np.diff([0, *counts]).tolist()


def _around(*masks: Mask, margin: int) -> tuple[int, int, int, int]:
    """A box of the image that holds all masks and a margin."""
    boxes = np.array([mask.box for mask in masks if not mask.is_empty] or [(0, 0, 1, 1)])
    x0, y0 = np.maximum(boxes[:, :2].min(0) - margin, 0).tolist()
    x1, y1 = np.minimum(boxes[:, 2:].max(0) + margin, (masks[0].width, masks[0].height)).tolist()
    return x0, y0, x1, y1


def _semantic(item: Item, image: NDArray[np.uint8], methods: dict[str, Any]) -> dict[str, dict[str, Any]]:
    from bpr_service.masks.label_maps import read_label_map
    from refiner_training.data.label_masks import compact, masks_of
    from refiner_training.metrics.semantic import class_f, confusion

    classes = range(CLASSES)
    label_map = read_label_map(item.payload["truth"])
    truth = compact(label_map, classes)
    truth_masks = masks_of(truth, CLASSES)
    coarse = read_label_map(item.payload["coarse"])
    out = {}
    for name, method in methods.items():
        refined, seconds = _timed(method.semantic, image, coarse)
        prediction = np.where(truth >= 0, compact(refined, classes), -1).astype(np.int32)
        masks = masks_of(prediction, CLASSES)
        present = [not (a.is_empty and b.is_empty) for a, b in zip(truth_masks, masks, strict=True)]
        row = (confusion(truth, prediction, CLASSES), class_f(truth_masks, masks, 1), np.array(present))
        out[name] = {"seconds": seconds, "masks": len(np.unique(coarse)), "rows": [row]}
    return out


def _panoptic(item: Item, image: NDArray[np.uint8], methods: dict[str, Any]) -> dict[str, dict[str, Any]]:
    from bpr_service.masks.label_maps import read_panoptic_png
    from refiner_training.data.label_masks import compact
    from refiner_training.metrics.boundary import boundary_distance_px
    from refiner_training.metrics.panoptic import measure_segments, tally

    true_map = read_panoptic_png(item.payload["truth"])
    coarse = read_panoptic_png(item.payload["coarse"])
    infos, true_infos = item.payload["coarse_infos"], item.payload["truth_infos"]
    truth = compact(true_map, [info["id"] for info in true_infos])
    distance = boundary_distance_px(*true_map.shape)
    out = {}
    for name, method in methods.items():
        refined, seconds = _timed(method.panoptic, image, coarse, infos)
        present = set(np.unique(refined).tolist())
        left = [info for info in infos if info["id"] in present]
        prediction = compact(refined, [info["id"] for info in left])
        overlaps = measure_segments(truth, prediction, len(true_infos), len(left), distance)
        row = tuple(tally(overlaps, true_infos, left, boundary) for boundary in (False, True))
        out[name] = {"seconds": seconds, "masks": len(infos), "rows": [row]}
    return out


# ---- sums -----------------------------------------------------------------------------------------------------------


def more_of_set(table: NDArray[np.float64]) -> dict[str, float]:
    """The measures of an instance set's rows (N, columns) beside those of `collect`.

    ``boundary_ap`` is the average precision over the ten IoU thresholds of COCO where every mask has one score and one
    truth: the mean share of masks whose lesser of IoU and boundary IoU reaches them.
    """
    values = {"mba": float(table[:, MBA].mean())}
    for place, ratio in enumerate(RATIOS, BOUNDARY_IOUS):
        values[f"boundary_ap_{ratio:g}"] = float((table[:, place, None] >= AP_IOUS).mean())
    return values


def summarise_set(kind: str, rows: list[Any]) -> dict[str, float]:
    """The measures of a set from the rows of all its images."""
    if kind == "instance":
        from refiner_training.metrics.change import collect

        values = {k: float(v) for k, v in collect([row[:10] for row in rows])["summary"].items()}
        return values | more_of_set(np.array(rows, np.float64))
    if kind == "semantic":
        from refiner_training.metrics.semantic import summarise

        counts = np.sum([row[0] for row in rows], axis=0)
        overall, _ = summarise(counts, np.array([row[1] for row in rows]), np.array([row[2] for row in rows]))
        return {k: float(v) for k, v in overall.items()}
    from refiner_training.metrics.panoptic import Tally

    means = []
    for k in range(2):
        total = Tally()
        for row in rows:
            total.merge(row[k])
        means.append(total.mean(range(CLASSES)))
    return {"PQ": float(means[0]["PQ"] or 0), "boundary_PQ": float(means[1]["PQ"] or 0)}
