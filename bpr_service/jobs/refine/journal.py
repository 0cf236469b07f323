"""Where the outcomes of a part are kept between a kill and the next start.

A part is written as a journal, one frame a unit, to a name of its own; when it is whole it gets a footer with its
SHA-256, is synced and put in place under a name fixed by the part's number. What a killed worker left of a journal is
taken over frame by frame, so a unit that was done is never done again.

::

    frame   b"BPRU" | header bytes u32 | payload bytes u64 | header (JSON) | payload | CRC-32 of header and payload
    footer  b"BPRE" | SHA-256 of all before
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from bpr_service import storage
from bpr_service.errors import NotFoundError
from bpr_service.jobs.refine.place import Place
from bpr_service.jobs.refine.unit import Outcome

_FRAME = struct.Struct(">4sIQ")
_UNIT, _END = b"BPRU", b"BPRE"


class Frame(NamedTuple):
    """One unit of a journal: its header, its payload, and where the frame ends in the file."""

    header: dict[str, Any]
    payload: bytes
    end: int

    def records(self) -> Iterator[tuple[int, bytes]]:
        """(position in the input, bytes) of every JSON record."""
        at = 0
        for position, length in self.header["records"]:
            yield position, self.payload[at : at + length]
            at += length

    def files(self) -> Iterator[tuple[str, bytes]]:
        """(relative name, bytes) of every file."""
        at = sum(length for _, length in self.header["records"])
        for name, length in self.header["files"]:
            yield name, self.payload[at : at + length]
            at += length


def encode_frame(outcome: Outcome) -> bytes:
    """The frame of an outcome. The payload is all records, then all files, in the header's order."""
    encoded = outcome.encoded
    header = outcome.to_json()
    header["records"] = [[position, len(data)] for position, data in encoded.records.items()]
    header["files"] = [[name, len(data)] for name, data in encoded.files.items()]
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    payload = b"".join([*encoded.records.values(), *encoded.files.values()])
    check = zlib.crc32(payload, zlib.crc32(head))
    return _FRAME.pack(_UNIT, len(head), len(payload)) + head + payload + struct.pack(">I", check)


def read_frames(file: IO[bytes]) -> Iterator[Frame]:
    """The whole and undamaged frames from the beginning of a journal."""
    end = 0
    while True:
        mark = file.read(_FRAME.size)
        if len(mark) < _FRAME.size:
            return
        kind, head_bytes, payload_bytes = _FRAME.unpack(mark)
        if kind != _UNIT:
            return
        head = file.read(head_bytes)
        payload = file.read(payload_bytes)
        check = file.read(4)
        if len(check) < 4 or zlib.crc32(payload, zlib.crc32(head)) != struct.unpack(">I", check)[0]:
            return
        end += _FRAME.size + head_bytes + payload_bytes + 4
        yield Frame(json.loads(head), payload, end)


class PartWriter:
    """The journal of one part.

    Attributes:
        done: numbers of the units that it has, adopted ones included.
        failed: how many of them have failures.
    """

    def __init__(self, place: Place, part: int) -> None:
        self.place, self.part = place, part
        self.done: set[int] = set()
        self.failed = 0
        stem = part_name(part).removesuffix(".bprs")
        self.path = place.scratch / f"{stem}.{uuid.uuid4().hex[:12]}.journal"
        self._digest = hashlib.sha256()
        self._size = 0
        place.prepare()
        left = sorted(place.scratch.glob(f"{stem}.*.journal"))
        self._file = self.path.open("wb", buffering=0)
        for journal in left:
            self._adopt(journal)

    def _adopt(self, journal: Path) -> None:
        with journal.open("rb") as frames, journal.open("rb") as source:
            start = 0
            for frame in read_frames(frames):
                if frame.header["number"] not in self.done:
                    source.seek(start)
                    self._write(source.read(frame.end - start), frame.header["number"], bool(frame.header["failed"]))
                start = frame.end

    def _write(self, data: bytes, number: int, failed: bool) -> None:
        self._append(data)
        self._size += len(data)
        self._digest.update(data)
        self.done.add(number)
        self.failed += failed

    def _append(self, data: bytes) -> None:
        """Write all of ``data`` behind the last whole frame; a full disk may leave a part, which the next try cuts."""
        self._file.seek(self._size)
        self._file.truncate()
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def add(self, outcome: Outcome) -> None:
        """Append one unit; it survives a kill of the process from here on."""
        self._write(encode_frame(outcome), outcome.number, bool(outcome.failed))

    def finish(self) -> None:
        """Seal the part and put it in place."""
        self._append(_END + self._digest.digest())
        os.fsync(self._file.fileno())
        self.place.put(part_name(self.part), self.path)
        self._file.close()

    def close(self) -> None:
        """Leave the journal for the next start."""
        self._file.close()


def part_name(part: int) -> str:
    """The name of a finished part."""
    return f"part-{part:06d}.bprs"


def sealed(place: Place, part: int) -> bool:
    """True when a finished part is there and its SHA-256 is right; a damaged one is removed."""
    try:
        with storage.open_read(place.at(part_name(part))) as file:
            left = file.seek(0, os.SEEK_END) - len(_END) - 32
            file.seek(0)
            digest = hashlib.sha256()
            while left > 0 and (block := file.read(min(storage.COPY_BYTES, left))):
                digest.update(block)
                left -= len(block)
            if file.read() == _END + digest.digest():
                return True
    except NotFoundError:
        return False
    place.remove(part_name(part))
    return False


def count_failed(place: Place, part: int) -> int:
    """Units of a finished part that have failures."""
    with storage.open_read(place.at(part_name(part))) as file:
        return sum(bool(frame.header["failed"]) for frame in read_frames(file))
