"""COCO panoptic: a JSON of ``annotations[{image_id, file_name, segments_info}]`` beside a folder of PNGs.

A PNG's pixel is a segment's id, R + 256 G + 65536 B; 0 is void. Source: cocodataset.org, "Data format, panoptic".

Letters: H, W are an image's height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bpr_service import storage
from bpr_service.errors import OWN_FAULTS, FormatError
from bpr_service.formats.base import Encoded, PanopticPrediction, Paths, PredictionFormat, Task, Unit, at
from bpr_service.formats.images import ImageFolder
from bpr_service.formats.records.record_file import Record, RecordFile, parse, plain_id
from bpr_service.formats.records.splice import Path, splice_at
from bpr_service.storage import Span

WHAT = "an object with annotations[{image_id, file_name, segments_info}]"
JSON_NAME = "panoptic.json"


class CocoPanoptic(PredictionFormat):
    """COCO panoptic; the result is a folder of PNGs and, beside them, ``panoptic.json``."""

    name: ClassVar[str] = "coco"
    task: ClassVar[Task] = "panoptic"
    has_records: ClassVar[bool] = True

    def __init__(self, paths: Paths) -> None:
        super().__init__(paths)
        self.file = RecordFile(paths.predictions, "annotations", WHAT)

    def scan(self) -> Iterator[Unit]:
        self.need("panoptic_dir", "--panoptic-dir DIR", "the folder of the panoptic PNGs")
        rows: list[tuple[int, int, int, Any, str, FormatError | None]] = []
        for position, start, length, record in self.file.scan(_image):
            wrong = _lacking(record)
            image_id, png = plain_id(record.get("image_id")), str(record.get("file_name"))
            rows.append((position, start, length, image_id, png, wrong))
        if rows and all(row[-1] for row in rows):
            raise at(self.file.address, f"annotation 0 (byte {rows[0][1]})", rows[0][-1] or "")
        known, seen = self._known_images(), set()
        for position, start, length, image_id, png, wrong in rows:
            source, where = [position, start, length], f"annotation {position} (byte {start})"
            try:
                if wrong is not None:
                    raise wrong
                if image_id in seen:
                    raise FormatError(f"image_id {image_id!r} is there twice", fix="keep one annotation an image")
                image = known.get(image_id) or self.folder.find(png)
                yield Unit(position, image, str(image_id), source)
            except OWN_FAULTS as error:
                problem = str(at(self.file.address, where, error))
                yield Unit(position, "", str(image_id), source, problem=problem)
            seen.add(image_id)

    def _known_images(self) -> dict[Any, str]:
        if self.paths.dataset is None:
            return {key: name for key, name in self.file.head.images.items() if name}
        data = RecordFile(self.paths.dataset, "images", "an annotation file with an 'images' array")
        return {key: name for key, name in (_image(record) for _, _, _, record in data.scan()) if name}

    def reads_predictions(self, unit: Unit) -> list[Span]:
        return self.file.spans([(unit.source[1], unit.source[2])])

    def _record(self, unit: Unit) -> tuple[bytes, Record]:
        data = self.file.raw([(unit.source[1], unit.source[2])])[0]
        return data, parse(data)

    @cached_property
    def _pngs(self) -> ImageFolder:
        return ImageFolder(self.need("panoptic_dir", "--panoptic-dir DIR", "the folder of the panoptic PNGs"))

    def _png(self, record: Record) -> tuple[str, bytes]:
        """The name of a record's PNG in the folder of PNGs, and its bytes."""
        name = self._pngs.present(str(record["file_name"]))
        return name, storage.read_bytes(storage.join_inside(self._pngs.address, name, within=self.paths.within))

    def read(self, unit: Unit, size: tuple[int, int] | None = None) -> PanopticPrediction:
        from bpr_service.masks.mask import read_panoptic_png

        where = f"annotation {unit.source[0]} (byte {unit.source[1]})"
        try:
            record = self._record(unit)[1]
            segment_map = read_panoptic_png(self._png(record)[1])
            infos = _checked(record["segments_info"], segment_map, str(record["file_name"]))
        except OWN_FAULTS as error:
            raise at(self.file.address, where, error) from error
        return PanopticPrediction(segment_map, infos, record, segment_map)

    def encode(self, unit: Unit, prediction: PanopticPrediction) -> Encoded:
        from bpr_service.masks.label_maps import panoptic_png

        if np.array_equal(prediction.segment_map, prediction.before):
            return self.untouched(unit)
        data, record = self._record(unit)
        left = {info["id"] for info in prediction.segments_info}
        old = [info for info in record["segments_info"] if plain_id(info["id"]) in left]
        infos = recomputed(prediction.segment_map, prediction.before, old)
        new: dict[Path, Any] = {("segments_info",): infos}
        if len(old) == len(record["segments_info"]):  # none vanished: the others keep every byte
            pairs = enumerate(zip(old, infos, strict=True))
            new = {("segments_info", i): info for i, (was, info) in pairs if info != was}
        files = {self._png(record)[0]: panoptic_png(prediction.segment_map)}
        return Encoded(files=files, records={unit.source[0]: splice_at(data, new)})

    def untouched(self, unit: Unit) -> Encoded:
        data, record = self._record(unit)
        try:
            files = dict([self._png(record)])
        except (*OWN_FAULTS, KeyError):
            files = {}  # the PNG is what cannot be read; the report says so
        return Encoded(files=files, records={unit.source[0]: data})

    def write(self, out: str, records: Iterable[bytes]) -> None:
        self.file.write(storage.join(out, JSON_NAME), records)


def _image(entry: Any) -> tuple[Any, str]:
    if not isinstance(entry, dict) or "id" not in entry:
        raise FormatError("an entry of 'images'", expected="an object with an id", got=str(entry)[:80])
    return plain_id(entry["id"]), str(entry.get("file_name") or "")


def _lacking(record: Record) -> FormatError | None:
    """What is wrong with a record that does not say of which image, PNG and segments it is."""
    missing = [key for key in ("image_id", "file_name", "segments_info") if record.get(key) is None]
    if not missing:
        return None
    got = f"keys {', '.join(map(str, list(record)[:6]))}"
    return FormatError(f"no {missing[0]}", expected=WHAT, got=got, fix="check the file and --format")


def _checked(infos: Any, segment_map: NDArray[np.int32], name: str) -> list[Record]:
    """``segments_info`` when its ids are those of the PNG. Raises ``FormatError``."""
    usable = isinstance(infos, list) and all(isinstance(info, dict) for info in infos)
    infos = [{**info, "id": plain_id(info.get("id"))} for info in infos] if usable else infos
    if not usable or not all(isinstance(info["id"], int) for info in infos):
        raise FormatError("segments_info", expected="a list of {id, category_id, ...}", got=str(infos)[:60])
    ids = [info["id"] for info in infos]
    twice = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        raise FormatError(f"segment id {twice[0]} is there twice", fix="give every segment its own id")
    in_png = set(np.unique(segment_map).tolist()) - {0}
    for where, extra in (
        (f"{name} but not in the JSON", in_png - set(ids)),
        ("the JSON but not in " + name, set(ids) - in_png),
    ):
        if extra:
            raise FormatError(
                "PNG and JSON disagree",
                expected="the same segment ids in both",
                got=f"id {min(extra)} in {where} ({len(extra)} in all)",
                fix="write ids as R + 256 G + 65536 B; OpenCV swaps the channels",
            )
    return list(infos)


def recomputed(segment_map: NDArray[np.int32], before: NDArray[np.int32], infos: list[Record]) -> list[Record]:
    """``infos`` with ``area`` and ``bbox`` of the segments that differ between two maps (H, W).

    They are counted in the first map, in one pass over the pixels; the others' are left as they stand.
    """
    differ = segment_map != before
    new = set(np.union1d(segment_map[differ], before[differ]).tolist())
    order = np.argsort(segment_map, axis=None, kind="stable")
    ids, first = np.unique(segment_map.ravel()[order], return_index=True)
    ys, xs = np.divmod(order, segment_map.shape[1])
    x0, x1 = np.minimum.reduceat(xs, first), np.maximum.reduceat(xs, first) + 1
    y0, y1 = ys[first], ys[np.append(first[1:], order.size) - 1] + 1  # a stable sort leaves rows in order
    area = np.diff(np.append(first, order.size))
    row = {int(segment): i for i, segment in enumerate(ids)}
    out = []
    for info in infos:
        segment = plain_id(info["id"])
        if segment in new and segment in row:
            i = row[int(segment)]
            box = [int(x0[i]), int(y0[i]), int(x1[i] - x0[i]), int(y1[i] - y0[i])]
            info = {**info, "area": int(area[i]), "bbox": box}
        out.append(info)
    return out
