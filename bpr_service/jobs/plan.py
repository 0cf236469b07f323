"""The plan of a refine run: every unit of the prediction file, cut into shards, written once.

::

    RUN/plan.jsonl   one unit a line
    RUN/plan.json    written last: the shards as byte ranges of plan.jsonl, and what they were planned from
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpr_service import storage
from bpr_service.errors import ConflictError
from bpr_service.formats import Paths, PredictionFormat, Unit, open_predictions
from bpr_service.jobs.requests import RefineRequest, digest

MANIFEST, UNITS = "plan.json", "plan.jsonl"
SHARD_RECORDS = 4000
"""Records after which a shard is full, whatever the number of images."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``shards``: (first byte, bytes, units) of each shard in plan.jsonl."""

    folder: Path
    units: int
    shards: list[tuple[int, int, int]]
    fingerprint: str

    def read(self, shard: int) -> list[Unit]:
        """The units of one shard."""
        start, length, _ = self.shards[shard]
        with (self.folder / UNITS).open("rb") as file:
            file.seek(start)
            return [Unit.from_json(json.loads(line)) for line in file.read(length).splitlines()]


def open_file(request: RefineRequest, within: tuple[str, ...] | None = None) -> PredictionFormat:
    """The prediction file that a request speaks of."""
    paths = Paths(request.images, request.predictions, request.dataset, request.panoptic_dir, within)
    return open_predictions(request.task, request.format, paths)


def fingerprint(request: RefineRequest, model: str) -> str:
    """Changes whenever the request, the model, or the size or time of an input file changes."""
    stamps = []
    for address in (request.predictions, request.dataset):
        if address and not storage.is_remote(address) and os.path.exists(address):
            stat = os.stat(address)
            stamps.append([address, stat.st_size, stat.st_mtime_ns])
        elif address and storage.is_remote(address) and storage.exists(address):
            fs, path = storage.filesystem(address)
            info = fs.info(path)
            stamps.append([address, str(info.get("size")), str(info.get("ETag", info.get("LastModified")))])
    return digest(request.model_dump(mode="json", exclude={"out"}), stamps, model)


def load_plan(folder: Path) -> Plan | None:
    """The plan in a folder, None when there is no whole one."""
    try:
        data: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return Plan(folder, data["units"], [(a, b, c) for a, b, c in data["shards"]], data["fingerprint"])


def make_plan(request: RefineRequest, file: PredictionFormat, folder: Path, mark: str) -> Plan:
    """Scan the prediction file and write the plan; a whole plan of the same ``mark`` is taken as it is.

    Raises:
        FormatError: the prediction file cannot be used.
        ConflictError: the folder holds a plan of other inputs or settings.
    """
    known = load_plan(folder)
    if known is not None:
        if known.fingerprint != mark:
            raise ConflictError(
                f"{folder}: begun with other inputs or settings",
                expected="the same inputs, settings and model",
                got="others",
                fix="run without --resume, or submit a new job",
            )
        return known
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[tuple[int, int, int]] = []
    units = start = at = count = records = 0
    with storage.replacing(str(folder / UNITS)) as out:
        for unit in _numbered(file.scan()):
            if count and (count >= request.shard_images or records >= SHARD_RECORDS):
                shards.append((start, at - start, count))
                start, count, records = at, 0, 0
            line = json.dumps(unit.to_json(), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
            out.write(line)
            at += len(line)
            units, count = units + 1, count + 1
            records += len(unit.source) if isinstance(unit.source, list) else 1
        if count:
            shards.append((start, at - start, count))
    manifest = {"units": units, "shards": shards, "fingerprint": mark}
    storage.write_bytes(str(folder / MANIFEST), json.dumps(manifest).encode())
    return Plan(folder, units, shards, mark)


def _numbered(units: Iterator[Unit]) -> Iterator[Unit]:
    """The units, with a check that their numbers are what the merge counts on."""
    for number, unit in enumerate(units):
        if unit.number != number:
            raise AssertionError(f"unit {unit.name} has number {unit.number}, expected {number}")
        yield unit
