"""One unit of a prediction file, refined: read, refine, encode; whatever is wrong with it stays its own problem."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from bpr_service.audit.unit import audit_file_unit
from bpr_service.errors import OWN_FAULTS, BprError, DeviceError, StorageError
from bpr_service.formats import Encoded, PredictionFormat, Unit
from bpr_service.formats.refining import refine_file_unit

if TYPE_CHECKING:
    from bpr_service.refine.refiner import Refiner


FOUND, MEASURED = "masks.jsonl", "measures.f32"


@dataclass(slots=True)
class Outcome:
    """What became of a unit. ``failed`` says, item by item, what could not be refined and is as it was."""

    number: int
    image: str
    refined: int = 0
    unchanged: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    patches: int = 0
    changed_px: int = 0
    simplified: dict[str, float] = field(default_factory=dict)
    ms: float = 0.0
    encoded: Encoded = field(default_factory=Encoded)

    def to_json(self) -> dict[str, Any]:
        """All but the encoded bytes."""
        encoded, self.encoded = self.encoded, Encoded()
        try:
            values = asdict(self)
        finally:
            self.encoded = encoded
        del values["encoded"]
        return values


Work = Callable[["Refiner", PredictionFormat, Unit, "int | None", Outcome], None]


def refine_unit(refiner: Refiner, file: PredictionFormat, unit: Unit, ignore_label: int | None) -> Outcome:
    """Refine one unit. Bad input gives an outcome that says so and the unit as it was.

    Raises:
        DeviceError: the device failed, which is not the unit's fault.
        StorageError, OSError: the storage failed (a full disk, a lost connection, a bucket that refuses).
    """
    return _done(_refine, refiner, file, unit, ignore_label)


def audit_unit(refiner: Refiner, file: PredictionFormat, unit: Unit, ignore_label: int | None) -> Outcome:
    """Audit one unit: the outcome has the files `FOUND` and `MEASURED`. Raises as `refine_unit`."""
    return _done(_audit, refiner, file, unit, ignore_label)


def _done(work: Work, refiner: Refiner, file: PredictionFormat, unit: Unit, ignore_label: int | None) -> Outcome:
    started = time.perf_counter()
    outcome = Outcome(unit.number, unit.image or unit.name)
    try:
        work(refiner, file, unit, ignore_label, outcome)
    except (DeviceError, StorageError, OSError):
        raise
    except Exception as error:
        why = str(error) if isinstance(error, BprError) else f"{type(error).__name__}: {error}"
        outcome = Outcome(unit.number, unit.image or unit.name, failed=[f"{unit.name}: {why}"])
        outcome.encoded = untouched(file, unit)
    outcome.ms = round((time.perf_counter() - started) * 1000, 3)
    return outcome


def untouched(file: PredictionFormat, unit: Unit) -> Encoded:
    """The unit as it was; empty where not even its bytes can be read."""
    try:
        return file.untouched(unit)
    except OWN_FAULTS:
        return Encoded()


def _audit(refiner: Refiner, file: PredictionFormat, unit: Unit, ignore_label: int | None, outcome: Outcome) -> None:
    audited = audit_file_unit(refiner, file, unit, ignore_label)
    lines = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in audited.rows)
    outcome.encoded = Encoded(files={FOUND: lines, MEASURED: audited.inputs.tobytes()})
    outcome.refined, outcome.unchanged = len(audited.rows), audited.skipped
    outcome.failed, outcome.warnings = audited.failed, audited.warnings


def _refine(refiner: Refiner, file: PredictionFormat, unit: Unit, ignore_label: int | None, outcome: Outcome) -> None:
    refined = refine_file_unit(refiner, file, unit, ignore_label)
    reports = refined.reports
    reasons = Counter(report.reason or "" for report in reports if report.status == "unchanged")
    reasons.update(refined.skipped)
    outcome.encoded, outcome.failed, outcome.warnings = refined.encoded, refined.failed, refined.warnings
    outcome.simplified = refined.simplified
    outcome.refined = sum(report.status == "refined" for report in reports)
    outcome.unchanged = dict(sorted(reasons.items()))
    outcome.patches = sum(report.patches for report in reports)
    outcome.changed_px = sum(report.changed_px for report in reports)
