"""Scenes of data sets as they are published: what ``bpr-train scenes`` reads, source by source.

Shapes: H, W an image's size; h, w a mask's crop.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import FormatError
from refiner_training.data.scenes.store import IGNORE_MARGIN_PX, IGNORED, IGNORED_INSIDE, U8, Placed, Scene

LEAST_PIECE_PX = 100
"""Connected pieces of a mask from this area on are masks of their own."""

LEAST_ON_TRUTH = 0.3
"""Share of a coarse piece on the true mask from which on it is taken for a mask of it."""


def _tight(mask: U8) -> Placed:
    x, y, width, height = cv2.boundingRect((mask == 1).astype(np.uint8))
    return x, y, mask[y : y + height, x : x + width]


def coco_scenes(annotations: Path, images: Path, source: str, results: Path | None = None) -> Iterator[Scene]:
    """Scenes of a COCO instances file; crowds are left out.

    Args:
        annotations: the instances file.
        images: the folder of its pictures.
        source: the name that the scenes go by.
        results: COCO results of a real network for it, each with the annotation's id under ``gt``; masks without one
            are left out.
    """
    data = json.loads(annotations.read_text())
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in data["annotations"]:
        if not annotation.get("iscrowd"):
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    found = {r.get("gt"): r["segmentation"] for r in json.loads(results.read_text())} if results else {}
    for entry in data["images"]:
        size = entry["height"], entry["width"]
        masks: list[Placed] = []
        coarse: dict[int, Placed] = {}
        for annotation in by_image.get(entry["id"], []):
            crop = _tight(_decoded(annotation["segmentation"], *size))
            if not crop[2].size or (results and annotation["id"] not in found):
                continue
            if results:
                coarse[len(masks)] = _levels(_decoded(found[annotation["id"]], *size))
            masks.append(crop)
        yield Scene(entry["file_name"], source, _read_rgb(images / entry["file_name"]), masks, coarse)


def _decoded(segmentation: Any, height: int, width: int) -> U8:
    """(H, W) {0, 1} of polygons or of an RLE, compressed or not."""
    from pycocotools import mask as rle

    if isinstance(segmentation, list):
        segmentation = rle.merge(rle.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = rle.frPyObjects(segmentation, height, width)
    return np.asarray(rle.decode(segmentation), np.uint8)


def _levels(mask: U8) -> Placed:
    """Left, top and the crop of a mask (H, W): probabilities 0..255 as they are, {0, 1} as 0 and 255."""
    levels = mask * np.uint8(255) if mask.max(initial=0) <= 1 else mask
    x, y, width, height = cv2.boundingRect((levels > 0).astype(np.uint8))
    return x, y, np.asarray(levels[y : y + height, x : x + width], np.uint8)


def id_scenes(
    masks: Path, images: Path, source: str, coarse: Path | None = None, *, videos: bool = False
) -> Iterator[Scene]:
    """Scenes of PNGs of object ids, 0 being no object: every id is a mask, and so is each of its larger pieces.

    Args:
        masks: the folder of PNGs.
        images: the folder of pictures of the same names.
        source: the name that the scenes go by.
        coarse: a real network's masks of the same names, 0 and 1 or probabilities 0 to 255: the mask of all objects
            together, which then is the scene's only mask. Pictures without one are left out.
        videos: files are VIDEO_FRAME.png; a video's frames are one group.
    """
    for path in sorted(masks.glob("*.png")):
        if coarse is not None and not (coarse / path.name).is_file():
            continue
        ids = _read_ids(path)
        image = _read_rgb(_image_of(images, path.stem))
        if ids.shape != image.shape[:2]:
            raise FormatError(
                str(path), expected=f"{image.shape[:2]}, as the image", got=f"{ids.shape}", fix="check the folders"
            )
        group = path.stem.rsplit("_", 1)[0] if videos else ""
        if coarse is not None:
            whole, levels = (ids > 0).astype(np.uint8), np.asarray(_read_ids(coarse / path.name), np.uint8)
            if whole.any() and levels.any():
                given = _levels(levels)
                yield Scene(path.stem, source, image, [_marked(whole, given)], {0: given}, group)
            continue
        wanted: list[U8] = []
        for one in np.unique(ids[ids > 0]):
            wanted += _with_pieces((ids == one).astype(np.uint8))
        yield Scene(path.stem, source, image, [_tight(mask) for mask in wanted], group=group)


def _marked(truth: U8, given: Placed) -> Placed:
    """The crop of a true mask (H, W) with the pieces of a coarse mask that lie off it ignored.

    What an annotator left out is no error of a boundary.
    """
    x, y, levels = given
    predicted = np.zeros_like(truth)
    predicted[y : y + levels.shape[0], x : x + levels.shape[1]] = levels > 127
    count, pieces = cv2.connectedComponents(predicted, connectivity=8)
    sizes = np.bincount(pieces.ravel(), minlength=count)
    on = np.bincount(pieces.ravel(), truth.ravel(), minlength=count)
    strange = on < LEAST_ON_TRUTH * sizes
    strange[0] = False
    marked = truth.copy()
    off = cv2.dilate(strange[pieces].astype(np.uint8), np.ones((3, 3), np.uint8), iterations=IGNORE_MARGIN_PX // 2)
    marked[(off > 0) & (truth == 0)] = IGNORED
    x, y, width, height = cv2.boundingRect((marked > 0).astype(np.uint8))
    return x, y, marked[y : y + height, x : x + width]


def _with_pieces(binary: U8) -> list[U8]:
    """A mask (H, W) where it is in several pieces, and each piece of `LEAST_PIECE_PX` or more."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(binary, connectivity=8)
    wanted = [binary] if count > 2 else []
    return wanted + [(pieces == k).astype(np.uint8) for k in range(1, count) if stats[k, 4] >= LEAST_PIECE_PX]


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
            masks += [_with_ignored(mask, ignored) for mask in _with_pieces(binary)]
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


def _with_ignored(mask: U8, ignored: NDArray[np.bool_]) -> Placed:
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
