"""An array of JSON records in a file: indexed in one pass, then read by byte range in any order."""

from __future__ import annotations

import io
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bpr_service import storage
from bpr_service.errors import FormatError
from bpr_service.formats.json_stream import stream_json

Record = dict[str, Any]


@dataclass
class Head:
    """What stands around the array: its byte range and the other top-level values and images that were asked for."""

    start: int = 0
    end: int = 0
    images: dict[Any, Any] = field(default_factory=dict)


class RecordFile:
    """The records of one file. ``array_key`` is the key of the array where the top level is an object."""

    def __init__(self, address: str, array_key: str, what: str) -> None:
        self.address, self.array_key, self.what = address, array_key, what
        self.head = Head()

    def scan(self, image: Callable[[Record], tuple[Any, Any]] | None = None) -> Iterator[tuple[int, int, int, Record]]:
        """Yield (position, first byte, bytes, record).

        Args:
            image: picks (id, value) out of an entry of a top-level ``images`` array, gathered in ``head.images``.

        Raises:
            FormatError: broken JSON, no such array, or an element that is no object; with its byte.
        """
        found, position = False, 0
        with storage.open_read(self.address) as file:
            for event in stream_json(file, self.address):
                if event.key is None or event.key == self.array_key:
                    if event.kind == "open":
                        found, self.head.start = True, event.end
                    elif event.kind == "close":
                        self.head.end = event.start
                    elif event.kind == "item":
                        if not isinstance(event.value, dict):
                            raise self._other(f"{type(event.value).__name__} at byte {event.start}")
                        yield position, event.start, event.end - event.start, event.value
                        position += 1
                elif image is not None and event.kind == "item" and event.key == "images":
                    key, value = image(event.value)
                    self.head.images[key] = value
        if not found:
            raise self._other(f"an object without {self.array_key!r}")

    def _other(self, got: str) -> FormatError:
        return FormatError(
            f"{self.address}: another format", expected=self.what, got=got, fix="check the file and --format"
        )

    def raw(self, spans: list[tuple[int, int]]) -> list[bytes]:
        """The bytes of records at (first byte, bytes), which must be in rising order."""
        with storage.open_read(self.address) as file:
            return [_read_at(file, start, length) for start, length in spans]

    def write(self, out: str, records: Iterable[bytes]) -> None:
        """Write ``records`` in place of the array's; all that stands around it is kept byte for byte."""
        if not self.head.end:
            for _ in self.scan():  # finds where the array begins and ends
                pass
        with storage.open_read(self.address) as source, storage.replacing(out) as target:
            _copy(source, target, 0, self.head.start)
            for number, record in enumerate(records):
                target.write((b",\n" if number else b"\n") + record)
            target.write(b"\n")
            _copy(source, target, self.head.end, None)


def _read_at(file: Any, start: int, length: int) -> bytes:
    file.seek(start)
    data: bytes = file.read(length)
    return data


def _copy(source: Any, target: Any, start: int, end: int | None) -> None:
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
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
