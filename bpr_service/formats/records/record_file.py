"""An array of JSON records in a file: indexed in one pass, then read by byte range in any order."""

from __future__ import annotations

import io
import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from bpr_service import storage
from bpr_service.errors import FormatError
from bpr_service.formats.records.dress import BOM
from bpr_service.formats.records.stream import stream_json
from bpr_service.storage import Span, merged

Record = dict[str, Any]


LINE_BYTES = 1 << 20
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,18}")
ARRAYS = ("annotations", "predictions", "results", "detections", "instances", "masks")
"""The keys under which tools wrap a list of records in an object; the first that a file has is the one."""


@dataclass
class Head:
    """What stands around the records, and the other top-level values that were asked for.

    Attributes:
        start, end: byte range between the brackets of the array.
        before, between, after: the bytes ahead of the first record, from the first to the second, behind the last.
        images: what was picked of a top-level ``images`` array.
        categories: names by id, of a top-level ``categories`` array.
    """

    start: int = 0
    end: int = 0
    before: bytes = b"\n"
    between: bytes = b",\n"
    after: bytes = b"\n"
    images: dict[Any, Any] = field(default_factory=dict)
    categories: dict[Any, str] = field(default_factory=dict)


class RecordFile:
    """The records of one file: a JSON array, an array under one of ``array_keys``, or JSON lines."""

    def __init__(self, address: str, array_keys: str | tuple[str, ...], what: str) -> None:
        self.address, self.what = address, what
        self.array_keys = (array_keys,) if isinstance(array_keys, str) else array_keys
        self.head = Head()

    @cached_property
    def is_lines(self) -> bool:
        """One record a line: by the name (``.jsonl``, ``.ndjson``), or because a second object follows the first."""
        if self.address.lower().endswith((".jsonl", ".ndjson")):
            return True
        with storage.open_read(self.address) as file:
            head = file.read(LINE_BYTES)  # not readline: a file of object storage takes no length there
        first, _, second = head.removeprefix(BOM).partition(b"\n")
        if not first.strip().startswith(b"{") or not second.strip().startswith(b"{"):
            return False
        try:
            return isinstance(json.loads(first), dict)
        except ValueError:
            return False

    def scan(self, image: Callable[[Record], tuple[Any, Any]] | None = None) -> Iterator[tuple[int, int, int, Record]]:
        """Yield (position, first byte, bytes, record).

        Args:
            image: picks (id, value) out of an entry of a top-level ``images`` array, gathered in ``head.images``.

        Raises:
            FormatError: broken JSON, no such array, or an element that is no object; with its byte.
        """
        key: str | None = None
        position, found, spans = 0, False, _Spans()
        with storage.open_read(self.address) as file:
            for event in stream_json(file, self.address, lines=self.is_lines):
                one_of = event.key is None or event.key in self.array_keys
                if one_of and not position and event.kind == "open":  # one that is empty gives way to the next
                    key, found = event.key, True
                    self.head.start = event.end
                elif one_of and not found and event.kind == "value" and event.value is None:  # as good as empty
                    found = True
                    self.head.start = self.head.end = event.end
                elif found and event.key == key and event.kind == "close":
                    self.head.end = event.start
                elif found and event.key == key and event.kind == "item":
                    if not isinstance(event.value, dict):
                        raise self._other(f"{type(event.value).__name__} at byte {event.start}")
                    spans.add(event.start, event.end)
                    yield position, event.start, event.end - event.start, event.value
                    position += 1
                elif event.kind == "item" and event.key == "images" and image is not None:
                    image_id, value = image(event.value)
                    self.head.images[image_id] = value
                elif event.kind == "item" and event.key == "categories" and isinstance(event.value, dict):
                    self.head.categories[event.value.get("id")] = str(event.value.get("name", ""))
        if not found:
            raise self._other(f"an object without {' or '.join(self.array_keys)}")
        if position:
            self._note_separators(spans)

    def _note_separators(self, spans: _Spans) -> None:
        """How the file sets its records apart, so that they are set apart in the same way again."""
        head, gaps = self.head, [(self.head.start, spans.first), spans.gap, (spans.last, self.head.end)]
        with storage.open_read(self.address) as file:
            head.before, between, head.after = (read_at(file, start, end - start) for start, end in gaps)
        head.between = between or (b"\n" if self.is_lines else b",\n")

    def _other(self, got: str) -> FormatError:
        return FormatError(
            f"{self.address}: another format", expected=self.what, got=got, fix="check the file and --format"
        )

    def raw(self, spans: list[tuple[int, int]]) -> list[bytes]:
        """The bytes of records at (first byte, bytes), which must be in rising order."""
        return storage.read_spans(self.address, spans)

    def spans(self, spans: list[tuple[int, int]]) -> list[Span]:
        """What `raw` asks an object store for."""
        return [Span(self.address, *each) for each in merged(spans)]

    def found_head(self) -> Head:
        """The head, for which the file is scanned where it has not been. Raises as `scan`."""
        if not self.head.end:
            for _ in self.scan():
                pass
        return self.head

    def write(self, out: str, records: Iterable[bytes]) -> None:
        """Write ``records`` in place of the file's; all that stands around them is kept byte for byte."""
        head = self.found_head()
        with storage.open_read(self.address) as source, storage.replacing(out) as target:
            copy_range(source, target, 0, head.start)
            number = -1
            for number, record in enumerate(records):
                target.write((head.between if number else head.before) + record)
            if number < 0:
                copy_range(source, target, head.start, None)
                return
            target.write(head.after)
            copy_range(source, target, head.end, None)


class _Spans:
    """Where the first record begins, the gap behind it, and where the last one ends."""

    def __init__(self) -> None:
        self.first = self.last = -1
        self.gap = (0, 0)

    def add(self, start: int, end: int) -> None:
        if self.first < 0:
            self.first = start
        elif self.gap == (0, 0):
            self.gap = (self.last, start)
        self.last = end


def read_at(file: Any, start: int, length: int) -> bytes:
    """``length`` bytes of an open file from ``start`` on."""
    file.seek(start)
    data: bytes = file.read(length)
    return data


def copy_range(source: Any, target: Any, start: int, end: int | None) -> None:
    """Copy the bytes from ``start`` to ``end`` (None: to the last) of an open file to another, in blocks."""
    source.seek(start)
    left = end - start if end is not None else None
    while left is None or left > 0:
        block = source.read(min(storage.COPY_BYTES, left) if left is not None else storage.COPY_BYTES)
        if not block:
            return
        target.write(block)
        left = left - len(block) if left is not None else None


class Grouping:
    """Which records belong to which image, in 24 bytes a record."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}
        self.offsets, self.lengths, self.images = array("q"), array("q"), array("q")
        self.ids = array("q")
        self.id_positions = array("q")

    def add(self, image_id: Any, position: int, start: int, length: int, record_id: Any) -> None:
        """Note one record; ``record_id`` is its id, or None when it has none."""
        self.images.append(self.numbers.setdefault(image_id, len(self.numbers)))
        self.offsets.append(start)
        self.lengths.append(length)
        if isinstance(record_id, int) and not isinstance(record_id, bool) and abs(record_id) < 1 << 63:
            self.ids.append(record_id)
            self.id_positions.append(position)

    def repeated(self) -> set[int]:
        """Positions of records whose integer id an earlier record has."""
        import numpy as np

        ids = np.frombuffer(self.ids, np.int64) if self.ids else np.empty(0, np.int64)
        _, first = np.unique(ids, return_index=True)
        again = np.ones(len(ids), bool)
        again[first] = False
        positions = np.frombuffer(self.id_positions, np.int64) if self.ids else ids
        return set(positions[again].tolist())

    def groups(self) -> Iterator[tuple[Any, list[list[int]]]]:
        """(image id, [[position, first byte, bytes], ...]) in the order in which the images first appear."""
        import numpy as np

        if not self.images:
            return
        images = np.frombuffer(self.images, np.int64)
        order = np.argsort(images, kind="stable")
        bounds = np.searchsorted(images[order], np.arange(len(self.numbers) + 1))
        for image_id, number in self.numbers.items():
            rows = order[bounds[number] : bounds[number + 1]]
            yield image_id, [[int(i), self.offsets[i], self.lengths[i]] for i in rows.tolist()]


def parse(data: bytes) -> Any:
    """Decode the bytes of a record that was read before."""
    return json.load(io.BytesIO(data))


def dump(record: Any) -> bytes:
    """Encode one record compactly; keys keep their order."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def plain_id(value: Any) -> int | str:
    """An id as it is compared: a whole number however it is written (17, 17.0, "17"), else its text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    text = value if isinstance(value, str) else str(value)
    return int(text) if _WHOLE.fullmatch(text) else text  # 007 is a name


def is_crowd(record: Mapping[str, Any]) -> bool:
    """Whether a record is marked as a crowd, however its ``iscrowd`` is written."""
    value = record.get("iscrowd")
    return value is True or plain_id(value) == 1
