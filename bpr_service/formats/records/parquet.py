"""COCO results as a Parquet table: one row a mask, in columns of COCO's names.

A mask is a struct ``segmentation`` of ``size`` and ``counts``, or the columns ``counts``, ``height`` and ``width`` (as
``bpr batch --result parquet`` writes them, with the whole record as JSON in ``record``). All other columns come back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, ClassVar

from bpr_service import storage
from bpr_service.errors import FormatError
from bpr_service.formats.base import Paths
from bpr_service.formats.records.coco import CocoResults
from bpr_service.formats.records.record_file import Head, Record, dump
from bpr_service.masks.encoding import Encoding
from bpr_service.storage import Span

WHAT = "a Parquet table with image_id or file_name, and segmentation {size, counts} or counts, height and width"
MAX_GROUP_BYTES = 512 << 20
"""One row group is held at a time."""
_FLAT = ("counts", "height", "width")
_WRITTEN = ("segmentation", "bbox", "area")


class ParquetResults(CocoResults):
    """COCO results in Parquet; the table comes back with the same columns, types and row groups."""

    name: ClassVar[str] = "parquet"
    encodings: ClassVar[tuple[Encoding, ...]] = ("same",)

    def __init__(self, paths: Paths) -> None:
        super().__init__(paths)
        self.file = ParquetTable(paths.predictions)  # type: ignore[assignment]


class ParquetTable:
    """The rows of a file, spoken of as the records of a `RecordFile`: a span is a row and nothing."""

    def __init__(self, address: str) -> None:
        self.address, self.head = address, Head()
        self._group: tuple[int, list[Record]] = (-1, [])

    def _open(self, file: Any) -> Any:
        """The open table. Raises ``FormatError`` where it is none, lacks columns, or has row groups too large."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.ParquetFile(file)
        except (pa.ArrowInvalid, OSError) as error:
            got = str(error).splitlines()[0][:120]
            raise FormatError(f"{self.address}: no Parquet", expected=WHAT, got=got, fix="check --format") from None
        names = set(table.schema_arrow.names)
        if not names & {"image_id", "file_name"} or not ("segmentation" in names or names.issuperset(_FLAT)):
            got = f"columns {', '.join(sorted(names)[:12])}"
            raise FormatError(f"{self.address}: another table", expected=WHAT, got=got, fix="rename its columns")
        groups = range(table.metadata.num_row_groups)
        largest = max((table.metadata.row_group(i).total_byte_size for i in groups), default=0)
        if largest > MAX_GROUP_BYTES:
            raise FormatError(
                f"{self.address}: a row group of {largest >> 20} MiB",
                expected=f"row groups of at most {MAX_GROUP_BYTES >> 20} MiB, one of which is held at a time",
                fix="write it again with row_group_size=100000",
            )
        return table

    def scan(self, image: Callable[[Record], Any] | None = None) -> Iterator[tuple[int, int, int, Record]]:
        """Yield (position, row, 0, record) with the columns that say whose a row is. Raises ``FormatError``."""
        with storage.open_read(self.address) as file:
            table = self._open(file)
            names = [name for name in ("image_id", "file_name", "id") if name in table.schema_arrow.names]
            position = 0
            for batch in table.iter_batches(columns=names):
                for record in batch.to_pylist():
                    yield position, position, 0, record
                    position += 1

    def spans(self, spans: list[tuple[int, int]]) -> list[Span]:
        """Nothing: a row group is read once for the rows of many images."""
        return []

    def raw(self, spans: list[tuple[int, int]]) -> list[bytes]:
        """Rows as JSON records, in the order of ``spans``."""
        out = []
        with storage.open_read(self.address) as file:
            table = self._open(file)
            sizes = [table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)]
            group, first = 0, 0
            for row, _ in spans:
                while row >= first + sizes[group]:
                    first, group = first + sizes[group], group + 1
                if self._group[0] != group:
                    self._group = group, table.read_row_group(group).to_pylist()
                out.append(_record(self._group[1][row - first]))
        return out

    def write(self, out: str, records: Iterable[bytes]) -> None:
        """The table with the masks of ``records``, row group by row group."""
        import pyarrow.parquet as pq

        left = iter(records)
        with storage.open_read(self.address) as file, storage.replacing(out) as target:
            table = self._open(file)
            with pq.ParquetWriter(target, table.schema_arrow) as writer:
                for group in range(table.metadata.num_row_groups):
                    rows = table.read_row_group(group)
                    writer.write_table(_replaced(rows, list(islice(left, rows.num_rows))))


def _record(row: Record) -> bytes:
    """A row as JSON: its own where it has one, else of its columns; what JSON cannot hold is left out."""
    if isinstance(row.get("record"), str):
        return str(row["record"]).encode()
    record = {key: value for key, value in row.items() if _is_json(value)}
    if "segmentation" not in record and row.get("counts") is not None:
        record["segmentation"] = {"size": [row["height"], row["width"]], "counts": row["counts"]}
    for key in _FLAT:
        record.pop(key, None)
    return dump(record)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _replaced(rows: Any, records: list[bytes]) -> Any:
    """A table with the columns of masks, boxes and areas as the records have them."""
    import pyarrow as pa

    parsed = [json.loads(record) for record in records]
    masks = [record.get("segmentation") or {} for record in parsed]
    new: dict[str, list[Any]] = {
        "record": [record.decode() for record in records],
        "counts": [mask.get("counts") for mask in masks],
        "height": [mask.get("size", (None, None))[0] for mask in masks],
        "width": [mask.get("size", (None, None))[1] for mask in masks],
        **{name: [record.get(name) for record in parsed] for name in _WRITTEN},
    }
    for name, values in new.items():
        index = rows.schema.get_field_index(name)
        if index >= 0:
            kind = rows.schema.field(index)
            rows = rows.set_column(index, kind, pa.array(values, kind.type))
    return rows
