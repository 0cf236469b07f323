"""One unit of an annotation file, audited: every mask that can be read, and what was measured of it.

Letters: H, W are the picture's height and width in px; n masks, M measures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.audit.kinds import EMPTY, TINY, TWICE, TWICE_IOU, has_tiny_piece
from bpr_service.audit.measures import INPUTS, Neighbours, measure
from bpr_service.audit.task import Seen, see
from bpr_service.audit.where import where_off
from bpr_service.formats import InstancePrediction, PanopticPrediction, PredictionFormat, Unit
from bpr_service.formats.base import Prediction
from bpr_service.formats.records.record_file import is_crowd
from bpr_service.formats.refining import read_unit
from bpr_service.masks.mask import Mask
from bpr_service.refine.labels.regions import LabelRegions
from bpr_service.refine.refiner import Refiner

ANNOTATORS = ("annotator", "annotator_id", "annotated_by", "created_by", "worker_id", "user_id")
"""Keys under which files name who drew a mask; the first that a record has counts."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A mask as its file has it. ``position`` finds it again in its unit."""

    position: int
    id: Any
    category: Any
    mask: Mask
    record: dict[str, Any]


@dataclass(slots=True)
class AuditedUnit:
    """What was found in a unit.

    Attributes:
        rows: of each mask what the report says of it, but for what the whole data set decides.
        inputs: (n, M) float32 of `INPUTS`; NaN for a mask that the refiner cannot see: it is empty, or fills the
            picture.
        failed: one line for each mask that cannot be read.
        skipped: how many masks were left alone, by reason.
        warnings: what a person should know.
    """

    rows: list[dict[str, Any]]
    inputs: NDArray[np.float32]
    failed: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def audit_file_unit(
    refiner: Refiner, file: PredictionFormat, unit: Unit, ignore_label: int | None = None
) -> AuditedUnit:
    """Audit one unit of an annotation file.

    Args:
        refiner: of a model that can audit.
        file: the annotations.
        unit: one image of it.
        ignore_label: of label maps, the label that is no mask; None takes the format's.

    Raises:
        BprError: image or annotations cannot be used; the message names the file.
    """
    read, before, warnings = read_unit(file, unit, refiner.config.max_pixels)
    image = read.pixels
    masks, failed, skipped = listed(file, before, ignore_label)
    rows, inputs = audit_masks(refiner, image, masks)
    for row in rows:
        row["key"][0] = unit.number
        row["image_id"], row["image"] = _image_id(unit), unit.image
    return AuditedUnit(rows, inputs, failed, skipped, warnings)


def _image_id(unit: Unit) -> int | str:
    return int(unit.name) if unit.name.isdecimal() and str(int(unit.name)) == unit.name else unit.name


def listed(
    file: PredictionFormat, before: Prediction, ignore_label: int | None
) -> tuple[list[Listed], list[str], dict[str, int]]:
    """The masks of a prediction; what cannot be read; how many were left alone, by reason."""
    if isinstance(before, InstancePrediction):
        failed = [item.problem for item in before.instances if item.problem]
        skipped = Counter(item.skipped for item in before.instances if item.skipped)
        found = []
        for item in before.instances:
            record = item.record if isinstance(item.record, dict) else {}
            if item.mask is not None:
                category = record.get("category_id", item.category if item.category >= 0 else None)
                found.append(Listed(item.position, record.get("id", item.position), category, item.mask, record))
        return found, failed, dict(skipped)
    if isinstance(before, PanopticPrediction):
        infos = {info["id"]: info for info in before.segments_info}
        crowds = {i for i, info in infos.items() if is_crowd(info) and not file.options.crowds}
        regions = LabelRegions(before.segment_map, 0)
        found = [
            Listed(label, label, infos[label].get("category_id"), mask, infos[label])
            for label, mask in zip(regions.labels, regions, strict=True)
            if label not in crowds
        ]
        return found, [], {"a crowd": len(crowds)} if crowds else {}
    ignore = before.ignore_label if ignore_label is None else ignore_label
    ids = file.task == "instance"  # a picture of instance ids: 0 is background, and an id is no class
    if ids:
        ignore = 0
    regions = LabelRegions(before.label_map, ignore)
    whole = zip(regions.labels, regions, strict=True)
    return [Listed(label, label, None if ids else label, mask, {}) for label, mask in whole], [], {}


def audit_masks(
    refiner: Refiner, image: NDArray[np.uint8], masks: Sequence[Listed]
) -> tuple[list[dict[str, Any]], NDArray[np.float32]]:
    """Rows and inputs, as of `AuditedUnit`, of all masks of an (H, W, 3) uint8 RGB picture."""
    plain = [item.mask for item in masks]
    return measured(image, masks, see(refiner, image, plain) if plain else [])


def measured(
    image: NDArray[np.uint8],
    masks: Sequence[Listed],
    seen: Sequence[Seen | None],
    go_on: Callable[[], None] = lambda: None,
) -> tuple[list[dict[str, Any]], NDArray[np.float32]]:
    """Rows and inputs of masks that the refiner has seen. `go_on` is called before each; what it raises ends it."""
    nearby = Neighbours([item.mask for item in masks])
    inputs = np.full((len(masks), len(INPUTS)), np.nan, np.float32)
    rows = []
    for i, (item, one) in enumerate(zip(masks, seen, strict=True)):
        go_on()
        overlap = nearby.overlap(i)
        row = _row(item, masks[overlap[1]] if overlap[0] >= TWICE_IOU else None)
        rows.append(row)
        if one is None or item.mask.is_empty:
            continue
        inputs[i], found = measure(image, item.mask, one.refined, one.features, overlap)
        row["where"] = where_off(item.mask, found)
        row["replacement"] = _replacement(item.mask, one)
    return rows, inputs


def _row(item: Listed, like: Listed | None) -> dict[str, Any]:
    mask = item.mask
    kinds = [*([TWICE] if like else []), *([EMPTY] if mask.is_empty else []), *([TINY] if has_tiny_piece(mask) else [])]
    row = {
        "key": [0, item.position],
        "id": item.id,
        "image_id": None,
        "image": "",
        "category_id": item.category,
        "size": [mask.height, mask.width],
        "bbox": [int(v) for v in mask.bbox],
        "area": mask.area,
        "kinds": kinds,
        "where": [],
        "replacement": None,
    }
    annotator = next((item.record[key] for key in ANNOTATORS if item.record.get(key) is not None), None)
    if annotator is not None:
        row["annotator"] = str(annotator)
    if like is not None:
        row["like"] = like.id
    return row


def _replacement(mask: Mask, seen: Seen) -> dict[str, Any] | None:
    """The refined mask as COCO RLE, where it is another and expected to be better."""
    refined = seen.refined
    if not seen.accepted or refined.is_empty:
        return None
    same = refined.box == mask.box and np.array_equal(refined.window(*refined.box), mask.window(*mask.box))
    return None if same else refined.to_rle()
