"""The scene store: images and ground-truth masks of a training set, in two memory-mapped files and an index.

Shapes: H, W an image's size; h, w a mask's crop. Images are RGB uint8, crops uint8 with 0 background, 1 foreground,
255 ignore, 254 ignore where the nearest label is the foreground: a model predicts some label there too, so simulated
coarse masks go on into it. Worker processes map the same pages, so a store costs its size once however many workers
read it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import FormatError

U8 = NDArray[np.uint8]

IGNORED, IGNORED_INSIDE = 255, 254
"""Crop values that are no ground truth: outside and inside of the mask, as far as the nearest label tells."""

IGNORE_MARGIN_PX = 32
"""How far around a mask of a label map its crop keeps what is ignored."""


@dataclass(frozen=True)
class Scene:
    """One image with its ground-truth masks: image (H, W, 3) uint8 RGB; masks as (x, y, crop (h, w) uint8)."""

    name: str
    source: str
    image: U8
    masks: list[tuple[int, int, U8]]


def write_scenes(folder: Path, scenes: Iterable[Scene]) -> dict[str, object]:
    """Write a store; the manifest is written last and by rename, so a folder with a manifest is whole.

    Returns: the manifest: counts of images and masks per source.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images: list[tuple[int, int, int]] = []
    masks: list[tuple[int, int, int, int, int, int]] = []
    names: list[str] = []
    sources: list[str] = []
    image_at = mask_at = 0
    with open(folder / "images.bin", "wb") as image_file, open(folder / "masks.bin", "wb") as mask_file:
        for scene in scenes:
            for x, y, crop in scene.masks:
                masks.append((len(images), x, y, crop.shape[1], crop.shape[0], mask_at))
                mask_file.write(np.ascontiguousarray(crop).tobytes())
                mask_at += crop.size
            images.append((scene.image.shape[0], scene.image.shape[1], image_at))
            image_file.write(np.ascontiguousarray(scene.image).tobytes())
            image_at += scene.image.size
            names.append(scene.name)
            sources.append(scene.source)
    np.savez(
        folder / "index.npz",
        images=np.array(images, np.int64).reshape(-1, 3),
        masks=np.array(masks, np.int64).reshape(-1, 6),
        names=np.array(names),
        sources=np.array(sources),
    )
    manifest: dict[str, object] = {
        "format": 1,
        "images": len(images),
        "masks": len(masks),
        "sources": {source: sources.count(source) for source in sorted(set(sources))},
    }
    temporary = folder / "manifest.json.tmp"
    temporary.write_text(json.dumps(manifest, indent=1))
    os.replace(temporary, folder / "manifest.json")
    return manifest


class SceneStore:
    """Read access to a store written by :func:`write_scenes`."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "manifest.json").is_file():
            raise FormatError(
                str(folder),
                expected="a scene store with manifest.json",
                got="none",
                fix="build it with `bpr-train scenes`",
            )
        self.manifest = json.loads((folder / "manifest.json").read_text())
        index = np.load(folder / "index.npz")
        self.images, self.masks = index["images"], index["masks"]
        self.names, self.sources = index["names"], index["sources"]
        self._pixels = np.memmap(folder / "images.bin", np.uint8, "r")
        self._crops = np.memmap(folder / "masks.bin", np.uint8, "r")

    def image(self, index: int) -> U8:
        """(H, W, 3) uint8 RGB, a view of the file."""
        height, width, at = self.images[index]
        return np.asarray(self._pixels[at : at + height * width * 3]).reshape(height, width, 3)

    def mask(self, index: int) -> tuple[int, int, int, U8]:
        """Image index, left, top (px) and the crop (h, w) uint8, a view of the file."""
        image, x, y, width, height, at = (int(v) for v in self.masks[index])
        return image, x, y, np.asarray(self._crops[at : at + width * height]).reshape(height, width)

    def masks_of(self, source: str, min_area_px: int = 64) -> NDArray[np.int64]:
        """Indices of the masks of one source."""
        of_source = self.sources[self.masks[:, 0]] == source
        return np.flatnonzero(of_source & (self.masks[:, 3] * self.masks[:, 4] >= min_area_px))


def _tight(mask: U8) -> tuple[int, int, U8]:
    x, y, width, height = cv2.boundingRect((mask == 1).astype(np.uint8))
    return x, y, mask[y : y + height, x : x + width]


def coco_scenes(annotations: Path, images: Path, source: str) -> Iterator[Scene]:
    """Scenes of a COCO instances file; crowds are left out."""
    from pycocotools import mask as rle

    data = json.loads(annotations.read_text())
    by_image: dict[int, list[dict[str, object]]] = {}
    for annotation in data["annotations"]:
        if not annotation.get("iscrowd"):
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    for entry in data["images"]:
        image = _read_rgb(images / entry["file_name"])
        masks = []
        for annotation in by_image.get(entry["id"], []):
            segmentation = annotation["segmentation"]
            if isinstance(segmentation, list):
                segmentation = rle.merge(rle.frPyObjects(segmentation, entry["height"], entry["width"]))
            elif isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
                segmentation = rle.frPyObjects(segmentation, entry["height"], entry["width"])
            masks.append(_tight(rle.decode(segmentation)))
        yield Scene(entry["file_name"], source, image, [m for m in masks if m[2].size])


def label_scenes(labels: Path, images: Path, source: str, ignore_label: int = 255) -> Iterator[Scene]:
    """Scenes of a folder of label PNGs: every label is a mask, and so is each of its larger connected pieces."""
    for path in sorted(labels.glob("*.png")):
        label_map = _read_ids(path)
        ignored = label_map == ignore_label
        whole = _nearest_label(label_map, ignored)
        masks = []
        for label in np.unique(whole):
            if label == ignore_label:
                continue
            binary = (whole == label).astype(np.uint8)
            count, pieces, stats, _ = cv2.connectedComponentsWithStats(binary, connectivity=8)
            wanted = [binary] if count > 2 else []
            wanted += [(pieces == k).astype(np.uint8) for k in range(1, count) if stats[k, 4] >= 100]
            masks += [_with_ignored(mask, ignored) for mask in wanted]
        yield Scene(path.stem, source, _read_rgb(_image_of(images, path.stem)), masks)


def _nearest_label(label_map: NDArray[np.integer[Any]], ignored: NDArray[np.bool_]) -> NDArray[np.integer[Any]]:
    """The label map (H, W) with each ignored pixel given the label of the nearest pixel that has one."""
    if not ignored.any() or ignored.all():
        return label_map
    _, nearest = cv2.distanceTransformWithLabels(
        ignored.astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    label_of = np.zeros(int(nearest.max()) + 1, label_map.dtype)
    label_of[nearest[~ignored]] = label_map[~ignored]
    return np.asarray(label_of[nearest])


def _with_ignored(mask: U8, ignored: NDArray[np.bool_]) -> tuple[int, int, U8]:
    """Left, top and crop of a binary mask (H, W), the ignored pixels marked within a margin around it."""
    x, y, width, height = cv2.boundingRect(mask)
    x0, y0 = max(x - IGNORE_MARGIN_PX, 0), max(y - IGNORE_MARGIN_PX, 0)
    window = np.s_[y0 : y + height + IGNORE_MARGIN_PX, x0 : x + width + IGNORE_MARGIN_PX]
    crop = mask[window].copy()
    crop[ignored[window]] += IGNORED_INSIDE - 1
    crop[crop == IGNORED_INSIDE - 1] = IGNORED
    return x0, y0, crop


def region_scenes(regions: Path, images: Path, source: str, min_area_px: int = 200) -> Iterator[Scene]:
    """Scenes of region maps ``STEM_K.png`` (16-bit ids of annotator K): every region of every annotator is a mask."""
    maps: dict[str, list[Path]] = {}
    for path in sorted(regions.glob("*_*.png")):
        maps.setdefault(path.stem.rsplit("_", 1)[0], []).append(path)
    for stem, paths in maps.items():
        masks = []
        for path in paths:
            ids = _read_ids(path)
            for region in np.unique(ids):
                binary = (ids == region).astype(np.uint8)
                if min_area_px <= int(binary.sum()) <= 0.7 * binary.size:
                    masks.append(_tight(binary))
        yield Scene(stem, source, _read_rgb(_image_of(images, stem)), masks)


def _image_of(images: Path, stem: str) -> Path:
    for suffix in (".jpg", ".png", ".jpeg"):
        if (images / (stem + suffix)).is_file():
            return images / (stem + suffix)
    raise FormatError(str(images), expected=f"an image {stem}.jpg or {stem}.png", got="none", fix="add it")


def _read_rgb(path: Path) -> U8:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise FormatError(str(path), expected="a readable image", got="none or a damaged file", fix="replace it")
    return np.asarray(image[:, :, ::-1], np.uint8)


def _read_ids(path: Path) -> NDArray[np.integer[Any]]:
    """(H, W) ids of a one-channel PNG."""
    ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if ids is None or ids.ndim != 2:
        got = "none or a damaged file" if ids is None else f"{ids.shape[2]} channels"
        raise FormatError(str(path), expected="a PNG with one channel of ids", got=got, fix="replace it")
    return np.asarray(ids)
