"""COCO instance results: a JSON list of ``{image_id, category_id, segmentation, score, ...}``.

A COCO annotation file (an object with an ``annotations`` array) is read and written back just as well.
Source: cocodataset.org, "Results format" and "Data format".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from bpr_service.errors import BprError, FormatError
from bpr_service.formats.base import (
    Encoded,
    Instance,
    InstancePrediction,
    Paths,
    PredictionFormat,
    Task,
    Unit,
    at,
)
from bpr_service.formats.records import Grouping, Record, RecordFile, dump, parse

if TYPE_CHECKING:
    from bpr_service.masks.mask import Mask

ImageEntry = tuple[str, int, int]
WHAT = "a JSON list of {image_id, category_id, segmentation, score}"


class CocoResults(PredictionFormat):
    """COCO results; the data set's ``images`` say which file an image id is."""

    name: ClassVar[str] = "coco"
    task: ClassVar[Task] = "instance"
    result_is_folder: ClassVar[bool] = False
    has_records: ClassVar[bool] = True

    def __init__(self, paths: Paths) -> None:
        super().__init__(paths)
        self.file = RecordFile(paths.predictions, "annotations", WHAT)

    def file_name(self, entry: Record) -> str:
        """The image's file name in an entry of the data set's ``images``."""
        return str(entry["file_name"])

    def _image(self, entry: Any) -> tuple[Any, ImageEntry]:
        try:
            return entry["id"], (self.file_name(entry), int(entry["height"]), int(entry["width"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"{self.paths.dataset or self.paths.predictions}: an entry of 'images'",
                expected="id, file_name, height and width",
                got=f"{str(entry)[:80]} ({error!r})",
                fix="pass the data set's annotation file as --dataset",
            ) from None

    @cached_property
    def _dataset_images(self) -> dict[Any, ImageEntry]:
        if self.paths.dataset is None:
            return {}
        data = RecordFile(self.paths.dataset, "images", "an annotation file with an 'images' array")
        return dict(self._image(record) for _, _, _, record in data.scan())

    def scan(self) -> Iterator[Unit]:
        groups = Grouping()
        for position, start, length, record in self.file.scan(self._image):
            if "image_id" not in record:
                raise FormatError(
                    f"{self.file.address}: record {position} (byte {start}) has no image_id",
                    expected=WHAT,
                    got=f"keys {', '.join(map(str, list(record)[:6]))}",
                    fix="check the file and --format",
                )
            image_id = record["image_id"]
            key = image_id if isinstance(image_id, int | str) else str(image_id)
            groups.add(key, position, start, length, record.get("id"))
        images = self._dataset_images or self.file.head.images
        if groups.numbers and not images:
            self.need("dataset", "--dataset ANN.json (it needs only 'images')", "to know which file an image id is")
        repeated = groups.repeated()
        for number, (image_id, source) in enumerate(groups.groups()):
            marked = [[*row, 1] if row[0] in repeated else row for row in source] if repeated else source
            entry = images.get(image_id)
            if entry is None:
                yield Unit(number, "", str(image_id), marked, problem=self._unknown(image_id, source[0]))
            else:
                yield Unit(number, entry[0], str(image_id), marked, (entry[1], entry[2]))

    def _unknown(self, image_id: Any, row: list[int]) -> str:
        where = self.paths.dataset or "the file's images"
        return f"{self.file.address}: record {row[0]} (byte {row[1]}): image_id {image_id!r} is not in {where}"

    def _raw(self, unit: Unit) -> list[bytes]:
        return self.file.raw([(row[1], row[2]) for row in unit.source])

    def read(self, unit: Unit) -> InstancePrediction:
        rows = zip(unit.source, self._raw(unit), strict=True)
        return InstancePrediction(tuple(self._instance(unit, row, data) for row, data in rows))

    def _instance(self, unit: Unit, row: list[int], data: bytes) -> Instance:
        from bpr_service.masks.mask import as_mask

        record = parse(data)
        score = record.get("score")
        item = Instance(row[0], None, _integer(record.get("category_id")), score, record)
        where = f"record {row[0]} (byte {row[1]})"
        if len(row) > 3:
            return replace(item, problem=f"{self.file.address}: {where}: id {record['id']} is there twice")
        if unit.size is None:
            return replace(item, problem=f"{self.file.address}: {where}: the image's size is not known")
        try:
            if not record.get("segmentation"):
                raise FormatError("no mask", expected="a segmentation", got="none", fix="export masks, not boxes")
            return replace(item, mask=as_mask(record["segmentation"], *unit.size))
        except BprError as error:
            return replace(item, problem=str(at(self.file.address, where, error)))

    def encode(self, unit: Unit, prediction: InstancePrediction) -> Encoded:
        rows = zip(unit.source, self._raw(unit), prediction.instances, strict=True)
        return Encoded(records={row[0]: _record(item, data) for row, data, item in rows})

    def untouched(self, unit: Unit) -> Encoded:
        rows = zip(unit.source, self._raw(unit), strict=True)
        return Encoded(records={row[0]: data for row, data in rows})

    def write(self, out: str, records: Iterable[bytes]) -> None:
        self.file.write(out, records)


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else -1


def _record(item: Instance, data: bytes) -> bytes:
    """The record with its geometry brought up to date; the very bytes of the input where nothing is new."""
    if item.mask is None:
        return data
    new: Record = {}
    if "bbox" in item.record:
        new["bbox"] = item.mask.bbox
    if "area" in item.record:
        new["area"] = float(item.mask.area) if isinstance(item.record["area"], float) else item.mask.area
    if item.changed:
        new["segmentation"] = encode_like(item.mask, item.record["segmentation"])
    if all(item.record[key] == value for key, value in new.items()):
        return data
    return dump({**item.record, **new})


def encode_like(mask: Mask, old: Any) -> Any:
    """A mask in the encoding that ``old`` has: compressed RLE, uncompressed RLE, or polygons.

    Polygons cannot hold holes: a mask that has some comes back as compressed RLE.
    """
    if isinstance(old, dict):
        return mask.to_rle(compressed=not isinstance(old.get("counts"), list))
    from bpr_service.masks.mask import Mask as MaskType

    polygons = mask.to_polygons()
    if polygons and MaskType.from_polygons(polygons, mask.height, mask.width).area == mask.area:
        return polygons
    return mask.to_rle()
