"""The plan of a run: every unit of the prediction file, cut into parts, written once.

::

    plan.json          written last and only once: what was planned from, and how many units and parts there are
    plan-MARK.units    one unit a line
    plan-MARK.index    for each block of units two numbers: its first byte in the file of units, its first unit

A block is the smallest part that a run may have. A part is a number of consecutive blocks that grows with the run, so
that there are never more than ``MAX_PARTS``; it is found by two reads of the index, whatever the size of the plan.
"""

from __future__ import annotations

import json
import os
import struct
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from bpr_service import storage
from bpr_service.errors import ConfigError, ConflictError, ModelError, NotFoundError
from bpr_service.formats import Paths, PredictionFormat, Unit, open_predictions
from bpr_service.formats.targets import check_suffix, check_target
from bpr_service.jobs.refine.place import Place
from bpr_service.jobs.requests import RefineRequest, digest

MANIFEST = "plan.json"
MAX_PARTS = 4096
"""Parts of a run: few enough for a queue and for a listing, enough for a thousand devices."""
BLOCK_RECORDS = 4000
"""Records after which a block is full, whatever the number of images."""
_ENTRY = struct.Struct(">QQ")


@dataclass(frozen=True, slots=True)
class Plan:
    """What ``plan.json`` says.

    Attributes:
        mark: changes with the request, its files and the model; what was planned with another one is another run.
        model: the version that every part is refined with: a folder, a bundled name, or NAME@VERSION of the store.
        model_sha256: SHA-256 of its weights.
        units: images of the prediction file.
        records: JSON records of all units, 0 for formats that have none.
        blocks: entries of the index.
        blocks_per_part: blocks of every part but the last.
    """

    mark: str
    model: str | None
    model_sha256: str
    units: int
    records: int
    blocks: int
    blocks_per_part: int

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return -(-self.blocks // self.blocks_per_part)

    def span(self, place: Place, part: int) -> tuple[int, int, int, int]:
        """Where a part lies: (first byte, bytes, first unit, units).

        Raises:
            ConfigError: the plan has no such part.
            ConflictError: the index is not that of the plan.
        """
        if not 0 <= part < self.parts:
            raise ConfigError(
                f"part {part}",
                expected=f"a part of the plan: 0 to {self.parts - 1}",
                got=str(part),
                fix="see plan.json",
            )
        first = part * self.blocks_per_part
        last = min(first + self.blocks_per_part, self.blocks)
        start, unit = self._entry(place, first)
        end, after = self._entry(place, last)
        return start, end - start, unit, after - unit

    def read(self, place: Place, part: int) -> Iterator[Unit]:
        """The units of a part. Raises as `span` does."""
        start, length, first, units = self.span(place, part)
        name = f"plan-{self.mark}.units"
        lines = place.read_range(name, start, length).splitlines()
        if len(lines) != units:
            raise _damaged(place, name)
        for number, line in enumerate(lines, first):
            unit = Unit.from_json(json.loads(line))
            if unit.number != number:
                raise _damaged(place, name)
            yield unit

    def _entry(self, place: Place, block: int) -> tuple[int, int]:
        name = f"plan-{self.mark}.index"
        data = place.read_range(name, block * _ENTRY.size, _ENTRY.size)
        if len(data) != _ENTRY.size:
            raise _damaged(place, name)
        start, unit = _ENTRY.unpack(data)
        return start, unit

    def check_model(self, sha256: str) -> None:
        """Raises ``ModelError`` where a part would be refined with other weights than the others."""
        if sha256 != self.model_sha256:
            raise ModelError(
                "this machine has another model than the plan",
                expected=f"SHA-256 {self.model_sha256}",
                got=sha256,
                fix="run the same release everywhere, or name a version of the model store",
            )


def open_file(request: RefineRequest, within: tuple[str, ...] | None = None) -> PredictionFormat:
    """The prediction file that a request names.

    Raises:
        ConfigError, UnknownName: it lacks what its format needs, or cannot become the asked kind of result.
        NotFoundError: there is no folder of images.
    """
    paths = Paths(
        request.images, request.predictions, request.dataset, request.panoptic_dir, within,
        soft=request.soft, options=request.files,
    )  # fmt: skip
    file = open_predictions(request.task, request.format, paths)
    if not storage.is_remote(request.images) and not os.path.isdir(request.images):
        raise NotFoundError("the images", expected="a folder", got=request.images, fix="check --images")
    if request.result != "file" and not (file.has_records and file.records_are_json):
        raise ConfigError("--result", expected="a format with JSON records", got=file.name, fix="leave it out")
    if request.result == "parquet" and find_spec("pyarrow") is None:
        raise ConfigError("--result parquet", expected="pyarrow", got="none", fix="pip install pyarrow, or take jsonl")
    return file


def check_result(request: RefineRequest, file: PredictionFormat) -> None:
    """Whether a run's result can be written where the request says, before the work.

    Raises:
        ConfigError: its name is that of another form of file.
        FormatError: it is a folder where a file is to go or the other way round, or nothing can be written there.
    """
    audit = request.kind == "audit"
    folder = not audit and (file.result_is_folder or request.result != "file")
    check_target(request.out, "--out", folder=folder)
    if not folder:
        check_suffix("report.json" if audit else request.predictions, request.out, "--out")


def fingerprint(request: RefineRequest, model: str) -> str:
    """Changes whenever the request, the model, or the size or time of an input file changes."""
    stamps = []
    for address in (request.predictions, request.dataset, request.soft):
        if address and not storage.is_remote(address) and os.path.exists(address):
            stat = os.stat(address)
            stamps.append([address, stat.st_size, stat.st_mtime_ns])
        elif address and storage.is_remote(address) and storage.exists(address):
            info = storage.info(address)
            stamps.append([address, str(info.get("size")), str(info.get("ETag", info.get("LastModified")))])
    written = {"out", "result", "page_out", "page_masks", "sample"}  # of the merge: parts are the same whatever it is
    return digest(request.model_dump(mode="json", exclude=written), stamps, model)


def load_plan(place: Place) -> Plan | None:
    """The plan of a place, None when there is no whole one."""
    try:
        return Plan(**json.loads(place.read(MANIFEST) or b"{}"))
    except (TypeError, ValueError):
        return None


def check_plan(plan: Plan, mark: str, place: Place) -> Plan:
    """The plan, if it is of these inputs, settings and model. Raises ``ConflictError``."""
    if plan.mark != mark:
        raise ConflictError(
            f"{place.address}: begun with other inputs or settings",
            expected="the same inputs, settings and model",
            got="others",
            fix="take an empty --work, or run without --resume",
        )
    return plan


def make_plan(
    request: RefineRequest, file: PredictionFormat, place: Place, *, model: str | None, model_sha256: str
) -> Plan:
    """Scan the prediction file and write the plan; a whole plan of the same mark is taken as it is.

    Processes that plan at once write the same bytes, and the first manifest stays.

    Raises:
        FormatError: the prediction file cannot be used.
        ConflictError: the place holds a plan of other inputs, settings or model.
        StorageError: the place refuses.
    """
    mark = fingerprint(request, model_sha256)[:32]
    known = load_plan(place)
    if known is not None:
        return check_plan(known, mark, place)
    place.prepare()
    stem = place.scratch / f".plan-{mark}.{uuid.uuid4().hex[:12]}"
    names = [f"plan-{mark}.units", f"plan-{mark}.index"]
    made = [Path(f"{stem}.{name.rsplit('.', 1)[1]}") for name in names]
    try:
        with ExitStack() as opened:
            lines, index = (opened.enter_context(path.open("wb")) for path in made)
            units, records, blocks = _write_units(file, request.part_images, lines, index)
            for written in (lines, index):
                written.flush()
                os.fsync(written.fileno())
        for name, path in zip(names, made, strict=True):
            place.put(name, path)
        plan = Plan(mark, model, model_sha256, units, records, blocks, max(1, -(-blocks // MAX_PARTS)))
        manifest = Path(f"{stem}.json")
        made.append(manifest)
        storage.write_bytes(str(manifest), json.dumps(asdict(plan)).encode())
        place.put(MANIFEST, manifest)
    finally:
        for path in made:
            path.unlink(missing_ok=True)
    written_plan = load_plan(place)
    if written_plan is None:  # an object store keeps what is there
        raise _damaged(place, MANIFEST)
    return check_plan(written_plan, mark, place)


def _damaged(place: Place, name: str) -> ConflictError:
    return ConflictError(
        f"{place.at(name)}: damaged",
        expected="the file as the plan was written",
        got="another, or a part of it",
        fix="take an empty --work",
    )


def _write_units(file: PredictionFormat, block_units: int, lines: IO[bytes], index: IO[bytes]) -> tuple[int, int, int]:
    """Write units and index; (units, records, blocks)."""
    number = at = records = blocks = in_block = records_in_block = 0
    for unit in file.scan():
        if unit.number != number:
            raise AssertionError(f"unit {unit.name} has number {unit.number}, expected {number}")
        if not in_block:
            index.write(_ENTRY.pack(at, number))
            blocks += 1
        line = json.dumps(unit.to_json(), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        lines.write(line)
        at, number, in_block = at + len(line), number + 1, in_block + 1
        count = len(unit.source) if file.has_records else 0
        records, records_in_block = records + count, records_in_block + count
        if in_block >= block_units or records_in_block >= BLOCK_RECORDS:
            in_block = records_in_block = 0
    index.write(_ENTRY.pack(at, number))
    return number, records, blocks


def share(plan: Plan, number: int, of: int) -> range:
    """The parts of one of ``of`` tasks, as even as they can be; none where there are more tasks than parts.

    Args:
        plan: of the whole run.
        number: the task, from 0 to ``of - 1``.
        of: how many tasks there are.

    Raises:
        ConfigError: no such task.
    """
    if of < 1 or not 0 <= number < of:
        raise ConfigError("--part", expected="I/N with I from 0 to N - 1", got=f"{number}/{of}", fix="count from 0")
    return range(plan.parts * number // of, plan.parts * (number + 1) // of)


def unit_counts(plan: Plan, place: Place) -> Iterator[tuple[int, int, int]]:
    """(part, first unit, units) of every part, from one reading of the whole index."""
    data: Any = place.read(f"plan-{plan.mark}.index") or b""
    for part in range(plan.parts):
        first = part * plan.blocks_per_part
        last = min(first + plan.blocks_per_part, plan.blocks)
        unit, after = (_ENTRY.unpack_from(data, block * _ENTRY.size)[1] for block in (first, last))
        yield part, unit, after - unit
