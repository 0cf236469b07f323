"""Instances and label maps as COCO results and as panoptic segments.

Letters: H and W the image's height and width in pixels, n instances of an image, C classes.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from refiner_training.segmenters.base import Detections

MOST_COVERED = 0.5  # an instance that better ones cover by more than this gets no panoptic segment


def coco_results(
    found: Detections, image_id: int, class_ids: list[int], size: tuple[int, int], min_score: float
) -> list[dict[str, Any]]:
    """COCO results of one image: ``score`` ranks masks, ``box_score`` boxes; empty masks are left out."""
    results = []
    for mask, label, score, box_score in zip(
        found.masks(*size), found.labels.tolist(), found.mask_scores.tolist(), found.scores.tolist(), strict=True
    ):
        if box_score < min_score or mask.is_empty:
            continue
        results.append(
            {
                "image_id": image_id,
                "category_id": class_ids[label - 1],
                "bbox": mask.bbox,
                "score": score,
                "box_score": box_score,
                "segmentation": mask.to_rle(),
            }
        )
    return results


def segments_of_instances(
    found: Detections, class_ids: list[int], size: tuple[int, ...], min_score: float
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Segment ids (H, W), 0 where there is none, and their records: better masks lie on top."""
    ids = np.zeros(size, np.int32)
    segments: list[dict[str, Any]] = []
    ranked = found.picked(found.mask_scores.argsort(descending=True))
    for mask, label, score in zip(
        ranked.masks(*size), ranked.labels.tolist(), ranked.mask_scores.tolist(), strict=True
    ):
        if score < min_score or mask.is_empty:
            continue
        h, w = mask.crop.shape
        place = ids[mask.y : mask.y + h, mask.x : mask.x + w]
        free = (mask.crop > 0) & (place == 0)
        if free.sum() <= (1 - MOST_COVERED) * mask.area:
            continue
        place[free] = len(segments) + 1
        segments.append(_segment(ids, len(segments) + 1, class_ids[label - 1], score, True))
    return ids, segments


def segments_of_labels(
    probabilities: NDArray[np.float32], things: tuple[int, ...]
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Segments of class probabilities (C, H, W): connected pieces of things, one segment a class of stuff.

    A segment's score is its mean probability.
    """
    labels = probabilities.argmax(0)
    ids = np.zeros(labels.shape, np.int32)
    segments: list[dict[str, Any]] = []
    for label in np.unique(labels).tolist():
        pieces = (labels == label).astype(np.int32)
        count = 2
        if label in things:
            count, pieces = cv2.connectedComponents(pieces.astype(np.uint8), connectivity=8)
        for piece in range(1, count):
            where = pieces == piece
            ids[where] = len(segments) + 1
            score = float(probabilities[label][where].mean())
            segments.append(_segment(ids, len(segments) + 1, int(label), score, label in things))
    return ids, segments


def _segment(ids: NDArray[np.int32], number: int, category: int, score: float, thing: bool) -> dict[str, Any]:
    where = (ids == number).astype(np.uint8)
    x, y, width, height = cv2.boundingRect(where)
    return {
        "id": number,
        "category_id": category,
        "score": round(score, 6),
        "area": int(where.sum()),
        "bbox": [x, y, width, height],
        "iscrowd": 0,
        "isthing": int(thing),
    }
