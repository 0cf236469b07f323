"""COCO instance results: a JSON list of ``{image_id, category_id, segmentation, score, ...}``.

A COCO annotation file (an object with an ``annotations`` array) is read and written back just as well.
Source: cocodataset.org, "Results format" and "Data format".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, get_args

from bpr_service.errors import FormatError
from bpr_service.formats.base import Encoded, Instance, InstancePrediction, Paths, PredictionFormat, Task, Unit
from bpr_service.formats.records.mask_record import encode_record, read_mask
from bpr_service.formats.records.record_file import ARRAYS, Grouping, Record, RecordFile, parse, plain_id
from bpr_service.masks.encoding import Encoding
from bpr_service.storage import Span

ImageEntry = tuple[str, tuple[int, int] | None]
"""File name, and (H, W) where the entry states one that can be."""
WHAT = "a JSON list of {image_id, category_id, segmentation, score}"


class CocoResults(PredictionFormat):
    """COCO results; the data set's ``images`` say which file an image id is, else the name of the file does."""

    name: ClassVar[str] = "coco"
    task: ClassVar[Task] = "instance"
    result_is_folder: ClassVar[bool] = False
    has_records: ClassVar[bool] = True
    encodings: ClassVar[tuple[Encoding, ...]] = get_args(Encoding)

    def __init__(self, paths: Paths) -> None:
        super().__init__(paths)
        self.file = RecordFile(paths.predictions, ARRAYS, WHAT)

    def file_name(self, entry: Record) -> str:
        """The image's file name in an entry of the data set's ``images``. Raises `KeyError` where there is none."""
        return text_of(entry, "file_name")

    def _image(self, entry: Any) -> tuple[Any, ImageEntry | None]:
        if not isinstance(entry, dict) or "id" not in entry:
            raise FormatError(
                f"{self.paths.dataset or self.paths.predictions}: an entry of 'images'",
                expected="id, file_name, height and width",
                got=str(entry)[:80],
                fix="pass the data set's annotation file as --dataset",
            )
        try:
            return plain_id(entry["id"]), (self.file_name(entry), _size(entry))
        except (KeyError, TypeError):
            return plain_id(entry["id"]), None  # no name: only this image's records cannot be refined

    @cached_property
    def _dataset_images(self) -> dict[Any, ImageEntry | None]:
        if self.paths.dataset is None:
            return {}
        data = RecordFile(self.paths.dataset, "images", "an annotation file with an 'images' array")
        return dict(self._image(record) for _, _, _, record in data.scan())

    def scan(self) -> Iterator[Unit]:
        groups, named, nameless = Grouping(), dict[Any, str](), ""
        for position, start, length, record in self.file.scan(self._image):
            key = _image_of(record)
            if key is None:
                nameless = nameless or f"record {position} (byte {start}) has no image_id, but {', '.join(record)[:80]}"
            groups.add(key, position, start, length, record.get("id"))
            if isinstance(record.get("file_name"), str):
                named.setdefault(key, record["file_name"])
        if groups.numbers.keys() == {None}:
            raise FormatError(f"{self.file.address}: {nameless}", expected=WHAT, fix="check the file and --format")
        images = self._dataset_images or self.file.head.images or self._by_name([*groups.numbers], named)
        repeated = groups.repeated()
        for number, (image_id, source) in enumerate(groups.groups()):
            marked = [[*row, 1] if row[0] in repeated else row for row in source] if repeated else source
            entry = images.get(image_id)
            if entry is None:
                problem = self._unknown(image_id, source[0]) if image_id is not None else nameless
                yield Unit(number, "", str(image_id), marked, problem=problem)
            else:
                yield Unit(number, entry[0], str(image_id), marked, entry[1])

    def _by_name(self, ids: list[int | str | None], named: dict[Any, str]) -> dict[Any, ImageEntry | None]:
        """Images by their files' names.

        A record calls its image by its name, by an id that is a name, or by a number that is (``000000000139.jpg``).
        """
        found: dict[Any, ImageEntry | None] = {}
        for image_id in [each for each in ids if each is not None]:
            with suppress(FormatError):
                found[image_id] = self.folder.find(named.get(image_id, image_id)), None
        if ids and not found and self.paths.image is None:
            self.need("dataset", "--dataset ANN.json (it needs only 'images')", "to know which file an image id is")
        return found

    def _unknown(self, image_id: Any, row: list[int]) -> str:
        where = self.paths.dataset or ("the file's images" if self.file.head.images else self.paths.images)
        return f"{self.file.address}: record {row[0]} (byte {row[1]}): image_id {image_id!r} is not in {where}"

    def reads_predictions(self, unit: Unit) -> list[Span]:
        return self.file.spans([(row[1], row[2]) for row in unit.source])

    def _raw(self, unit: Unit) -> list[bytes]:
        return self.file.raw([(row[1], row[2]) for row in unit.source])

    def read(self, unit: Unit, size: tuple[int, int] | None = None) -> InstancePrediction:
        size = self.size(unit, size)
        rows = zip(unit.source, self._raw(unit), strict=True)
        return InstancePrediction(tuple(self._instance(size, row, data) for row, data in rows))

    def _instance(self, size: tuple[int, int], row: list[int], data: bytes) -> Instance:
        record = parse(data)
        item = Instance(row[0], None, _integer(record.get("category_id")), record.get("score"), record)
        where = f"record {row[0]} (byte {row[1]})"
        if len(row) > 3:
            return replace(item, problem=f"{self.file.address}: {where}: id {record['id']} is there twice")
        return read_mask(item, record.get("segmentation"), size, self.file.address, where, self.options)

    def encode(self, unit: Unit, prediction: InstancePrediction) -> Encoded:
        rows = zip(unit.source, self._raw(unit), prediction.instances, strict=True)
        return Encoded(records={row[0]: encode_record(item, data, self.options) for row, data, item in rows})

    def untouched(self, unit: Unit) -> Encoded:
        rows = zip(unit.source, self._raw(unit), strict=True)
        return Encoded(records={row[0]: data for row, data in rows})

    def write(self, out: str, records: Iterable[bytes]) -> None:
        self.file.write(out, records)


def _image_of(record: Record) -> int | str | None:
    """The id of a record's image, or the name of its file; None where it says neither."""
    image = record.get("image_id")
    image = record.get("file_name") if image is None else image
    return None if image is None else plain_id(image)


def text_of(entry: Record, key: str) -> str:
    """A text of an entry that is not empty, or a number as text. Raises `KeyError`."""
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise KeyError(key)
    return str(value)


def _size(entry: Record) -> tuple[int, int] | None:
    height, width = (plain_id(entry.get(key)) for key in ("height", "width"))
    return (height, width) if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0 else None


def _integer(value: Any) -> int:
    value = plain_id(value)
    return value if isinstance(value, int) else -1
