"""One unit of a prediction file through the refiner: read, refine, encode. Every entry point that has files comes here.

Letters: H, W are the image's height and width in pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bpr_service import storage
from bpr_service.errors import FormatError, InputError
from bpr_service.formats.base import (
    Encoded,
    InstancePrediction,
    PanopticPrediction,
    Prediction,
    PredictionFormat,
    Unit,
)
from bpr_service.formats.records.record_file import is_crowd
from bpr_service.masks.images import ReadImage, open_image

if TYPE_CHECKING:
    from bpr_service.masks.mask import Mask
    from bpr_service.refine.reassemble import Valid
    from bpr_service.refine.refiner import Refiner
    from bpr_service.results import MaskReport, RefineResult


@dataclass(slots=True)
class RefinedUnit:
    """What became of a unit.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        before, after: the prediction as it came, and with its refined masks.
        reports: one a mask or label that the refiner was given.
        failed: one line for each mask that cannot be read.
        skipped: how many masks were left alone, by reason.
        encoded: the unit as bytes, in the form that it came in.
        warnings: what a person should know.
        simplified: sums over masks where outlines were simplified: masks, vertices before and after, F lost at 1 px.
    """

    image: NDArray[np.uint8]
    before: Prediction
    after: Prediction
    reports: Sequence[MaskReport]
    failed: list[str]
    skipped: dict[str, int]
    encoded: Encoded
    warnings: list[str] = field(default_factory=list)
    simplified: dict[str, float] = field(default_factory=dict)


def refine_file_unit(
    refiner: Refiner, file: PredictionFormat, unit: Unit, ignore_label: int | None = None
) -> RefinedUnit:
    """Refine one unit of a prediction file.

    Args:
        refiner: what refines it.
        file: the predictions.
        unit: one image of it.
        ignore_label: of label maps, the label that is never rewritten; None takes the format's.

    Raises:
        BprError: image or predictions cannot be used; the message names the file.
    """
    read, before, warnings = read_unit(file, unit, refiner.config.max_pixels)
    image, valid = read.pixels, read.valid
    failed: list[str] = []
    simplified: dict[str, float] = {}
    skipped: Counter[str] = Counter()
    after: Prediction
    if isinstance(before, InstancePrediction):
        masks = before.masks
        if file.soften is not None:
            before, masks, told = file.soften(unit, before)
            warnings += told
        failed = [item.problem for item in before.instances if item.problem]
        skipped.update(item.skipped for item in before.instances if item.skipped)
        result = refiner.refine(image, masks, valid=valid) if masks else None
        reports: Sequence[MaskReport] = result.reports if result else []
        after = before.with_masks(_refined(result, before.masks)) if result else before
        if file.options.simplify is not None:
            after, simplified = _simplified(after, file.options.simplify)
    elif isinstance(before, PanopticPrediction):
        after, reports, more = refine_segments(refiner, image, before, file.options.crowds, valid)
        warnings += [f"{unit.name}: {line}" for line in more]
        skipped["vanished"] += len(more)
    else:
        ignore = before.ignore_label if ignore_label is None else ignore_label
        warnings += before.warnings if ignore_label is None else ()
        semantic = refiner.refine_semantic(image, before.soft or before.label_map, ignore, valid=valid)
        reports, after = semantic.reports, before.with_label_map(semantic.label_map)
    encoded = file.encode(unit, after)
    warnings += encoded.warnings
    return RefinedUnit(image, before, after, reports, failed, dict(+skipped), encoded, warnings, simplified)


def _refined(result: RefineResult, hard: Sequence[Mask]) -> list[Mask]:
    """The refined masks; those that are unchanged as the file has them, where probabilities stood for them."""
    pairs = zip(result.masks, result.reports, hard, strict=True)
    return [mask if report.status == "refined" else old for mask, report, old in pairs]


def _simplified(after: InstancePrediction, tolerance_px: float) -> tuple[InstancePrediction, dict[str, float]]:
    """The instances with outlines of few corners, and what that cost; masks of one image share their edges."""
    from bpr_service.masks.encoding import parts_of
    from bpr_service.masks.simplify import boundary_agreement, corners_of, drawn, simplify_masks

    masks = after.masks
    found = simplify_masks(masks, tolerance_px)
    lost = [
        1.0 - boundary_agreement(mask, drawn(parts, mask.height, mask.width)) if parts else 0.0
        for mask, parts in zip(masks, found, strict=True)
    ]
    new = iter(found)
    items = [item if item.mask is None else replace(item, parts=next(new) or None) for item in after.instances]
    return InstancePrediction(tuple(items)), {
        "masks": len(masks),
        "vertices_before": sum(corners_of(parts_of(mask)) for mask in masks),
        "vertices_after": sum(map(corners_of, found)),
        "f_lost_at_1px": round(sum(lost), 6),
    }


def read_unit(file: PredictionFormat, unit: Unit, max_pixels: int) -> tuple[ReadImage, Prediction, list[str]]:
    """The image of a unit, its prediction, and what a person should know of the two.

    Raises:
        BprError: image or predictions cannot be used; the message names the file.
    """
    if unit.problem:
        raise FormatError(unit.problem)
    image = _read(file.image_path(unit), file, max_pixels)
    size = (image.pixels.shape[0], image.pixels.shape[1])
    before = file.read(unit, size)
    warnings = [f"{unit.image or unit.name}: {line}" for line in image.warnings]
    if unit.size is not None and unit.size != size:
        stated = f"{unit.size[0]} x {unit.size[1]}"
        warnings.append(f"{unit.image}: stated as {stated} (height x width), is {size[0]} x {size[1]}")
    return image, before, warnings


def _read(address: str, file: PredictionFormat, max_pixels: int) -> ReadImage:
    """The image as the format and its options have it; an error names its file."""
    options = file.options
    source: Any = storage.read_bytes(address) if storage.is_remote(address) else Path(address)
    try:
        return open_image(
            source, max_pixels=max_pixels, exif=file.orientation, page=options.page, window=options.window,
            no_data=options.no_data,
        )  # fmt: skip
    except InputError as error:
        if not storage.is_remote(address):
            raise
        raise FormatError(f"{address}: {error}") from error


def refine_segments(
    refiner: Refiner, image: NDArray[np.uint8], before: PanopticPrediction, crowds: bool, valid: Valid | None = None
) -> tuple[PanopticPrediction, Sequence[MaskReport], list[str]]:
    """The refined segments; crowds keep their pixels and gain none, unless ``crowds`` are asked for."""
    result = refiner.refine_panoptic(image, before.segment_map, before.segments_info, valid=valid)
    refined, infos = result.segment_map, result.segments_info
    alone = [info["id"] for info in before.segments_info if is_crowd(info) and not crowds]
    if alone:
        theirs = np.isin(before.segment_map, alone) | np.isin(refined, alone)
        refined = np.where(theirs, before.segment_map, refined)
    left = set(np.unique(refined).tolist())
    infos = [info for info in before.segments_info if info["id"] in left]
    lost = [f"segment {info['id']} has no pixel any more and was left out"
            for info in before.segments_info if info["id"] not in left]  # fmt: skip
    return before.with_segments(refined, infos), result.reports, lost
