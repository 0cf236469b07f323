"""The images to predict: of a data set's list, or of a folder without annotations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpr_service.errors import FormatError
from refiner_training.segmenters.data.sets import image_files, read_json


@dataclass(frozen=True)
class ImageRecord:
    """An image to predict: its id in the results, its file, and its name in the data set."""

    id: int
    path: Path
    name: str


def list_images(images: Path, dataset: Path | None) -> list[ImageRecord]:
    """Images of a COCO file's list, or of a folder (then with ids 1, 2, ... in order of name).

    Raises:
        FormatError: the file lists no images, or one that is not in the folder.
    """
    if dataset is None:
        files = image_files(images)
        return [ImageRecord(i + 1, file, str(file.relative_to(images))) for i, file in enumerate(files)]
    content = read_json(dataset)
    listed = content.get("images") if isinstance(content, dict) else None
    if not listed:
        raise FormatError(str(dataset), expected="an object with images", got="none", fix="give a COCO file")
    records = []
    for record in listed:
        name = str(record.get("file_name") or "/".join(str(record.get("coco_url", "")).split("/")[-2:]))
        if not (images / name).is_file():
            fix = "check the folder of images"
            raise FormatError(
                f"{dataset}: image {record.get('id')}", expected=f"{name} in {images}", got="none", fix=fix
            )
        records.append(ImageRecord(int(record["id"]), images / name, name))
    return records


def write_image_list(path: Path, records: Sequence[ImageRecord], record: dict[str, Any]) -> None:
    """A COCO file of the images alone, which ``bpr batch instance --dataset`` takes."""
    from PIL import Image

    images = []
    for each in records:
        with Image.open(each.path) as picture:
            images.append({"id": each.id, "file_name": each.name, "width": picture.width, "height": picture.height})
    pairs = zip(record["class_ids"], record["class_names"], strict=True)
    categories = [{"id": i, "name": name} for i, name in pairs]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
