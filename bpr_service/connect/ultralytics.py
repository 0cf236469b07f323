"""ultralytics' `Results`; n of them, H, W the image's height and width, h, w those of the network's, all in px.

Source: ultralytics, ``engine/results.py`` (`Results`, `Masks`, `Boxes`) and ``utils/ops.py`` (`scale_masks`).
"""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.connect.common import Refines, boxes_of, refined
from bpr_service.masks.mask import Mask


def refine_results(refiner: Refines, results: Any, image: Any = None) -> Any:
    """A `Results` whose masks (n, H, W) are refined, and its boxes with them; scores, classes and tracks stay.

    Args:
        refiner: a `bpr_service.Refiner` or a client of a server.
        results: with or without masks; without, it comes back as it is.
        image: RGB; None takes the picture that ``results`` keeps.
    """
    if results.masks is None or not len(results.masks):
        return results
    image = np.ascontiguousarray(results.orig_img[:, :, ::-1]) if image is None else image  # it keeps BGR
    tensor = results.masks.data
    frames = [_on_image(frame, results.orig_shape) for frame in tensor.detach().float().cpu().numpy()]
    new = refined(refiner, image, [Mask.from_array(frame) for frame in frames])
    out = copy(results)
    rows = None
    if results.boxes is not None:
        rows = results.boxes.data.clone()
        boxes = boxes_of(new, results.boxes.xyxy.detach().cpu().numpy())
        rows[:, :4] = rows.new_tensor(boxes.tolist())
    out.update(boxes=rows, masks=tensor.new_tensor(np.stack([mask.to_array() for mask in new])))
    return out


def _on_image(frame: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) of a mask (h, w) of the network's letterboxed picture."""
    import cv2

    (h, w), (height, width) = frame.shape, shape
    if (h, w) == (height, width):
        return frame > 0.5
    gain = min(h / height, w / width)
    inner_h, inner_w = max(round(height * gain), 1), max(round(width * gain), 1)
    top, left = round((h - inner_h) / 2 - 0.1), round((w - inner_w) / 2 - 0.1)
    inner = np.ascontiguousarray(frame[top : top + inner_h, left : left + inner_w], np.float32)
    return np.asarray(cv2.resize(inner, (width, height), interpolation=cv2.INTER_LINEAR)) > 0.5
