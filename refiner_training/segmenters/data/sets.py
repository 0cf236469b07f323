"""Training data of segmenters: COCO-style instances, and label PNGs.

Letters: n instances of an image, H and W its height and width in pixels.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from bpr_service.errors import ConfigError, FormatError
from bpr_service.masks.images import read_image
from bpr_service.masks.label_maps import read_label_map
from bpr_service.masks.mask import as_mask
from refiner_training.segmenters.base import Target
from refiner_training.segmenters.config import InstanceData, SemanticData
from refiner_training.segmenters.data.augment import Sample, augmented, scale_crop_flip

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class ClassMap:
    """What a model's labels mean: label i + 1 (instances) or i (semantic) is ``names[i]`` and category ``ids[i]``."""

    names: tuple[str, ...]
    ids: tuple[int, ...]

    def labels(self) -> dict[int, int]:
        """Category id -> label, from 1."""
        return {category: index + 1 for index, category in enumerate(self.ids)}


def read_json(path: Path) -> Any:
    """A JSON file; :class:`FormatError` when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise FormatError(str(path), expected="a JSON file", got=str(error.strerror), fix="check the path") from None
    except ValueError as error:
        raise FormatError(str(path), expected="JSON", got=str(error), fix="write the file again") from None


def class_map(categories: Sequence[Mapping[str, Any]], data: InstanceData) -> ClassMap:
    """The classes a configuration makes of a file's categories.

    Raises:
        ConfigError: a name that the file does not have, or another number than ``data.num_classes``.
    """
    ordered = sorted(categories, key=lambda category: int(category["id"]))
    if data.classes == "agnostic":
        chosen = ClassMap(("object",), (1,))
    else:
        names = {str(category["name"]): int(category["id"]) for category in ordered}
        wanted = tuple(names) if data.classes == "all" else data.classes
        missing = [name for name in wanted if name not in names]
        if missing:
            raise ConfigError(
                "data.classes names a category that the annotations do not have",
                expected=f"names among {', '.join(names)}"[:300],
                got=repr(missing[0]),
                fix="correct the name",
            )
        chosen = ClassMap(tuple(wanted), tuple(names[name] for name in wanted))
    if len(chosen.ids) != data.num_classes:
        raise ConfigError(
            "data.num_classes differs from the data",
            expected=f"{len(chosen.ids)} (the classes of the annotation file)",
            got=str(data.num_classes),
            fix=f"set data.num_classes to {len(chosen.ids)}",
        )
    return chosen


class InstanceSet(Dataset[Sample]):
    """Images with instances; an item is addressed by (index, position in the stream).

    Crowd regions, boxes of no area and masks of no pixel are left out, an image without annotations stays and has
    no instances.

    Raises:
        FormatError: no COCO file, an annotation of a category or an image that the file does not list.
        ConfigError: classes differ from the configuration.
    """

    def __init__(self, images: Path, annotations: Path, data: InstanceData, *, seed: int = 0, augment: bool = True):
        content = read_json(annotations)
        lists = ("images", "annotations", "categories")
        if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
            raise FormatError(
                str(annotations),
                expected="an object with images, annotations and categories",
                got=type(content).__name__ if not isinstance(content, dict) else f"keys {', '.join(content)}"[:200],
                fix="write it as COCO does",
            )
        self.folder, self.data, self.seed, self.augment = images, data, seed, augment
        self.classes = class_map(content["categories"], data)
        self.images: list[dict[str, Any]] = content["images"]
        if not self.images:
            raise FormatError(str(annotations), expected="one image or more", got="none", fix="check the file")
        self._known = {int(category["id"]) for category in content["categories"]}
        self.instances: dict[int, list[dict[str, Any]]] = {int(image["id"]): [] for image in self.images}
        for position, annotation in enumerate(content["annotations"]):
            self._add(annotation, f"{annotations}: annotation {position} (id {annotation.get('id')})")

    def _add(self, annotation: dict[str, Any], where: str) -> None:
        category, image = annotation.get("category_id"), annotation.get("image_id")
        if category not in self._known:
            known = ", ".join(map(str, sorted(self._known)))[:200]
            fix = "add the category or correct the annotation"
            raise FormatError(where, expected=f"category_id among {known}", got=repr(category), fix=fix)
        if image not in self.instances:
            fix = "add the image or drop the annotation"
            raise FormatError(where, expected="image_id of a listed image", got=repr(image), fix=fix)
        if annotation.get("segmentation") is None:
            fix = "add the mask or drop the annotation"
            raise FormatError(where, expected="a segmentation: RLE or polygons", got="none", fix=fix)
        agnostic = self.data.classes == "agnostic"
        if not annotation.get("iscrowd") and (agnostic or category in self.classes.ids):
            self.instances[int(image)].append(annotation)

    def __len__(self) -> int:
        return len(self.images)

    def file(self, index: int) -> Path:
        """The image's file; LVIS gives a URL whose last two parts are the split and the name."""
        record = self.images[index]
        name = record.get("file_name") or "/".join(str(record.get("coco_url", "")).split("/")[-2:])
        return self.folder / name

    def target(self, index: int) -> Target:
        """``boxes`` (n, 4), ``labels`` (n,) and ``masks`` (n, H, W) uint8 of one image."""
        record = self.images[index]
        height, width = int(record["height"]), int(record["width"])
        labels = self.classes.labels()
        found = []
        for annotation in self.instances[int(record["id"])]:
            mask = as_mask(annotation["segmentation"], height, width)
            x0, y0, x1, y1 = mask.box
            if x1 > x0 and y1 > y0:
                label = 1 if self.data.classes == "agnostic" else labels[int(annotation["category_id"])]
                found.append(((x0, y0, x1, y1), label, mask.to_array()))
        frames = np.stack([mask for *_, mask in found]) if found else np.zeros((0, height, width), np.uint8)
        return {
            "boxes": torch.tensor([box for box, *_ in found], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([label for _, label, _ in found], dtype=torch.int64),
            "masks": torch.from_numpy(frames),
        }

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        index, position = item
        image = to_tensor(read_image(self.file(index)))
        target = self.target(index)
        if tuple(image.shape[-2:]) != tuple(target["masks"].shape[-2:]):
            raise FormatError(
                f"{self.file(index)}: the image has another size than its annotations",
                expected="{} x {}".format(*target["masks"].shape[-2:]),
                got="{} x {}".format(*image.shape[-2:]),
                fix="correct width and height of the image's record",
            )
        rng = np.random.default_rng((self.seed, position))
        return augmented(image, target, self.data, rng) if self.augment else (image, target)

    def repeats(self) -> NDArray[np.float64]:
        """How often an epoch shows each image, on average: 1, or more where it has a category that few images have.

        r(i) = max over its categories c of max(1, sqrt(t / f(c))), f(c) the share of images with c, t the
        configuration's ``repeat_threshold`` (Gupta, Dollar, Girshick, *LVIS*, CVPR 2019, section 5.2).
        """
        seen = [{int(each["category_id"]) for each in self.instances[int(image["id"])]} for image in self.images]
        counts = Counter(category for categories in seen for category in categories)
        wanted = self.data.repeat_threshold * len(self.images)
        return np.array([max((max(1, wanted / counts[c]) for c in own), default=1) ** 0.5 for own in seen])


class LabelSet(Dataset[Sample]):
    """Images with label maps, matched by their stems; items as in :class:`InstanceSet`.

    Raises:
        FormatError: an image without labels, or labels of another size or with a class that is too high.
    """

    def __init__(self, images: Path, labels: Path, data: SemanticData, *, seed: int = 0, augment: bool = True):
        self.data, self.seed, self.augment = data, seed, augment
        self.classes = ClassMap(tuple(map(str, range(data.num_classes))), tuple(range(data.num_classes)))
        self.files = image_files(images, data.image_suffix)
        by_stem = {file.stem: file for file in sorted(labels.rglob(f"*{data.label_suffix}.png"))}
        self.labels = []
        for file in self.files:
            stem = file.stem.removesuffix(data.image_suffix) + data.label_suffix
            if stem not in by_stem:
                fix = "add it, or set data.label_suffix"
                raise FormatError(str(file), expected=f"labels {stem}.png in {labels}", got="none", fix=fix)
            self.labels.append(by_stem[stem])

    def __len__(self) -> int:
        return len(self.files)

    def repeats(self) -> NDArray[np.float64]:
        """Every image once an epoch."""
        return np.ones(len(self))

    def label_map(self, index: int) -> NDArray[np.uint8]:
        """(H, W) uint8 labels of one image, checked."""
        path = self.labels[index]
        labels = read_label_map(path)
        wrong = labels[(labels >= self.data.num_classes) & (labels != self.data.ignore_label)]
        if wrong.size:
            raise FormatError(
                str(path),
                expected=f"labels from 0 to {self.data.num_classes - 1}, or {self.data.ignore_label}",
                got=str(int(wrong[0])),
                fix="set data.num_classes to the number of classes of the data",
            )
        return labels.astype(np.uint8)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        index, position = item
        image, labels = read_image(self.files[index]), self.label_map(index)
        if image.shape[:2] != labels.shape:
            got, fix = f"{labels.shape[0]} x {labels.shape[1]}", "scale the labels with nearest-neighbour"
            expected = f"{image.shape[0]} x {image.shape[1]}, the image's size"
            raise FormatError(str(self.labels[index]), expected=expected, got=got, fix=fix)
        if self.augment:
            rng = np.random.default_rng((self.seed, position))
            image, labels = scale_crop_flip(image, labels, self.data, rng)
        return to_tensor(image), {"labels": torch.from_numpy(labels.astype(np.int64))}


def to_tensor(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255


def image_files(folder: Path, suffix: str = "") -> list[Path]:
    """Image files of a folder, its folders included, in order of name."""
    if not folder.is_dir():
        raise FormatError(str(folder), expected="a folder of images", got="no folder", fix="check the path")
    names = (p for p in folder.rglob(f"*{suffix}.*") if p.suffix.lower() in IMAGE_SUFFIXES)
    files = sorted(names)
    if not files:
        fix = f"put images ({', '.join(IMAGE_SUFFIXES)}) there"
        raise FormatError(str(folder), expected="one image or more", got="none", fix=fix)
    return files


def open_data(data: InstanceData | SemanticData, split: str, *, seed: int = 0, augment: bool) -> InstanceSet | LabelSet:
    """The training or validation set that a configuration names."""
    images = data.train_images if split == "train" else data.val_images
    if isinstance(data, InstanceData):
        truth = data.train_annotations if split == "train" else data.val_annotations
    else:
        truth = data.train_labels if split == "train" else data.val_labels
    if images is None or truth is None:
        raise ConfigError(f"no {split} split", expected="its images and its truth in data", got="none", fix="add them")
    if isinstance(data, InstanceData):
        return InstanceSet(images, truth, data, seed=seed, augment=augment)
    return LabelSet(images, truth, data, seed=seed, augment=augment)
