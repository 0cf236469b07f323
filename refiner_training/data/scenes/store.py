"""The scene store: images and ground-truth masks of a training set, in two memory-mapped files and an index.

Shapes: H, W an image's size; h, w a mask's crop. Images are RGB uint8, crops uint8 with 0 background, 1 foreground,
255 ignore, 254 ignore where the nearest label is the foreground: a model predicts some label there too, so simulated
coarse masks go on into it. Worker processes map the same pages, so a store costs its size once however many workers
read it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import FormatError

U8 = NDArray[np.uint8]

IGNORED, IGNORED_INSIDE = 255, 254
"""Crop values that are no ground truth: outside and inside of the mask, as far as the nearest label tells."""

FORMAT = 2
"""Of a store's files."""

IGNORE_MARGIN_PX = 32
"""How far around a mask of a label map its crop keeps what is ignored."""


Placed = tuple[int, int, U8]
"""Left, top (px) and a crop (h, w)."""


@dataclass(frozen=True)
class Scene:
    """One image with its ground-truth masks.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        masks: crops of 0, 1 and what is ignored.
        coarse: a real network's mask of the mask of the same number: crops of 0 to 255, probabilities; may be empty.
        group: what the picture's look comes from: its own name, or its video's, whose frames resemble each other.
    """

    name: str
    source: str
    image: U8
    masks: list[Placed]
    coarse: dict[int, Placed] = field(default_factory=dict)
    group: str = ""


def write_scenes(folder: Path, scenes: Iterable[Scene]) -> dict[str, object]:
    """Write a store; the manifest is written last and by rename, so a folder with a manifest is whole.

    Returns: the manifest: counts of images and masks per source.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images: list[tuple[int, int, int]] = []
    masks: list[tuple[int, int, int, int, int, int]] = []
    coarse: list[tuple[int, int, int, int, int, int]] = []
    names: list[str] = []
    sources: list[str] = []
    groups: list[str] = []
    image_at = mask_at = 0
    with open(folder / "images.bin", "wb") as image_file, open(folder / "masks.bin", "wb") as mask_file:
        for scene in scenes:
            for number, (x, y, crop) in enumerate(scene.masks):
                masks.append((len(images), x, y, crop.shape[1], crop.shape[0], mask_at))
                mask_file.write(np.ascontiguousarray(crop).tobytes())
                mask_at += crop.size
                if number in scene.coarse:
                    x, y, crop = scene.coarse[number]
                    coarse.append((len(masks) - 1, x, y, crop.shape[1], crop.shape[0], mask_at))
                    mask_file.write(np.ascontiguousarray(crop).tobytes())
                    mask_at += crop.size
            images.append((scene.image.shape[0], scene.image.shape[1], image_at))
            image_file.write(np.ascontiguousarray(scene.image).tobytes())
            image_at += scene.image.size
            names.append(scene.name)
            sources.append(scene.source)
            groups.append(scene.group or scene.name)
    np.savez(
        folder / "index.npz",
        images=np.array(images, np.int64).reshape(-1, 3),
        masks=np.array(masks, np.int64).reshape(-1, 6),
        coarse=np.array(coarse, np.int64).reshape(-1, 6),
        names=np.array(names),
        sources=np.array(sources),
        groups=np.array(groups),
    )
    of_source: dict[str, set[str]] = {source: set() for source in sorted(set(sources))}
    for source, group in zip(sources, groups, strict=True):
        of_source[source].add(group)
    manifest: dict[str, object] = {
        "format": FORMAT,
        "images": len(images),
        "masks": len(masks),
        "real_coarse_masks": len(coarse),
        "sources": {source: sources.count(source) for source in of_source},
        "groups": {source: len(found) for source, found in of_source.items()},
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
        if self.manifest.get("format") != FORMAT:
            raise FormatError(
                str(folder),
                expected=f"a scene store of format {FORMAT}",
                got=f"format {self.manifest.get('format')}",
                fix="build it again with `bpr-train scenes`",
            )
        index = np.load(folder / "index.npz")
        self.images, self.masks = index["images"], index["masks"]
        self.names, self.sources, self.groups = index["names"], index["sources"], index["groups"]
        self._coarse = {int(row[0]): row for row in index["coarse"]}
        self._first = np.searchsorted(self.masks[:, 0], np.arange(len(self.images) + 1))
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

    def coarse(self, index: int) -> Placed | None:
        """A real network's mask of a mask: left, top (px) and the crop (h, w) uint8 of 0 to 255; None without one."""
        if index not in self._coarse:
            return None
        x, y, width, height, at = (int(v) for v in self._coarse[index][1:])
        return x, y, np.asarray(self._crops[at : at + width * height]).reshape(height, width)

    def beside(self, index: int) -> range:
        """Indices of all masks of a mask's image."""
        image = int(self.masks[index, 0])
        return range(int(self._first[image]), int(self._first[image + 1]))

    def masks_of(self, source: str, min_area_px: int = 64) -> NDArray[np.int64]:
        """Indices of the masks of one source."""
        of_source = self.sources[self.masks[:, 0]] == source
        return np.flatnonzero(of_source & (self.masks[:, 3] * self.masks[:, 4] >= min_area_px))

    def shares(self, masks: NDArray[np.int64]) -> NDArray[np.float64]:
        """How often each of the masks of one source is drawn, summing to 1.

        Alike, unless the source has groups of several images (videos): then each group alike.
        """
        images = self.masks[masks, 0]
        groups = self.groups[images]
        if len(np.unique(groups)) == len(np.unique(images)):
            return np.full(len(masks), 1.0 / max(len(masks), 1))
        _, which, counts = np.unique(groups, return_inverse=True, return_counts=True)
        return np.asarray(1.0 / (len(counts) * counts[which]), np.float64)
