"""Adapters from and to supervision's detections; n of them, H, W their image's height and width in px."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bpr_service.errors import InputError
from bpr_service.masks.mask import Mask

if TYPE_CHECKING:
    import supervision

    from bpr_service.client.messages import Refined


def from_detections(detections: supervision.Detections) -> list[dict[str, Any]]:
    """Entries for `Client.refine` from supervision's detections; `InputError` where they have no masks."""
    if detections.mask is None:
        raise InputError(
            "detections without masks", expected="Detections.mask (n, H, W)", got="None", fix="segment first"
        )
    entries = []
    for index, mask in enumerate(detections.mask):
        entry: dict[str, Any] = {"id": index, "segmentation": Mask.from_array(np.asarray(mask)).to_rle()}
        if detections.class_id is not None:
            entry["category_id"] = int(detections.class_id[index])
        if detections.confidence is not None:
            entry["score"] = float(detections.confidence[index])
        entries.append(entry)
    return entries


def to_detections(refined: Refined, detections: supervision.Detections) -> supervision.Detections:
    """``detections`` with the refined masks and their boxes; everything else stays. Same order, same number."""
    import copy

    if len(refined.masks) != len(detections):
        raise InputError("another number of masks", expected=str(len(detections)), got=str(len(refined.masks)))
    out = copy.copy(detections)
    if refined.masks:
        out.mask = np.stack([mask.to_array().astype(bool) for mask in refined.masks])
        boxes = np.array([mask.bbox for mask in refined.masks], np.float32)
        boxes[:, 2:] += boxes[:, :2]
        empty = np.array([mask.area == 0 for mask in refined.masks])
        out.xyxy = np.where(empty[:, None], detections.xyxy, boxes)
    return out
