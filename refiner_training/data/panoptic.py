"""COCO panoptic files, a JSON and its folder of PNGs, checked before any PNG is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service import storage
from bpr_service.errors import FormatError
from bpr_service.masks.mask import read_panoptic_png
from refiner_training.data.coco import ImageId, read_json
from refiner_training.data.label_masks import compact
from refiner_training.data.label_pngs import png_size

VOID = 0  # the id of pixels that belong to no segment


@dataclass(frozen=True, slots=True)
class Category:
    """A category of a panoptic file."""

    name: str
    is_thing: bool


@dataclass(frozen=True, slots=True)
class PanopticFile:
    """One panoptic JSON with its folder; `annotations` by image id, in the file's order."""

    path: Path
    folder: Path
    categories: dict[int, Category]
    annotations: dict[ImageId, dict[str, Any]]
    images: dict[ImageId, str]  # file names of the images themselves, where the file has them

    def png(self, image_id: ImageId) -> Path:
        return Path(storage.join_inside(str(self.folder), str(self.annotations[image_id]["file_name"])))


def read_panoptic(path: Path | str, folder: Path | str, truth: PanopticFile | None = None) -> PanopticFile:
    """Read and check a panoptic JSON; with `truth`, that it is a prediction for all of its images.

    Raises:
        FormatError: a file or PNG that is missing, of another size, of an unknown image or category.
    """
    path, folder = Path(path), Path(folder)
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("annotations"), list):
        raise FormatError(
            f"{path}",
            expected='COCO panoptic {"annotations": [{image_id, file_name, segments_info}]}',
            got=f"a {type(data).__name__} without a list of annotations",
            fix="pass the panoptic JSON",
        )
    if not folder.is_dir():
        raise FormatError(f"{folder}", expected=f"the folder of {path}'s PNGs", got="no folder", fix="check it")
    categories = truth.categories if truth else _categories(path, data.get("categories"))
    annotations: dict[ImageId, dict[str, Any]] = {}
    for i, annotation in enumerate(data["annotations"]):
        where = f"{path}: annotations[{i}]"
        _check(where, annotation, categories)
        image_id = annotation["image_id"]
        if image_id in annotations or (truth is not None and image_id not in truth.annotations):
            raise FormatError(
                where,
                expected="an image id of the ground truth, once",
                got=f"image_id {image_id!r}" + (" again" if image_id in annotations else ""),
                fix="both files must be of the same data set and split",
            )
        annotations[image_id] = annotation
    if not annotations:
        raise FormatError(f"{path}", expected="at least one annotation", got="none", fix="check the split")
    records = data.get("images") or []
    images = {r["id"]: str(r.get("file_name", "")) for r in records if isinstance(r, dict) and "id" in r}
    file = PanopticFile(path, folder, categories, annotations, images)
    _check_pngs(file, truth)
    return file


def read_segments(file: PanopticFile, image_id: ImageId) -> NDArray[np.int32]:
    """Read one PNG as positions in its ``segments_info``, (H, W) int32; void is -1.

    Raises:
        FormatError: the PNG has an id that the JSON has not, or the other way round.
        MaskError: the PNG cannot be decoded.
    """
    ids = read_panoptic_png(file.png(image_id))
    segments = [s["id"] for s in file.annotations[image_id]["segments_info"]]
    positions = compact(ids, segments)
    unknown = (positions < 0) & (ids != VOID)
    missing = np.flatnonzero(np.bincount(positions[positions >= 0], minlength=len(segments)) == 0)
    if unknown.any() or missing.size:
        got = (
            f"id {ids[unknown][0]} in the PNG alone"
            if unknown.any()
            else f"id {segments[missing[0]]} in the JSON alone"
        )
        raise FormatError(
            f"{file.png(image_id)} (image_id {image_id!r})",
            expected=f"the segment ids that {file.path} lists, R + 256 G + 65536 B",
            got=got,
            fix="write PNG and JSON together; mind that OpenCV swaps the channels",
        )
    return positions


def _check(where: str, annotation: Any, categories: dict[int, Category]) -> None:
    segments = annotation.get("segments_info") if isinstance(annotation, dict) else None
    complete = isinstance(segments, list) and all(
        isinstance(s, dict) and isinstance(s.get("id"), int) and s["id"] > VOID for s in segments
    )
    if not complete or "image_id" not in annotation or not annotation.get("file_name"):
        raise FormatError(
            where,
            expected="{image_id, file_name, segments_info: [{id over 0, category_id}]}",
            got=repr(annotation)[:80],
            fix="see COCO's panoptic format",
        )
    for segment in annotation["segments_info"]:
        if segment.get("category_id") not in categories:
            raise FormatError(
                f"{where}, segment {segment['id']}",
                expected="a category_id of the ground truth's categories",
                got=repr(segment.get("category_id")),
                fix="map the model's labels to the data set's category ids",
            )
    ids = [s["id"] for s in annotation["segments_info"]]
    if len(set(ids)) != len(ids):
        raise FormatError(where, expected="segment ids of their own", got="one twice", fix="renumber them")


def _check_pngs(file: PanopticFile, truth: PanopticFile | None) -> None:
    missing = [i for i in (truth.annotations if truth else ()) if i not in file.annotations]
    if missing:
        raise FormatError(
            f"{file.path}",
            expected="an annotation for each image of the ground truth",
            got=f"none for image_id {missing[0]!r} ({len(missing)} missing)",
            fix="predict the missing images",
        )
    for image_id in file.annotations:
        size = png_size(file.png(image_id))
        if truth is not None and size != (wanted := png_size(truth.png(image_id))):
            raise FormatError(
                f"{file.png(image_id)} (image_id {image_id!r})",
                expected=f"the ground truth's size {wanted[0]} x {wanted[1]} (height x width)",
                got=f"{size[0]} x {size[1]}",
                fix="resize the predictions to the image, with nearest-neighbour",
            )


def _categories(path: Path, records: Any) -> dict[int, Category]:
    if not isinstance(records, list) or not all(isinstance(c, dict) and "id" in c for c in records):
        raise FormatError(
            f"{path}", expected='"categories": [{id, name, isthing}]', got=repr(records)[:60], fix="add them"
        )
    return {c["id"]: Category(str(c.get("name", c["id"])), bool(c.get("isthing", 1))) for c in records}
