"""torchvision's detection dictionary, as `MaskRCNN` gives it; n detections, H, W the image's height and width in px.

Source: pytorch.org, ``torchvision.models.detection.mask_rcnn``: ``boxes`` (n, 4), ``labels``, ``scores``, ``masks``
(n, 1, H, W) of probabilities.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bpr_service.connect.common import Refines, boxes_of, refined
from bpr_service.errors import InputError
from bpr_service.masks.mask import Mask


def refine_target(refiner: Refines, image: Any, target: dict[str, Any]) -> dict[str, Any]:
    """The dictionary with refined ``masks``, 0 and 1 in the dtype and shape that came, and their ``boxes``.

    Raises:
        InputError: it has no ``masks`` of shape (n, 1, H, W) or (n, H, W).
    """
    import torch

    masks = target.get("masks")
    if not isinstance(masks, torch.Tensor) or masks.ndim not in (3, 4):
        got = getattr(masks, "shape", type(masks).__name__)
        raise InputError("target['masks']", expected="a tensor (n, 1, H, W) or (n, H, W)", got=str(got))
    frames = masks.detach().cpu().reshape(-1, *masks.shape[-2:]).numpy()
    new = refined(refiner, image, [Mask.from_array(frame) for frame in frames])
    if not new:
        return dict(target)
    array = torch.from_numpy(np.stack([mask.to_array() for mask in new])).reshape(masks.shape)
    out = {**target, "masks": array.to(masks)}
    if "boxes" in target:
        boxes = target["boxes"]
        out["boxes"] = torch.from_numpy(boxes_of(new, boxes.detach().cpu().numpy())).to(boxes)
    return out
