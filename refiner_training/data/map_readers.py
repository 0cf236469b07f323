"""Readers of masks that fill the image: folders of label PNGs, and COCO panoptic."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bpr_service.errors import FormatError
from bpr_service.masks.mask import Mask, read_label_map
from refiner_training.data.label_masks import label_masks, masks_of
from refiner_training.data.label_pngs import match_label_pngs, png_size
from refiner_training.data.panoptic import read_panoptic, read_segments
from refiner_training.data.readers import Pair, PairReader, check_images, find_pictures, match, without_coarse
from refiner_training.metrics.boundary import mask_iou


class LabelPairs(PairReader):
    """Folders of label PNGs of the same names: each class of an image is one pair; ignored pixels are void."""

    kind = "labels"

    def __init__(
        self,
        images: Path | str,
        labels: Path | str,
        predictions: Path | str | None = None,
        *,
        ignore_label: int = 255,
    ) -> None:
        self.ignore_label = ignore_label
        self.folders = [Path(p) for p in (labels, predictions) if p is not None]
        self.files = match_label_pngs(self.folders)
        self.names = [str(Path(f).with_suffix("")) for f in self.files]
        self.images = find_pictures(images, self.names, self.folders[0])
        check_images(self.images, [png_size(self.folders[0] / f) for f in self.files], self.folders[0])

    def _pairs(self, index: int, height: int, width: int) -> tuple[list[Pair], Mask | None]:
        maps = [read_label_map(folder / self.files[index]) for folder in self.folders]
        labels = [int(c) for c in np.unique(maps[0]) if c != self.ignore_label]
        truths = label_masks(maps[0], labels)
        void = Mask.from_array(maps[0] == self.ignore_label)
        keys = [f"class {c}" for c in labels]
        if len(maps) == 1:
            return without_coarse(list(zip(labels, keys, truths, strict=True))), void
        pairs = [
            Pair(coarse, truth, c, key, mask_iou(coarse, truth))
            for c, key, coarse, truth in zip(labels, keys, label_masks(maps[1], labels), truths, strict=True)
            if not coarse.is_empty
        ]
        return pairs, void


class PanopticPairs(PairReader):
    """COCO panoptic: a predicted segment pairs with the true one of its category that it overlaps most, over 0.5."""

    kind = "panoptic"

    def __init__(
        self,
        images: Path | str,
        dataset: Path | str,
        panoptic_dir: Path | str,
        predictions: Path | str | None = None,
        predictions_dir: Path | str | None = None,
    ) -> None:
        if (predictions is None) != (predictions_dir is None):
            raise FormatError(
                f"{predictions or predictions_dir}",
                expected="the predictions' JSON and their folder",
                got="one of the two",
                fix="pass both",
            )
        truth = read_panoptic(dataset, panoptic_dir)
        self.files = [truth]
        if predictions is not None and predictions_dir is not None:
            self.files.append(read_panoptic(predictions, predictions_dir, truth))
        self.ids = list(truth.annotations)
        pngs = [truth.png(i) for i in self.ids]
        named = all(truth.images.get(i) for i in self.ids)
        stems = [
            str(Path(truth.images[i] if named else p.name).with_suffix("")) for i, p in zip(self.ids, pngs, strict=True)
        ]
        self.images = find_pictures(images, stems, truth.path)
        self.names = [p.name for p in self.images]
        check_images(self.images, [png_size(p) for p in pngs], truth.path)

    def _pairs(self, index: int, height: int, width: int) -> tuple[list[Pair], Mask | None]:
        image_id = self.ids[index]
        sides = []
        void: Mask | None = None
        for file in self.files:
            positions = read_segments(file, image_id)
            void = void or Mask.from_array(positions < 0)
            info = file.annotations[image_id]["segments_info"]
            masks = masks_of(positions, len(info))
            sides.append(
                [
                    (s["category_id"], str(s["id"]), m)
                    for s, m in zip(info, masks, strict=True)
                    if not s.get("iscrowd", 0)
                ]
            )
        return (match(sides[1], sides[0]) if len(sides) == 2 else without_coarse(sides[0])), void
