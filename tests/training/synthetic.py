"""Small made-up data sets of blobs, written in the formats' own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from bpr_service.masks.mask import Mask, write_panoptic_png

SIZE = (70, 90)  # height, width, px


def blob(rng: np.random.Generator, height: int = SIZE[0], width: int = SIZE[1], sigma: float = 5) -> NDArray[np.uint8]:
    """A smooth random shape somewhere in the frame, never empty."""
    field = ndimage.gaussian_filter(rng.normal(size=(height, width)), sigma)
    labels, _ = ndimage.label(field > np.quantile(field, 0.7))
    sizes = np.bincount(labels.ravel())[1:]
    chosen: NDArray[np.uint8] = (labels == 1 + int(rng.integers(len(sizes)))).astype(np.uint8)
    return chosen


def disturb(rng: np.random.Generator, mask: NDArray[np.uint8], strength: float) -> NDArray[np.uint8]:
    """The mask with a boundary moved at random."""
    noise = ndimage.gaussian_filter(rng.normal(size=mask.shape), 2)
    soft = ndimage.gaussian_filter(mask.astype(float), 2) + strength * noise / max(noise.std(), 1e-9)
    moved: NDArray[np.uint8] = (soft > 0.5).astype(np.uint8)
    return moved if moved.any() else mask


def write_image(path: Path, rng: np.random.Generator, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def write_coco(
    folder: Path, *, images: int = 6, seed: int = 0, crowd: bool = True, strengths: tuple[float, float] = (0.16, 0.06)
) -> dict[str, Path]:
    """Images, ``gt.json`` (RLE, polygons of boxes, a crowd), ``before.json`` and ``after.json`` (less disturbed)."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": c, "name": f"c{c}"} for c in (1, 2, 5)],
    }
    results: dict[str, list[dict[str, Any]]] = {"before": [], "after": []}
    for image_id in range(3, 3 + images):
        name = f"{image_id:04d}.png"
        truth["images"].append({"id": image_id, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        write_image(folder / "images" / name, rng)
        for k in range(5):
            mask, category = blob(rng), int(rng.choice([1, 2, 5]))
            m = Mask.from_array(mask)
            is_crowd = crowd and k == 4 and image_id % 2 == 0
            segmentation: Any = m.to_rle(compressed=not is_crowd)
            if k == 3:
                x, y, w, h = m.bbox
                segmentation = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                m = Mask.from_polygons(segmentation, *SIZE)
                mask = m.to_array()
            annotation: dict[str, Any] = {
                "id": 10 + len(truth["annotations"]),
                "image_id": image_id,
                "category_id": category,
            }
            annotation |= {"segmentation": segmentation, "area": m.area, "bbox": m.bbox, "iscrowd": int(is_crowd)}
            truth["annotations"].append(annotation)
            if is_crowd:
                continue
            score = round(float(rng.uniform(0.1, 1)), 3)
            for side, strength in zip(results, strengths, strict=True):
                rle = Mask.from_array(disturb(rng, mask, strength)).to_rle()
                results[side].append(
                    {
                        "image_id": image_id,
                        "category_id": category,
                        "score": score,
                        "segmentation": rle,
                        "gt": annotation["id"],
                    }
                )
        for side in results:  # a detection that matches nothing
            extra = {
                "image_id": image_id,
                "category_id": 2,
                "score": 0.4,
                "segmentation": Mask.from_array(blob(rng)).to_rle(),
            }
            results[side].append(extra)
    paths = {"gt": folder / "gt.json", "images": folder / "images"}
    paths["gt"].write_text(json.dumps(truth))
    for side, entries in results.items():
        paths[side] = folder / f"{side}.json"
        paths[side].write_text(json.dumps(entries))
    return paths


def label_maps(rng: np.random.Generator, classes: int = 4) -> tuple[NDArray[np.uint8], ...]:
    """A true label map with ignored pixels, a coarse and a less coarse prediction of it."""
    fields = [ndimage.gaussian_filter(rng.normal(size=SIZE), 6) for _ in range(classes)]
    fields = [f / f.std() for f in fields]
    maps = []
    for strength in (0.0, 0.5, 0.15):
        noisy = [f + strength * ndimage.gaussian_filter(rng.normal(size=SIZE), 2) * 4 for f in fields]
        maps.append(np.argmax(noisy, axis=0).astype(np.uint8))
    maps[0][blob(rng, sigma=3) > 0] = 255
    return tuple(maps)


def write_labels(folder: Path, *, images: int = 4, seed: int = 0) -> dict[str, Path]:
    """Folders ``labels``, ``before``, ``after`` and ``images``."""
    rng = np.random.default_rng(seed)
    sides = ("labels", "before", "after")
    for i in range(images):
        for side, label_map in zip(sides, label_maps(rng), strict=True):
            (folder / side).mkdir(parents=True, exist_ok=True)
            Image.fromarray(label_map).save(folder / side / f"{i:03d}.png")
        write_image(folder / "images" / f"{i:03d}.jpg", rng)
    return {name: folder / name for name in (*sides, "images")}


def write_panoptic(folder: Path, *, images: int = 4, seed: int = 0) -> dict[str, Path]:
    """``gt.json``, ``before.json``, ``after.json`` with folders of the same names, and ``images``."""
    rng = np.random.default_rng(seed)
    sides = ("gt", "before", "after")
    files: dict[str, dict[str, Any]] = {
        side: {
            "images": [],
            "annotations": [],
            "categories": [{"id": c, "name": f"c{c}", "isthing": c % 2} for c in range(4)],
        }
        for side in sides
    }
    for i in range(images):
        write_image(folder / "images" / f"{i:03d}.jpg", rng)
        for side, label_map in zip(sides, label_maps(rng), strict=True):
            ids, info = np.zeros(SIZE, np.int32), list[dict[str, Any]]()
            for c in range(4):
                parts, count = ndimage.label(label_map == c)
                for n in range(1, count + 1) if c % 2 else ([None] if count else []):
                    where = parts == n if n else parts > 0
                    crowd = int(side == "gt" and bool(n) and n == 2)
                    info.append(
                        {"id": 300 * len(info) + 7, "category_id": c, "area": int(where.sum()), "iscrowd": crowd}
                    )
                    ids[where] = info[-1]["id"]
            name = f"{i:03d}.png"
            (folder / side).mkdir(parents=True, exist_ok=True)
            write_panoptic_png(folder / side / name, ids)
            files[side]["images"].append({"id": i, "file_name": f"{i:03d}.jpg", "height": SIZE[0], "width": SIZE[1]})
            files[side]["annotations"].append({"image_id": i, "file_name": name, "segments_info": info})
    for side, data in files.items():
        (folder / f"{side}.json").write_text(json.dumps(data))
    return (
        {f"{side}_dir": folder / side for side in sides}
        | {side: folder / f"{side}.json" for side in sides}
        | {"images": folder / "images"}
    )
