"""Label maps of probabilities: what a segmentation network gives before its argmax, and a map written back into it.

Letters: C is the number of classes; H, W are the image's height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import MAX_PIXELS
from bpr_service.errors import MaskError
from bpr_service.masks.arrays import probabilities, sure
from bpr_service.masks.images import check_pixels

_BAND_PX = 64
"""Rows that are turned into probabilities at a time, so that no second copy of the whole is made."""


@dataclass(frozen=True, slots=True, eq=False)
class SoftLabels:
    """A label map with the probability of each class.

    Attributes:
        labels: (H, W) integers, at each pixel the likeliest class, the first of equals; the ignore label where none has
            a probability.
        levels: (C, H, W) uint8, each class's probability times 255.
        classes: the label of each channel.
    """

    labels: NDArray[Any]
    levels: NDArray[np.uint8]
    classes: tuple[int, ...]

    @classmethod
    def from_array(
        cls,
        array: Any,
        *,
        classes: Sequence[int] | None = None,
        ignore_label: int | None = 255,
        logits: bool = False,
        size: tuple[int, int] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> SoftLabels:
        """Probabilities (C, H, W), floats in [0, 1] or scaled to uint8 or uint16; they need not sum to 1.

        Args:
            array: of channels first.
            classes: the label of each channel; None: 0, 1, ...
            ignore_label: the label of pixels where no class has a probability.
            logits: the floats are what a network gives before its softmax over the classes.
            size: (H, W) of the image.
            max_pixels: H * W may be.

        Raises:
            MaskError: another shape, size, type or number of classes than expected, NaN, a value outside [0, 1], or
                pixels without a class where there is no ignore label.
            LimitError: too many pixels.
        """
        given = np.asarray(array)
        _check_shape(given, size)
        check_pixels(given.shape[1], given.shape[2], max_pixels, "probability map")
        names = _names(given.shape[0], classes)
        top = max(*names, ignore_label or 0)
        labels = np.empty(given.shape[1:], np.uint8 if top < 1 << 8 else np.uint16 if top < 1 << 16 else np.int32)
        levels, lookup = np.empty(given.shape, np.uint8), np.array(names, labels.dtype)
        for top_row in range(0, given.shape[1], _BAND_PX):
            rows = np.s_[top_row : top_row + _BAND_PX]
            band = _band(given[:, rows], logits)
            levels[:, rows] = np.rint(band * np.float32(255))
            labels[rows] = lookup[band.argmax(0)]
            if (nothing := band.max(0) <= 0.0).any():
                if ignore_label is None:
                    raise MaskError(
                        "a pixel without a class",
                        expected="a probability above 0 for one class or more, or an ignore label",
                        got=f"{int(nothing.sum())} px with none in rows {top_row} to {top_row + len(nothing) - 1}",
                        fix="name an ignore label, or check the array",
                    )
                labels[rows][nothing] = ignore_label
        return cls(labels, levels, names)


def with_labels(soft: SoftLabels, array: NDArray[Any], refined: NDArray[Any], *, logits: bool = False) -> NDArray[Any]:
    """The array (C, H, W) that `soft` was made of, with a sure answer where `refined` (H, W) is another label.

    There the new label's probability is 1 and the others' 0 (of logits, the largest and the least); the rest stays.
    """
    out, changed = array.copy(), refined != soft.labels
    low, high = sure(array, logits)
    out[:, changed] = low
    rows, columns = np.nonzero(changed)
    for channel, label in enumerate(soft.classes):
        mine = refined[rows, columns] == label
        out[channel, rows[mine], columns[mine]] = high
    return out


def _check_shape(array: NDArray[Any], size: tuple[int, int] | None) -> None:
    shape = array.shape
    if array.ndim != 3 or 0 in shape or shape[0] < 2:
        one = array.ndim == 2 or (array.ndim == 3 and shape[0] == 1)
        raise MaskError(
            "not a map of probabilities",
            expected="an array (C, H, W) of two classes or more",
            got=f"shape {shape}",
            fix="one channel is a soft mask of one thing: an instance" if one else "pass one picture's at a time",
        )
    if size is not None and shape[1:] != size:
        last = shape[:2] == size
        raise MaskError(
            "the map of probabilities is of another size than the image",
            expected=f"(C, {size[0]}, {size[1]}): classes, height, width",
            got=str(shape),
            fix="put the classes first: numpy.moveaxis(array, -1, 0)" if last else "scale it to the image, bilinearly",
        )


def _names(count: int, classes: Sequence[int] | None) -> tuple[int, ...]:
    """The label of each of `count` channels."""
    names = tuple(range(count)) if classes is None else tuple(int(label) for label in classes)
    if len(names) != count:
        raise MaskError(
            "the map of probabilities has another number of classes",
            expected=f"{len(names)} channels, one a class",
            got=f"{count}",
            fix="check that the model and the list of classes belong together",
        )
    if len(set(names)) != count or min(names) < 0:
        raise MaskError("the labels of classes", expected="each once, 0 or more", got=str(names)[:60], fix="mend them")
    return names


def _band(part: NDArray[Any], logits: bool) -> NDArray[np.float32]:
    """(C, h, W) float32 probabilities of some rows."""
    if not logits or part.dtype.kind != "f":
        band = probabilities(part, logits)
    else:
        with np.errstate(invalid="ignore", over="ignore"):  # of infinity: NaN, which is refused
            shifted = np.exp(part.astype(np.float32) - part.max(0).astype(np.float32))
            band = shifted / shifted.sum(0)
    low, high = band.min(), band.max()  # NaN when any value is
    if not (low >= 0.0 and high <= 1.0):
        raise MaskError(
            "a map of probabilities is out of range",
            expected="logits without NaN or infinity" if logits else "probabilities in [0, 1], no NaN",
            got="NaN" if np.isnan(low) else f"values from {low} to {high}",
            fix="mend the array" if logits else "apply a softmax over the classes (of logits: --logits)",
        )
    return band
