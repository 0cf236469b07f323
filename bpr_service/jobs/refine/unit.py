"""One unit of a prediction file, refined: read, refine, encode; whatever is wrong with it stays its own problem."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bpr_service import storage
from bpr_service.errors import BprError, DeviceError, FormatError, InputError
from bpr_service.formats import Encoded, InstancePrediction, PanopticPrediction, PredictionFormat, Unit
from bpr_service.masks.images import read_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bpr_service.refine.refiner import Refiner
    from bpr_service.refine.tasks import MaskReport


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


def refine_unit(refiner: Refiner, file: PredictionFormat, unit: Unit, ignore_label: int | None) -> Outcome:
    """Refine one unit. Bad input gives an outcome that says so and the unit as it was.

    Raises:
        DeviceError: the device failed, which is not the unit's fault.
        OSError: the storage failed (a full disk, a lost connection).
    """
    started = time.perf_counter()
    outcome = Outcome(unit.number, unit.image or unit.name)
    try:
        if unit.problem:
            raise FormatError(unit.problem)
        outcome.encoded = _refine(refiner, file, unit, ignore_label, outcome)
    except (DeviceError, OSError):
        raise
    except Exception as error:
        why = str(error) if isinstance(error, BprError) else f"{type(error).__name__}: {error}"
        outcome = Outcome(unit.number, unit.image or unit.name, failed=[f"{unit.name}: {why}"])
        outcome.encoded = untouched(file, unit)
    outcome.warnings = outcome.encoded.warnings
    outcome.ms = round((time.perf_counter() - started) * 1000, 3)
    return outcome


def _image(address: str) -> NDArray[np.uint8]:
    """The (H, W, 3) image; an error names its file."""
    if not storage.is_remote(address):
        return read_image(Path(address))
    data = storage.read_bytes(address)
    try:
        return read_image(data)
    except InputError as error:
        raise FormatError(f"{address}: {error}") from error


def untouched(file: PredictionFormat, unit: Unit) -> Encoded:
    """The unit as it was; empty where not even its bytes can be read."""
    try:
        return file.untouched(unit)
    except BprError:
        return Encoded()


def _refine(
    refiner: Refiner, file: PredictionFormat, unit: Unit, ignore_label: int | None, outcome: Outcome
) -> Encoded:
    image = _image(file.image_path(unit))
    prediction = file.read(unit)
    if isinstance(prediction, InstancePrediction):
        outcome.failed = [item.problem for item in prediction.instances if item.problem]
        if not prediction.masks:
            return file.untouched(unit)
        refined = refiner.refine(image, prediction.masks)
        _count(refined.reports, outcome)
        return file.encode(unit, prediction.with_masks(refined.masks))
    if isinstance(prediction, PanopticPrediction):
        panoptic = refiner.refine_panoptic(image, prediction.segment_map, prediction.segments_info)
        _count(panoptic.reports, outcome)
        for info in panoptic.vanished:
            outcome.unchanged["vanished"] = outcome.unchanged.get("vanished", 0) + 1
            outcome.warnings.append(f"{unit.name}: segment {info['id']} has no pixel any more and was left out")
        encoded = file.encode(unit, prediction.with_segments(panoptic.segment_map, panoptic.segments_info))
        encoded.warnings += outcome.warnings
        return encoded
    ignore = prediction.ignore_label if ignore_label is None else ignore_label
    semantic = refiner.refine_semantic(image, prediction.label_map, ignore)
    _count(semantic.reports, outcome)
    return file.encode(unit, prediction.with_label_map(semantic.label_map))


def _count(reports: Sequence[MaskReport], outcome: Outcome) -> None:
    outcome.refined = sum(report.status == "refined" for report in reports)
    reasons = Counter(report.reason or "" for report in reports if report.status == "unchanged")
    outcome.unchanged = dict(sorted(reasons.items()))
    outcome.patches = sum(report.patches for report in reports)
    outcome.changed_px = sum(report.changed_px for report in reports)
