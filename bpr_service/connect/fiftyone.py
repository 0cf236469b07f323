"""FiftyOne's samples: ``Detections`` whose masks lie in relative boxes; H, W the image's height and width in px.

Source: docs.voxel51.com, ``fiftyone.core.labels.Detection``: ``bounding_box`` is [left, top, width, height] as shares
of the image, ``mask`` a binary array of what lies in it, of any size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.connect.common import Refines, refined
from bpr_service.errors import InputError
from bpr_service.masks.images import open_image
from bpr_service.masks.mask import Mask


def refine_sample(refiner: Refines, sample: Any, field: str = "predictions", into: str | None = None) -> Any:
    """The sample, with a field of refined detections; save it when it is to be kept.

    Args:
        refiner: a `bpr_service.Refiner` or a client of a server.
        sample: of a FiftyOne data set.
        field: its ``Detections``; those without a mask stay as they are.
        into: the field that takes the refined ones; None: the same.

    Raises:
        InputError: a mask is no array (one on disk is not read).
    """
    image = open_image(sample.filepath).pixels
    size = (image.shape[0], image.shape[1])
    labels = sample[field].copy()
    found = [each for each in labels.detections if each.mask is not None]
    masks = [_placed(np.asarray(each.mask), each.bounding_box, size) for each in found]
    for each, mask in zip(found, refined(refiner, image, masks), strict=True):
        if mask.area == 0:
            continue  # a detection cannot be empty; it stays as it was
        x, y, w, h = (int(value) for value in mask.bbox)
        each.bounding_box = [x / size[1], y / size[0], w / size[1], h / size[0]]
        each.mask = mask.to_array()[y : y + h, x : x + w].astype(bool)
    sample[into or field] = labels
    return sample


def _placed(part: NDArray[Any], box: list[float], size: tuple[int, int]) -> Mask:
    import cv2

    if part.ndim != 2 or 0 in part.shape:
        raise InputError("Detection.mask", expected="an array (h, w)", got=f"shape {part.shape}")
    height, width = size
    x, y = round(box[0] * width), round(box[1] * height)
    w, h = max(round(box[2] * width), 1), max(round(box[3] * height), 1)
    window = (part != 0).astype(np.uint8)
    if window.shape != (h, w):
        window = np.asarray(cv2.resize(window, (w, h), interpolation=cv2.INTER_NEAREST))
    x0, y0 = max(x, 0), max(y, 0)
    window = np.ascontiguousarray(window[y0 - y : max(height - y, 0), x0 - x : max(width - x, 0)])
    return Mask.from_window(window, min(x0, width), min(y0, height), height, width)
