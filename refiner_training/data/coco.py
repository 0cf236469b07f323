"""COCO and LVIS files of ground truth and of results, checked entry by entry before any long work.

Masks stay as they are in the file until someone asks for one: a data set of 36,000 instances is read in a
second and the masks of an image live only while that image is worked on.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from bpr_service.errors import FormatError
from bpr_service.formats.records.result_parts import is_parts
from bpr_service.formats.records.result_parts import read_results as read_parts
from bpr_service.storage import beneath

if TYPE_CHECKING:
    from bpr_service.masks.mask import Mask

ImageId = int | str


@dataclass(frozen=True, slots=True)
class CocoDataset:
    """Images, categories and annotations of one file; all ids that annotations name are known to exist."""

    path: Path
    images: dict[ImageId, dict[str, Any]]  # by id, ids ascending
    categories: dict[int, str]  # name by id
    annotations: list[dict[str, Any]]
    lvis: bool  # has neg_category_ids, so that only verified categories of an image count
    category_records: dict[int, dict[str, Any]] = field(default_factory=dict)  # as the file has them, by id

    def size(self, image_id: ImageId) -> tuple[int, int]:
        """Give height and width of an image, px."""
        image = self.images[image_id]
        return int(image["height"]), int(image["width"])

    def file_name(self, image_id: ImageId) -> str:
        """Give the image's file name; LVIS has it as the end of ``coco_url``."""
        image = self.images[image_id]
        name = image.get("file_name") or PurePosixPath(str(image.get("coco_url", ""))).name
        return str(name)

    def mask(self, entry: dict[str, Any]) -> Mask:
        """Decode the mask of an annotation or result of this data set.

        Raises:
            MaskError: runs that do not add up, polygons that are none, a size that is not the image's.
        """
        from bpr_service.masks.mask import as_mask

        return as_mask(entry["segmentation"], *self.size(entry["image_id"]))


def read_json(path: Path | str) -> Any:
    """Read a JSON file, or say in a FormatError where it breaks off."""
    try:
        with open(path, "rb", opener=beneath.opener) as file:
            return json.load(file)
    except OSError as error:
        raise FormatError(
            f"{path}", expected="a readable JSON file", got=error.strerror or str(error), fix="check the path"
        ) from error
    except ValueError as error:
        raise FormatError(
            f"{path}", expected="JSON", got=str(error), fix="write the file again, it may be cut off"
        ) from error


def read_dataset(path: Path | str, *, masks: bool = True) -> CocoDataset:
    """Read and check ground truth in COCO's or LVIS's format.

    With `masks` every annotation must have a segmentation of its image's size; without, they are not read.

    Raises:
        FormatError: names the file, the entry, and what is wrong with it.
    """
    path = Path(path)
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise FormatError(
            f"{path}",
            expected='a COCO data set {"images": [...], "annotations": [...], "categories": [...]}',
            got=f"a {type(data).__name__} without a list of images",
            fix="pass the annotation file, not a results file",
        )
    images = _images(path, data["images"])
    categories = _categories(path, data.get("categories"), required=masks)
    lvis = any("neg_category_ids" in i for i in images.values())
    records = {c["id"]: c for c in data.get("categories") or ()}
    dataset = CocoDataset(path, images, categories, [], lvis, records)
    if masks:
        annotations = data.get("annotations")
        if not isinstance(annotations, list) or not annotations:
            raise FormatError(f"{path}", expected="a list of annotations", got="none", fix="pass the ground truth")
        seen: set[Any] = set()
        for i, annotation in enumerate(annotations):
            where = f"{path}: annotations[{i}]"
            check_entry(where, annotation, dataset)
            if annotation.get("id", i) in seen:
                raise FormatError(
                    where, expected="an id of its own", got=f"id {annotation['id']} again", fix="renumber it"
                )
            seen.add(annotation.get("id", i))
            dataset.annotations.append(annotation)
    return dataset


def read_results(path: Path | str, dataset: CocoDataset) -> list[dict[str, Any]]:
    """Read and check results in COCO's format against the data set they speak of, in their order.

    They may be one JSON, JSON lines or Parquet, or a folder of parts as ``bpr batch --result`` writes it.

    Raises:
        FormatError: not a list, an image or category that the data set has not, another size, no score,
            a ``gt`` key that is no annotation of that image.
    """
    path = Path(path)
    data = _records(path) if is_parts(str(path)) else read_json(path)
    if not isinstance(data, list):
        raise FormatError(
            f"{path}",
            expected="COCO results, a list of {image_id, category_id, segmentation, score}",
            got=f"a {type(data).__name__}",
            fix="pass the predictions, not an annotation file",
        )
    owners = {a.get("id"): a["image_id"] for a in dataset.annotations}
    for i, entry in enumerate(data):
        where = f"{path}: entry {i}"
        check_entry(where, entry, dataset)
        if "gt" in entry and owners.get(entry["gt"]) != entry["image_id"]:
            raise FormatError(
                where,
                expected=f"as gt the id of an annotation of image {entry['image_id']!r} in {dataset.path}",
                got=repr(entry["gt"]),
                fix="leave the key gt out to match by IoU",
            )
        value = entry.get("score")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise FormatError(where, expected="a number as score", got=repr(value), fix="give every result a score")
    return data


def _records(path: Path) -> list[Any]:
    try:
        return [json.loads(record) for record in read_parts(str(path))]
    except json.JSONDecodeError as error:
        raise FormatError(f"{path}", expected="a JSON record a line", got=str(error), fix="check the file") from None


def check_entry(where: str, entry: Any, dataset: CocoDataset) -> None:
    """Check that an annotation or result names a known image and category and has a mask of that size."""
    if not isinstance(entry, dict):
        raise FormatError(where, expected="an object", got=type(entry).__name__, fix="see COCO's format")
    for key, known, what in (
        ("image_id", dataset.images, "image"),
        ("category_id", dataset.categories, "category"),
    ):
        if not isinstance(entry.get(key), int | str) or entry[key] not in known:
            raise FormatError(
                where,
                expected=f"the {key} of one of the {len(known)} {what} ids in {dataset.path}",
                got=repr(entry.get(key)),
                fix="the two files must be of the same data set and split",
            )
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, dict) and "counts" in segmentation and "size" in segmentation:
        if list(segmentation["size"]) != list(dataset.size(entry["image_id"])):
            raise FormatError(
                f"{where} (image_id {entry['image_id']!r})",
                expected=f"a mask of the image's size {list(dataset.size(entry['image_id']))} (height, width)",
                got=f"{segmentation['size']}",
                fix="resize the predictions to the image; COCO's size is [height, width]",
            )
    elif not (isinstance(segmentation, list) and segmentation):
        raise FormatError(
            where,
            expected="a segmentation: RLE {size, counts} or a list of polygons",
            got=repr(segmentation)[:60],
            fix="boxes alone cannot be measured or refined",
        )


def _images(path: Path, records: list[Any]) -> dict[ImageId, dict[str, Any]]:
    images: dict[ImageId, dict[str, Any]] = {}
    for i, image in enumerate(records):
        sizes = [image.get(k) for k in ("height", "width")] if isinstance(image, dict) else []
        if not sizes or "id" not in image or not all(isinstance(s, int) and s > 0 for s in sizes):
            raise FormatError(
                f"{path}: images[{i}]",
                expected="{id, file_name, height, width}, height and width in pixels",
                got=repr(image)[:80],
                fix="add what is missing",
            )
        if image["id"] in images:
            raise FormatError(
                f"{path}: images[{i}]", expected="an id of its own", got=f"id {image['id']!r} again",
                fix="remove the duplicate",
            )  # fmt: skip
        images[image["id"]] = image
    if not images:
        raise FormatError(f"{path}", expected="at least one image", got="none", fix="check the split")
    numbers = all(isinstance(i, int) for i in images)
    return {i: images[i] for i in sorted(images, key=(lambda i: i) if numbers else str)}


def _categories(path: Path, records: Any, required: bool) -> dict[int, str]:
    if not isinstance(records, list) or not all(isinstance(c, dict) and "id" in c for c in records):
        if not required and records is None:
            return {}
        raise FormatError(f"{path}", expected='"categories": [{id, name}, ...]', got=repr(records)[:60], fix="add them")
    return {c["id"]: str(c.get("name", c["id"])) for c in records}
