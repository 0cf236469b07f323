"""What the image processors of transformers make of a segmenter's output; H, W the image's height and width in px.

Source: huggingface.co/docs/transformers, ``post_process_semantic_segmentation`` (a map of labels),
``post_process_instance_segmentation`` and ``post_process_panoptic_segmentation`` (``segmentation`` and
``segments_info``; pixels of no segment are -1 or 0).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bpr_service.connect.common import refined
from bpr_service.masks.mask import Mask


def refine_segmentation(refiner: Any, image: Any, segmentation: Any, ignore_label: int | None = None) -> Any:
    """A tensor or dictionary as it came, with refined pixels.

    Args:
        refiner: a `bpr_service.Refiner`.
        image: the picture that was segmented.
        segmentation: one image's item of the list that a ``post_process_..._segmentation`` gives: a tensor (H, W) of
            labels; ``{"segmentation", "segments_info"}`` with a tensor (H, W) of ids, or (n, H, W) of binary maps.
        ignore_label: of a map of labels: one that is never rewritten.
    """
    if not isinstance(segmentation, dict):
        labels = segmentation.detach().cpu().numpy()
        new = refiner.refine_semantic(image, labels.astype(np.uint16), ignore_label).label_map
        return segmentation.new_tensor(new.astype(labels.dtype))
    tensor = segmentation["segmentation"]
    if tensor is None or not segmentation["segments_info"]:
        return dict(segmentation)
    ids = tensor.detach().cpu().numpy()
    if ids.ndim == 3:
        masks = refined(refiner, image, [Mask.from_array(frame != 0) for frame in ids])
        new = np.stack([mask.to_array() for mask in masks])
        return {**segmentation, "segmentation": tensor.new_tensor(new.astype(ids.dtype))}
    infos = segmentation["segments_info"]
    numbers = np.zeros(ids.shape, np.int32)
    for number, info in enumerate(infos, 1):
        numbers[ids == info["id"]] = number
    there = [n for n in range(1, len(infos) + 1) if (numbers == n).any()]
    asked = [{"id": n, "category_id": int(infos[n - 1].get("label_id", 0))} for n in there]
    after = refiner.refine_panoptic(image, numbers, asked).segment_map
    void = ids[numbers == 0][0] if (numbers == 0).any() else -1
    back = np.array([void, *(info["id"] for info in infos)], ids.dtype)
    return {**segmentation, "segmentation": tensor.new_tensor(back[after])}
