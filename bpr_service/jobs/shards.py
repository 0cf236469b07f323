"""Where outcomes are kept between a kill and the next start, and how they become one result.

A shard is written as a journal, one frame a unit, to a name of its own; when it is whole it gets a footer with its
SHA-256, is synced and renamed to a name fixed by the shard's number. What a killed worker left of a journal is taken
over frame by frame, so a unit that was done is never done again.

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
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from bpr_service import storage
from bpr_service.errors import ConflictError
from bpr_service.formats import PredictionFormat
from bpr_service.jobs.units import Outcome

_FRAME = struct.Struct(">4sIQ")
_UNIT, _END = b"BPRU", b"BPRE"


class Frame(NamedTuple):
    """One unit of a journal: its header, where its payload begins in the file, and where the frame ends."""

    header: dict[str, Any]
    payload: int
    end: int


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
    while True:
        start = file.tell()
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
        begin = start + _FRAME.size + head_bytes
        yield Frame(json.loads(head), begin, begin + payload_bytes + 4)


class ShardWriter:
    """The journal of one shard. ``done`` holds the numbers of the units it has, adopted ones included."""

    def __init__(self, folder: Path, shard: int) -> None:
        self.final = folder / shard_name(shard)
        self.path = folder / f"{self.final.stem}.{uuid.uuid4().hex[:12]}.part"
        self.headers: dict[int, dict[str, Any]] = {}
        self._digest = hashlib.sha256()
        left = sorted(folder.glob(f"{self.final.stem}.*.part"))
        self._size = 0
        self._file = self.path.open("wb", buffering=0)
        for part in left:
            self._adopt(part)

    @property
    def done(self) -> set[int]:
        return set(self.headers)

    def _adopt(self, part: Path) -> None:
        with part.open("rb") as file:
            start = 0
            for frame in read_frames(file):
                if frame.header["number"] not in self.headers:
                    file.seek(start)
                    self._write(file.read(frame.end - start), frame.header)
                start = frame.end
                file.seek(start)

    def _write(self, data: bytes, header: dict[str, Any]) -> None:
        self._append(data)
        self._size += len(data)
        self._digest.update(data)
        self.headers[header["number"]] = header

    def _append(self, data: bytes) -> None:
        """Write all of ``data`` behind the last whole frame; a full disk may leave a part, which the next try cuts."""
        self._file.seek(self._size)
        self._file.truncate()
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def add(self, outcome: Outcome) -> None:
        """Append one unit; it survives a kill of the process from here on."""
        self._write(encode_frame(outcome), outcome.to_json())

    def finish(self) -> None:
        """Seal the shard and put it in place."""
        self._append(_END + self._digest.digest())
        os.fsync(self._file.fileno())
        os.replace(self.path, self.final)
        storage.sync_folder(str(self.final.parent))
        self._file.close()

    def close(self) -> None:
        """Leave the journal for the next start."""
        self._file.close()


def shard_name(shard: int) -> str:
    return f"shard-{shard:06d}.bprs"


def sealed(path: Path) -> bool:
    """True when a finished shard is there and its SHA-256 is right."""
    end = len(_END) + 32
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            digest, left = hashlib.sha256(), size - end
            while left > 0 and (block := file.read(min(storage.COPY_BYTES, left))):
                digest.update(block)
                left -= len(block)
            return file.read() == _END + digest.digest()
    except OSError:
        return False


def merge(file: PredictionFormat, folder: Path, shards: int, units: int, out: str) -> Iterator[dict[str, Any]]:
    """Write the result from all shards, records in the input's order; yields every unit's header.

    Raises:
        ConflictError: a unit is missing, or is there twice.
    """
    numbers = array("q")
    positions, where, offsets, lengths = array("q"), array("q"), array("q"), array("q")
    for shard in range(shards):
        with (folder / shard_name(shard)).open("rb") as journal:
            for frame in read_frames(journal):
                numbers.append(frame.header["number"])
                at = frame.payload
                for position, length in frame.header["records"]:
                    positions.append(position)
                    where.append(shard)
                    offsets.append(at)
                    lengths.append(length)
                    at += length
                for name, length in frame.header["files"]:
                    journal.seek(at)
                    storage.write_bytes(storage.join_inside(out, name), journal.read(length))
                    at += length
                journal.seek(frame.end)
                yield frame.header
    if sorted(numbers) != list(range(units)):
        missing = sorted(set(range(units)) - set(numbers))
        raise ConflictError(
            f"{folder}: the shards are not whole",
            expected=f"{units} units, each once",
            got=f"{len(numbers)}; missing: {missing[:5]}",
            fix="resume the job",
        )
    if file.has_records:
        file.write(out, _in_order(folder, positions, where, offsets, lengths))


def _in_order(
    folder: Path, positions: array[int], where: array[int], offsets: array[int], lengths: array[int]
) -> Iterator[bytes]:
    import numpy as np

    order = np.argsort(np.frombuffer(positions, np.int64), kind="stable") if positions else ()
    current, journal = -1, None
    try:
        for i in order:
            if where[i] != current:
                if journal is not None:
                    journal.close()
                current = where[i]
                journal = (folder / shard_name(current)).open("rb")
            assert journal is not None
            journal.seek(offsets[i])
            yield journal.read(lengths[i])
    finally:
        if journal is not None:
            journal.close()
