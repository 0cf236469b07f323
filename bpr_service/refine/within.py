"""Refined masks and maps that change nothing where the image holds no data.

Letters: H, W are the image's size, px.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import MaskError
from bpr_service.masks.mask import Mask

Valid = NDArray[np.bool_]
"""(H, W): the pixels that hold data."""
NO_DATA = "it changes only where the image holds no data"


def as_valid(valid: Any, size: tuple[int, int]) -> Valid | None:
    """The pixels of an image of ``size`` (H, W) that hold data; None where all do.

    Raises:
        MaskError: it is of another size.
    """
    if valid is None:
        return None
    found = np.asarray(valid)
    if found.shape != size:
        raise MaskError(
            "the mask of valid pixels is of another size than the image",
            expected=f"{size[0]} x {size[1]} (height x width)",
            got=" x ".join(map(str, found.shape)) or "a single number",
            fix="scale it to the image, with nearest-neighbour",
        )
    here: Valid = found != 0
    return here


def mask_within(refined: Mask, coarse: Mask, valid: Valid) -> tuple[Mask, int, int]:
    """`refined` with the pixels of `coarse` where there is no data, and how many pixels it has more and fewer."""
    boxes = np.array([mask.box for mask in (refined, coarse) if mask.area] or [(0, 0, 0, 0)])
    (x0, y0), (x1, y1) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
    old = coarse.window(x0, y0, x1, y1)
    new = np.where(valid[y0:y1, x0:x1], refined.window(x0, y0, x1, y1), old)
    added, removed = int((new > old).sum()), int((new < old).sum())
    return Mask.from_window(new, x0, y0, coarse.height, coarse.width), added, removed


def map_within(
    refined: NDArray[Any], coarse: NDArray[Any], valid: Valid, labels: Sequence[int]
) -> tuple[NDArray[Any], list[tuple[int, int]]]:
    """The (H, W) map with the labels of `coarse` where there is no data, and the pixels each of ``labels`` won and lost."""
    new = np.where(valid, refined, coarse)
    differ = new != coarse
    won, lost = (_counts(array[differ]) for array in (new, coarse))
    return new, [(won.get(label, 0), lost.get(label, 0)) for label in labels]


def _counts(labels: NDArray[Any]) -> dict[int, int]:
    found, counts = np.unique(labels, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
