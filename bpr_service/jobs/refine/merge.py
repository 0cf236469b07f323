"""Finished parts become one result, in the input's order and in bounded memory.

Records come out of the parts in the order of their images, and the result has them in the order of the input. They are
dealt into buckets by position, each a file of so many neighbouring positions, and then each bucket is put in order:
every byte is written and read once more, and memory holds the places of one bucket's records, whatever the run's size.
"""

from __future__ import annotations

import mmap
import shutil
import struct
from array import array
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from bpr_service import storage
from bpr_service.errors import ConflictError, NotFoundError
from bpr_service.formats import PredictionFormat
from bpr_service.jobs.refine.journal import Frame, part_name, read_frames
from bpr_service.jobs.refine.place import Place
from bpr_service.jobs.refine.plan import Plan, unit_counts

BUCKET_RECORDS = 1 << 19
"""Positions of a bucket: 16 bytes of memory each while it is put in order."""
BUFFER_BYTES = 1 << 16
WRITERS = 16
"""Files of a folder that are written at once: on object storage each waits for its answer."""
NAMED = 10
_RECORD = struct.Struct(">QI")


def missing_parts(place: Place, plan: Plan) -> list[int]:
    """The numbers of the parts that are not finished."""
    there = set(place.list("part-"))
    return [part for part in range(plan.parts) if part_name(part) not in there]


def merge(file: PredictionFormat, place: Place, plan: Plan, out: str) -> Iterator[dict[str, Any]]:
    """Write the result from all parts; yields every unit's header.

    Args:
        file: the predictions, which write the result.
        place: where the parts lie.
        plan: which parts there are.
        out: where the result goes: a file, put in place whole, or a folder.

    Raises:
        ConflictError: a part is missing, damaged, or of another plan.
        StorageError: the place or the result's storage refuses.
    """
    with ThreadPoolExecutor(WRITERS) as pool:
        waiting: list[Future[None]] = []
        buckets = _Buckets(place.scratch / "merge", plan.records) if file.has_records else None
        try:
            for frame in frames(place, plan):
                if buckets is not None:
                    for position, data in frame.records():
                        buckets.add(position, data)
                for name, data in frame.files():
                    waiting.append(
                        pool.submit(storage.write_bytes, storage.join_inside(out, name, within=file.paths.within), data)
                    )
                while len(waiting) > WRITERS:
                    waiting.pop(0).result()
                yield frame.header
            for written in waiting:
                written.result()
            if buckets is not None:
                file.write(out, buckets.in_order())
        finally:
            if buckets is not None:
                buckets.remove()


def frames(place: Place, plan: Plan) -> Iterator[Frame]:
    """Every frame of all parts, part by part; a part must hold each of its units once.

    Raises:
        ConflictError: a part is missing, damaged, or of another plan.
    """
    check_parts(place, plan)
    for part, first, units in unit_counts(plan, place):
        yield from frames_of_part(place, plan, part, first, units)


def check_parts(place: Place, plan: Plan) -> None:
    """Raises ``ConflictError`` that names the parts that are not finished."""
    lacking = missing_parts(place, plan)
    if lacking:
        raise _not_whole(place, f"{len(lacking)} of {plan.parts} parts missing: {_some(lacking)}", lacking[0], plan)


def frames_of_part(place: Place, plan: Plan, part: int, first: int, units: int) -> Iterator[Frame]:
    """The frames of one part, whose ``units`` units begin with ``first``. Raises as `frames`."""
    left = set(range(first, first + units))
    try:
        with storage.open_read(place.at(part_name(part))) as journal:
            for frame in read_frames(journal):
                if frame.header["number"] not in left:
                    raise _not_whole(place, f"part {part}: image {frame.header['number']} too many", part, plan)
                left.remove(frame.header["number"])
                yield frame
    except NotFoundError:
        raise _not_whole(place, f"part {part} went away", part, plan) from None
    if left:
        raise _not_whole(place, f"part {part} without images {_some(sorted(left))}", part, plan)


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:NAMED])) + (", ..." if len(numbers) > NAMED else "")


def _not_whole(place: Place, got: str, part: int, plan: Plan) -> ConflictError:
    return ConflictError(
        f"{place.address}: the parts are not whole",
        expected="every part, each image once",
        got=got,
        fix=f"run --part {part}/{plan.parts}, or resume the job",
    )


class _Buckets:
    """Records by position, each bucket in a local file: ``position u64 | bytes u32 | record``."""

    def __init__(self, folder: Path, records: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # of a merge that was killed
        folder.mkdir(parents=True)
        self.folder = folder
        self.buffers = [bytearray() for _ in range(max(1, -(-records // BUCKET_RECORDS)))]

    def _path(self, bucket: int) -> Path:
        return self.folder / f"bucket-{bucket:06d}"

    def add(self, position: int, data: bytes) -> None:
        bucket = position // BUCKET_RECORDS
        buffer = self.buffers[bucket]
        buffer += _RECORD.pack(position, len(data))
        buffer += data
        if len(buffer) >= BUFFER_BYTES:
            self._flush(bucket)

    def _flush(self, bucket: int) -> None:
        with self._path(bucket).open("ab") as file:
            file.write(self.buffers[bucket])
        self.buffers[bucket].clear()

    def in_order(self) -> Iterator[bytes]:
        """All records by rising position."""
        for bucket in range(len(self.buffers)):
            self._flush(bucket)
            with self._path(bucket).open("rb") as file:
                yield from _sorted(file)
            self._path(bucket).unlink()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _sorted(file: IO[bytes]) -> Iterator[bytes]:
    import numpy as np

    if not file.seek(0, 2):
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        positions, starts, at = array("q"), array("q"), 0
        while at < len(data):
            position, length = _RECORD.unpack_from(data, at)
            positions.append(position)
            starts.append(at)
            at += _RECORD.size + length
        for i in np.argsort(np.frombuffer(positions, np.int64), kind="stable"):
            start = starts[i]
            length = _RECORD.unpack_from(data, start)[1]
            yield data[start + _RECORD.size : start + _RECORD.size + length]
