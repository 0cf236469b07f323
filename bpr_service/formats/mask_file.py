"""The masks of one image in one file: PNG, or JSON with RLE or polygons; written back as they came.

JSON is a list of masks, one mask, or an object that holds such a list under ``masks``, ``instances``, ``annotations``
or ``predictions``. A mask is COCO RLE, polygons, or an object with ``segmentation``; all its other keys are kept.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpr_service.errors import BprError, FormatError
from bpr_service.masks.label_maps import write_atomic
from bpr_service.masks.mask import Mask, as_mask

LISTS = ("masks", "instances", "annotations", "predictions")


@dataclass(frozen=True)
class MaskFile:
    """Masks of one image, and all that stood around them."""

    path: Path
    masks: list[Mask]
    document: Any
    """The JSON document; None for a PNG."""

    def write(self, out: Path, refined: list[Mask]) -> None:
        """Write the refined masks in the form the coarse ones had, whole or not at all."""
        if self.document is None:
            write_atomic(out, refined[0].to_png())
            return
        document = copy.deepcopy(self.document)
        for entry, mask in zip(_entries(document, self.path), refined, strict=True):
            _replace(entry, mask)
        write_atomic(out, (json.dumps(document) + "\n").encode())


def read_mask_file(path: Path, height: int, width: int, *, max_pixels: int) -> MaskFile:
    """Read the coarse masks of an image of ``height`` x ``width`` px.

    Raises:
        FormatError: no file, no PNG or JSON, or JSON of another form.
        MaskError: a mask that cannot be used; the message has its number.
    """
    if not path.is_file():
        raise FormatError(str(path), expected="a mask file", got="none", fix="check the path")
    data = path.read_bytes()
    if data[:8] == b"\x89PNG\r\n\x1a\n" or path.suffix.lower() == ".png":
        return MaskFile(path, [_mask(data, str(path), height, width, max_pixels)], None)
    try:
        document = json.loads(data)
    except ValueError as error:
        raise FormatError(str(path), expected="a PNG, or JSON", got=str(error), fix="mend the file") from None
    masks = [
        _mask(_segmentation(entry), f"{path}: mask {number}", height, width, max_pixels)
        for number, entry in enumerate(_entries(document, path))
    ]
    return MaskFile(path, masks, document)


def _mask(value: Any, where: str, height: int, width: int, max_pixels: int) -> Mask:
    try:
        return as_mask(value, height, width, max_pixels=max_pixels)
    except BprError as error:
        error.args = (f"{where}: {error}",)
        raise


def _entries(document: Any, path: Path) -> list[Any]:
    if isinstance(document, dict):
        for key in LISTS:
            if isinstance(document.get(key), list):
                document = document[key]
                break
        else:
            document = [document]
    if not isinstance(document, list) or not all(isinstance(e, dict) for e in document):
        raise FormatError(
            str(path),
            expected=f"a list of masks, or an object with one under {', '.join(LISTS)}",
            got=type(document).__name__,
            fix="write each mask as {'segmentation': RLE or polygons}",
        )
    return document


def _segmentation(entry: dict[str, Any]) -> Any:
    return entry.get("segmentation", entry)


def _replace(entry: dict[str, Any], mask: Mask) -> None:
    """Put a mask in place of an entry's, in its encoding; box and area follow where they stood."""
    given = _segmentation(entry)
    if isinstance(given, list):
        new: Any = mask.to_polygons()
    else:
        new = mask.to_rle(compressed=not isinstance(given.get("counts"), list))
    if "segmentation" in entry:
        entry["segmentation"] = new
    else:
        entry.update(new)
    if "bbox" in entry:
        entry["bbox"] = mask.bbox
    if "area" in entry:
        entry["area"] = mask.area
