"""supervision's `Detections`; n of them, H, W their image's height and width in px."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from bpr_service.connect.common import Refines, boxes_of
from bpr_service.errors import InputError
from bpr_service.masks.mask import Mask

if TYPE_CHECKING:
    import supervision


def refine_detections(refiner: Refines, image: Any, detections: supervision.Detections) -> supervision.Detections:
    """Detections with refined masks (n, H, W) and their boxes; an empty frame comes back as it is.

    Raises:
        InputError: there are detections, but they have no masks.
    """
    if not len(detections):
        return detections
    return to_detections(refiner.refine(image, _masks(detections)), detections)


def from_detections(detections: supervision.Detections) -> list[dict[str, Any]]:
    """Entries for `Client.refine` from supervision's detections; `InputError` where they have no masks."""
    entries = []
    for index, mask in enumerate(_masks(detections) if len(detections) else []):
        entry: dict[str, Any] = {"id": index, "segmentation": mask.to_rle()}
        if detections.class_id is not None:
            entry["category_id"] = int(detections.class_id[index])
        if detections.confidence is not None:
            entry["score"] = float(detections.confidence[index])
        entries.append(entry)
    return entries


def _masks(detections: supervision.Detections) -> list[Mask]:
    if detections.mask is None:
        raise InputError(
            "detections without masks", expected="Detections.mask (n, H, W)", got="None", fix="segment first"
        )
    return [Mask.from_array(np.asarray(mask)) for mask in detections.mask]


def to_detections(refined: Any, detections: supervision.Detections) -> supervision.Detections:
    """``detections`` with the refined masks and their boxes; everything else stays. Same order, same number."""
    if len(refined.masks) != len(detections):
        raise InputError("another number of masks", expected=str(len(detections)), got=str(len(refined.masks)))
    out = copy.copy(detections)
    if refined.masks:
        out.mask = np.stack([mask.to_array().astype(bool) for mask in refined.masks])
        out.xyxy = boxes_of(refined.masks, detections.xyxy)
    return out
