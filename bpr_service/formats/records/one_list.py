"""The masks of one image in one JSON file, whatever tool wrote it.

The file is a list of masks, one mask, or an object that holds such a list under one of `ARRAYS`. A mask is COCO RLE or
an object with ``segmentation`` (RLE, polygons, a PNG as base64); all its other keys are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, get_args

from bpr_service import storage
from bpr_service.errors import FormatError
from bpr_service.formats.base import Encoded, Instance, InstancePrediction, Paths, PredictionFormat, Task, Unit
from bpr_service.formats.records.mask_record import encode_record, read_mask
from bpr_service.formats.records.record_file import ARRAYS, RecordFile, parse
from bpr_service.masks.encoding import Encoding

WHAT = f"a list of masks, or an object with one under {', '.join(ARRAYS)}"


class MaskRecords(PredictionFormat):
    """JSON of the masks of one image, which does not say of which."""

    name: ClassVar[str] = "masks"
    task: ClassVar[Task] = "instance"
    result_is_folder: ClassVar[bool] = False
    has_records: ClassVar[bool] = True
    encodings: ClassVar[tuple[Encoding, ...]] = get_args(Encoding)

    def __init__(self, paths: Paths) -> None:
        super().__init__(paths)
        self.file = RecordFile(paths.predictions, ARRAYS, WHAT)

    def scan(self) -> Iterator[Unit]:
        try:
            rows = [[position, start, length] for position, start, length, _ in self.file.scan()]
        except FormatError:
            rows = self._one_mask()
            if not rows:
                raise
        yield Unit(0, self.paths.image or "", "masks", rows)

    def _one_mask(self) -> list[list[int]]:
        """The whole document as one record, where it is one mask."""
        data = storage.read_bytes(self.paths.predictions)
        try:
            document = json.loads(data)
        except ValueError:
            return []
        if not isinstance(document, dict) or not document.keys() & {"segmentation", "counts", "png"}:
            return []
        start, end = data.index(b"{"), data.rindex(b"}") + 1
        self.file.head.start, self.file.head.end = start, end
        self.file.head.before = self.file.head.after = b""
        return [[0, start, end - start]]

    def read(self, unit: Unit, size: tuple[int, int] | None = None) -> InstancePrediction:
        size = self.size(unit, size)
        rows = zip(unit.source, self._raw(unit), strict=True)
        return InstancePrediction(tuple(self._instance(size, row[0], data) for row, data in rows))

    def _raw(self, unit: Unit) -> list[bytes]:
        return self.file.raw([(row[1], row[2]) for row in unit.source])

    def _instance(self, size: tuple[int, int], position: int, data: bytes) -> Instance:
        record: dict[str, Any] = parse(data)
        item = Instance(position, None, -1, record.get("score"), record)
        given = record.get("segmentation", record)
        return read_mask(item, given, size, self.file.address, f"mask {position}", self.options)

    def encode(self, unit: Unit, prediction: InstancePrediction) -> Encoded:
        rows = zip(unit.source, self._raw(unit), prediction.instances, strict=True)
        return Encoded(records={row[0]: encode_record(item, data, self.options) for row, data, item in rows})

    def untouched(self, unit: Unit) -> Encoded:
        return Encoded(records={row[0]: data for row, data in zip(unit.source, self._raw(unit), strict=True)})

    def write(self, out: str, records: Iterable[bytes]) -> None:
        self.file.write(out, records)
