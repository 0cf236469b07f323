"""The masks of one photograph, wherever they lie: a picture, a text file, or a part of a data set's file."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from bpr_service import storage
from bpr_service.errors import FormatError
from bpr_service.formats import FORMATS, FileOptions, MaskRecords, Paths, PredictionFormat, Unit, open_predictions
from bpr_service.formats.base import Encoded
from bpr_service.formats.images import NameIndex, plain
from bpr_service.masks.arrays import is_array
from bpr_service.masks.images import FIRST_BYTES

PICTURES = (".png", ".bmp", ".tif", ".tiff", ".webp", ".jpg", ".jpeg", ".gif")
PICTURE_FORMATS = {
    "instance": ("instance", "png"),
    "labels": ("instance", "ids"),
    "soft": ("instance", "soft"),
    "semantic": ("semantic", "png"),
}
"""How a picture of masks is read, by what it is said to be."""
ARRAY_FORMATS = {name: PICTURE_FORMATS[name] for name in ("instance", "soft")} | {"semantic": ("semantic", "soft")}
"""How a NumPy file is read."""
_HEAD_BYTES = 1 << 16


NOTHING = Unit(0, "", "the image", [])
"""The unit of an image of which a file has no mask."""


class OneImage:
    """A prediction file, and the unit of it that is of one photograph. The other units pass through as they are."""

    def __init__(self, file: PredictionFormat, unit: Unit, others: list[Unit]) -> None:
        self.file, self.unit, self.others = file, unit, others

    @property
    def categories(self) -> dict[Any, str]:
        """Names of categories by id, where the file has them."""
        records = getattr(self.file, "file", None)
        return records.head.categories if records is not None else {}

    def write(self, out: str, encoded: Encoded) -> None:
        """Write the file with this unit as ``encoded``, whole or not at all."""
        if not self.file.has_records:
            storage.write_bytes(out, encoded.files[self.unit.source])
            return
        records = dict(encoded.records)
        for unit in self.others:
            records.update(self.file.untouched(unit).records)
        self.file.write(out, (records[position] for position in sorted(records)))


def open_one(
    image: Path, masks: Path, task: str, name: str | None, options: FileOptions, image_id: str | None = None
) -> OneImage:
    """The masks of ``image`` in the file ``masks``.

    Args:
        image: the picture's path.
        masks: the file of its masks.
        task: instance, labels (a picture of instance ids), soft (a picture of probabilities) or semantic.
        name: the format of the file; None looks into it.
        options: how files are read.
        image_id: which image of a data set's file it is, where names do not say.

    Raises:
        FormatError: no such file, no format that is known, or it is of several images and none, or more than one,
            is this one; the message says how to choose.
    """
    if not masks.is_file():
        raise FormatError(str(masks), expected="a mask file", got="none", fix="check the path")
    kind = ("semantic" if task == "semantic" else "instance", name) if name else _detect(masks, task)
    paths = Paths(str(image.parent), str(masks), options=options)
    one_file = FORMATS.get((kind[0], str(kind[1])))
    if one_file is not None and not one_file.has_records:
        paths = replace(paths, predictions=str(masks.parent))
        return OneImage(open_predictions(*kind, paths), Unit(0, image.name, masks.name, masks.name), [])
    file = open_predictions(*kind, replace(paths, image=image.name))
    units = list(file.scan())
    chosen = _choose(units, image, masks, image_id, isinstance(file, MaskRecords))
    if chosen is None and file.has_records and _has_none(file, units, image, image_id):
        return OneImage(file, replace(NOTHING, image=image.name), units)
    if chosen is None:
        raise _unknown(units, units, image, masks, image_id)
    mine = replace(chosen, image=image.name, problem=None)
    return OneImage(file, mine, [unit for unit in units if unit is not chosen])


def _has_none(file: PredictionFormat, units: list[Unit], image: Path, image_id: str | None) -> bool:
    """Whether the file knows the image and has no mask of it: it has none at all, or only its list of images does."""
    records = getattr(file, "file", None)
    images = records.head.images if records is not None else {}
    if not images or not units:
        return not units
    if image_id is not None:
        return image_id in map(str, images)
    index = NameIndex([image.name])
    return any(index.find(entry[0]) for entry in images.values() if isinstance(entry, tuple))


def _choose(units: list[Unit], image: Path, masks: Path, image_id: str | None, nameless: bool) -> Unit | None:
    """The unit of ``image``: by its id or name, or the only one of a file that names no image.

    None where there is none; ``FormatError`` where there are several.
    """
    if nameless:
        return units[0]
    if image_id is not None:
        match = [unit for unit in units if unit.name == image_id]
    else:
        index, path = NameIndex([image.name]), plain(str(image.absolute())).split("/")
        match = [unit for unit in units if unit.image and index.find(unit.image)]
        tails = [_common_tail(plain(unit.image).split("/"), path) for unit in match]
        match = [unit for unit, tail in zip(match, tails, strict=True) if tail == max(tails)]
        if len(units) == 1 and not units[0].image:
            match = units
    if len(match) > 1:
        raise _unknown(match, units, image, masks, image_id)
    return match[0] if match else None


def _unknown(match: list[Unit], units: list[Unit], image: Path, masks: Path, image_id: str | None) -> FormatError:
    listed = ", ".join(f"{unit.name} ({unit.image})" if unit.image else unit.name for unit in match[:4])
    return FormatError(
        f"{masks}: which image is {image.name}?",
        expected="one image of that name in the file" if image_id is None else f"an image with id {image_id}",
        got=f"{len(match)} of {len(units)}: {listed}",
        fix="name it with --image-id, or refine all of them with bpr batch instance",
    )


def _common_tail(one: list[str], other: list[str]) -> int:
    """How many parts two paths share from their ends on."""
    same = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        same += 1
    return same


def folder_format(folder: Path, task: str) -> tuple[str, str]:
    """Task and format of a folder of mask files, by their suffixes: pictures, else LabelMe's JSON, else YOLO's text."""
    suffixes = {path.suffix.lower() for path in folder.rglob("*") if path.is_file()}
    if suffixes & {".npy", ".npz"} and not suffixes & {*PICTURES}:
        return _of_arrays(folder, task)
    if task == "instance" and not suffixes & {*PICTURES, ".npy", ".npz"}:
        for suffix, name in ((".json", "labelme"), (".txt", "yolo")):
            if suffix in suffixes:
                return "instance", name
    return PICTURE_FORMATS[task]


def _of_arrays(path: Path, task: str) -> tuple[str, str]:
    if task not in ARRAY_FORMATS:
        raise FormatError(f"{path}: --task {task}", expected="a picture", got="a NumPy file", fix="save it as PNG")
    return ARRAY_FORMATS[task]


def _detect(path: Path, task: str) -> tuple[str, str]:
    """Task and format of a file of masks, by its beginning and its suffix."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    suffix = path.suffix.lower()
    if head.startswith(tuple(chain(*FIRST_BYTES.values()))) or suffix in PICTURES:
        return PICTURE_FORMATS[task]
    if is_array(head):
        return _of_arrays(path, task)
    if task != "instance":
        raise FormatError(
            f"{path}: --task {task}", expected="a picture", got=suffix or "another file", fix="see --help"
        )
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<"):
        return "instance", "cvat"
    if suffix == ".txt":
        return "instance", "yolo"
    return "instance", _json_format(path)


def _json_format(path: Path) -> str:
    """Which JSON it is: by the keys of its top level and of its first records."""
    from bpr_service.formats.records.record_file import RecordFile
    from bpr_service.formats.records.stream import stream_json

    keys: set[str | None] = set()
    first: dict[str, Any] = {}
    lines = RecordFile(str(path), (), "").is_lines
    with path.open("rb") as file:
        for event in stream_json(file, str(path), lines=lines):
            keys.add(event.key)
            if event.kind == "item" and isinstance(event.value, dict) and not first and event.key != "images":
                first = event.value
            if None in keys and first:
                break
    if "shapes" in keys:
        return "labelme"
    if None in keys and first.keys() & {"annotations", "predictions"} and "data" in first:
        return "label-studio"
    if "image_id" in first or ("images" in keys and "annotations" in keys):
        return "coco"
    return "masks"
