"""Readers of instance masks: COCO and LVIS, Cityscapes, region maps."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bpr_service import storage
from bpr_service.errors import FormatError
from bpr_service.masks.mask import Mask, read_label_map
from refiner_training.data.coco import ImageId, read_dataset, read_results
from refiner_training.data.label_masks import label_masks
from refiner_training.data.label_pngs import png_size
from refiner_training.data.readers import (
    Pair,
    PairReader,
    check_images,
    find_pictures,
    match,
    without_coarse,
)
from refiner_training.metrics.boundary import mask_iou

CITYSCAPES_THINGS = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}


class CocoPairs(PairReader):
    """COCO or LVIS annotations, with COCO results where there are any.

    A result belongs to the annotation that its key ``gt`` names, else to the one of its category it overlaps
    most, over IoU 0.5. Crowds are left out.
    """

    kind = "coco"

    def __init__(self, images: Path | str, dataset: Path | str, predictions: Path | str | None = None) -> None:
        self.dataset = read_dataset(dataset)
        self.results = _results(predictions, self.dataset) if predictions is not None else None
        self.truths: dict[ImageId, list[int]] = defaultdict(list)
        for i, annotation in enumerate(self.dataset.annotations):
            if not annotation.get("iscrowd", 0):
                self.truths[annotation["image_id"]].append(i)
        self.found: dict[ImageId, list[int]] = defaultdict(list)
        for i, result in enumerate(self.results or ()):
            self.found[result["image_id"]].append(i)
        wanted = self.truths if self.results is None else self.found
        self.ids = [i for i in self.dataset.images if i in wanted and i in self.truths]
        self.names = [self.dataset.file_name(i) for i in self.ids]
        self.images = [Path(storage.join_inside(str(images), name)) for name in self.names]
        check_images(self.images, [self.dataset.size(i) for i in self.ids], self.dataset.path)

    def _pairs(self, index: int, height: int, width: int) -> tuple[list[Pair], Mask | None]:
        image_id, annotations = self.ids[index], self.dataset.annotations
        truths = [
            (annotations[i]["category_id"], str(annotations[i].get("id", i)), self.dataset.mask(annotations[i]))
            for i in self.truths[image_id]
        ]
        if self.results is None:
            return without_coarse(truths), None
        by_id = {key: mask for _, key, mask in truths}
        pairs, unnamed = [], []
        for i in self.found[image_id]:
            result = self.results[i]
            coarse = self.dataset.mask(result)
            if "gt" not in result:
                unnamed.append((result["category_id"], str(i), coarse))
            elif (truth := by_id.get(str(result["gt"]))) is not None:
                pairs.append(Pair(coarse, truth, result["category_id"], str(i), mask_iou(coarse, truth)))
        return pairs + match(unnamed, truths), None


def _results(predictions: Path | str, dataset: Any) -> list[dict[str, Any]]:
    results = read_results(predictions, dataset)
    if not results:
        raise FormatError(
            f"{predictions}", expected="at least one result", got="an empty list", fix="check the predictions"
        )
    return results


class CityscapesPairs(PairReader):
    """Cityscapes: ``leftImg8bit`` images, ``gtFine`` instance ids, and ``*_pred.txt`` where there are any.

    Only the eight classes with instances take part. Ids below 1000 are groups or stuff: void for none.
    """

    kind = "cityscapes"

    def __init__(self, images: Path | str, truth: Path | str, predictions: Path | str | None = None) -> None:
        ending = "_gtFine_instanceIds.png"
        self.truth = Path(truth)
        self.ids = sorted(self.truth.rglob(f"*{ending}"))
        if not self.ids:
            raise FormatError(
                f"{truth}", expected=f"files *{ending}", got="none", fix="pass the gtFine folder of a split"
            )
        self.names = [str(p.relative_to(self.truth))[: -len(ending)] for p in self.ids]
        self.images = find_pictures(images, [f"{name}_leftImg8bit" for name in self.names], self.truth)
        check_images(self.images, [png_size(p) for p in self.ids], self.truth)
        self.lines = None if predictions is None else self._lines(Path(predictions))

    def _lines(self, folder: Path) -> list[list[tuple[int, Path]]]:
        """Read the ``*_pred.txt`` of all images: label id and PNG of each instance."""
        texts = {p.name: p for p in sorted(folder.rglob("*.txt"))}
        lines: list[list[tuple[int, Path]]] = []
        for name, instance_ids in zip(self.names, self.ids, strict=True):
            stem = Path(name).name
            text = next((texts[t] for t in (f"{stem}_leftImg8bit_pred.txt", f"{stem}_pred.txt") if t in texts), None)
            if text is None:
                raise FormatError(
                    f"{folder}", expected=f"{stem}_pred.txt", got="no such file", fix="predict every image"
                )
            size = png_size(instance_ids)
            lines.append(
                [_line(text, n, line, size) for n, line in enumerate(text.read_text().splitlines(), 1) if line]
            )
        if not any(lines):
            raise FormatError(f"{folder}", expected="at least one instance", got="none", fix="check the predictions")
        return lines

    def _pairs(self, index: int, height: int, width: int) -> tuple[list[Pair], Mask | None]:
        ids = read_label_map(self.ids[index])
        found = [int(i) for i in np.unique(ids) if int(i) // 1000 in CITYSCAPES_THINGS]
        masks = label_masks(ids, found)
        truths = [(i // 1000, str(i), mask) for i, mask in zip(found, masks, strict=True)]
        if self.lines is None:
            return without_coarse(truths), None
        coarse = [(label, png.name, Mask.from_png(png)) for label, png in self.lines[index]]
        return match(coarse, truths), None


def _line(text: Path, number: int, line: str, size: tuple[int, int]) -> tuple[int, Path]:
    words = line.split()
    where = f"{text}: line {number}"
    if len(words) != 3 or not words[1].isdigit():
        raise FormatError(
            where, expected="relative/path.png labelId confidence", got=repr(line), fix="paths hold no spaces"
        )
    label, png = int(words[1]), text.parent / words[0]
    if label not in CITYSCAPES_THINGS:
        raise FormatError(
            where,
            expected=f"a label id: {', '.join(f'{i} {n}' for i, n in CITYSCAPES_THINGS.items())}",
            got=words[1],
            fix="train ids are not label ids",
        )
    if png_size(png) != size:
        raise FormatError(
            f"{where}: {png}",
            expected=f"{size[0]} x {size[1]} px (height x width)",
            got=" x ".join(map(str, png_size(png))),
            fix="resize the mask to the image, with nearest-neighbour",
        )
    return label, png


class RegionPairs(PairReader):
    """Region maps, the kind of BSDS500: ``STEM_K.png`` holds annotator K's 16-bit region ids of ``STEM``.

    Regions of `min_area_px` or more that cover at most `max_share` of the image are instances of one category.
    """

    kind = "regions"

    def __init__(
        self,
        images: Path | str,
        regions: Path | str,
        *,
        annotators: Literal["first", "all"] = "first",
        min_area_px: int = 200,
        max_share: float = 0.6,
    ) -> None:
        self.min_area_px, self.max_share = min_area_px, max_share
        folder = Path(regions)
        maps: dict[str, list[tuple[int, Path]]] = defaultdict(list)
        for path in sorted(folder.glob("*_*.png")):
            stem, _, annotator = path.stem.rpartition("_")
            if annotator.isdigit():
                maps[stem].append((int(annotator), path))
        if not maps:
            raise FormatError(
                f"{folder}", expected="region maps STEM_K.png", got="none", fix="check the folder of regions"
            )
        self.names = sorted(maps)
        chosen = slice(1) if annotators == "first" else slice(None)
        self.maps = [[path for _, path in sorted(maps[name])[chosen]] for name in self.names]
        self.images = find_pictures(images, self.names, folder)
        check_images(self.images, [png_size(paths[0]) for paths in self.maps], folder)

    def _pairs(self, index: int, height: int, width: int) -> tuple[list[Pair], Mask | None]:
        truths = []
        for path in self.maps[index]:
            regions = read_label_map(path)
            ids, areas = np.unique(regions, return_counts=True)
            wanted = (areas >= self.min_area_px) & (areas <= self.max_share * regions.size)
            found = [int(i) for i in ids[wanted]]
            masks = label_masks(regions, found)
            truths += [(1, f"{path.stem}:{i}", mask) for i, mask in zip(found, masks, strict=True)]
        return without_coarse(truths), None
