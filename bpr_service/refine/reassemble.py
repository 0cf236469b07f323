"""Step 4: average the overlapping patches, threshold, paste (Tang et al., CVPR 2021, section 3.4).

Letters: H, W are the image's size; S ``network_size_px``, T the side of a tile, all
in px; P is the number of patches, C of output maps (1: foreground; 2: foreground and an auxiliary map), K of
tiles.

The sums live in the tiles of `bpr_service.refine.tiles`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import RefineConfig
from bpr_service.errors import ConfigError, MaskError
from bpr_service.masks.mask import Mask
from bpr_service.masks.specks import take_back_specks
from bpr_service.refine.crops import resize_method
from bpr_service.refine.patches import Boxes
from bpr_service.refine.tiles import F32, F64, TILE_PX, accumulate, lay_out, paste, same_size, spread

__all__ = [
    "NO_DATA",
    "TILE_PX",
    "Accumulator",
    "Averaged",
    "Change",
    "Gate",
    "Valid",
    "as_valid",
    "map_within",
    "mask_within",
    "sigmoid",
    "window_weights",
]

_FLOOR = 0.02
"""Weight of a "hann" window at its edge: above zero, so that a pixel under one patch only still has a
value.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Averaged:
    """What the patches of one mask say together, over the box that holds them.

    Attributes:
        x: left of the window in the image, px.
        y: top of it, px.
        covered: (h, w) bool, under a patch.
        probability: (h, w) float32 foreground probability; the coarse mask (0 or 1) where not covered.
        auxiliary: (h, w) float32 average of the network's second map, 0 where not covered; None when it has one map.
    """

    x: int
    y: int
    covered: NDArray[np.bool_]
    probability: F32
    auxiliary: F32 | None


Gate = Callable[[Mask, Averaged], "str | None"]
"""Do no harm: the reason to keep the coarse mask as it is, or None to take the refined one."""


@dataclass(frozen=True, slots=True)
class Change:
    """How a refined mask differs from the coarse one, in px."""

    added_px: int
    removed_px: int


@lru_cache(maxsize=64)
def window_weights(name: str, height: int, width: int) -> F64:
    """(height, width) float64 weight of each pixel of a patch: "flat" is 1, "hann" falls to 0.02 at the edge."""
    if name == "flat":
        return np.ones((height, width))

    def side(n: int) -> F64:
        return np.asarray(_FLOOR + (1.0 - _FLOOR) * np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2, np.float64)

    return np.outer(side(height), side(width))


def sigmoid(logits: F32) -> F32:
    """``1 / (1 + exp(-x))`` in float32."""
    with np.errstate(over="ignore"):  # of a logit under -88: infinity, and the quotient is 0 as it should be
        out = np.exp(np.negative(logits))
    out += 1.0
    return np.reciprocal(out, out=out)


class Accumulator:
    """The weighted sums of the patches of one mask; made for all of its boxes, filled in any order.

    Sums are float64: the result equals a plain float64 loop in the order of `add`.
    """

    def __init__(self, boxes: Boxes, height: int, width: int, outputs: int, config: RefineConfig) -> None:
        """For (P, 4) int32 `boxes` of an (H, W) image, squares of one size, and a network of `outputs` maps."""
        if boxes.shape[0] == 0:
            raise ConfigError("nothing to reassemble", expected="one patch or more", got="none", fix="skip the mask")
        self.boxes, self.height, self.width, self.config = boxes, height, width, config
        self.x0, self.y0, self.x1, self.y1, self.index, n = lay_out(boxes, height, width)
        self.sums = np.zeros((n, outputs, TILE_PX, TILE_PX))
        self.total = np.zeros((n, TILE_PX, TILE_PX))
        self.missing = int(boxes.shape[0])

    def add(self, start: int, logits: F32) -> None:
        """Add the (n, C, S, S) float32 `logits` of the patches from number `start` on, each patch once.

        The padding is cut off; where S is not the size of the patch with its padding, the logits are resized
        to it.
        """
        boxes = self.boxes[start : start + logits.shape[0]]
        place = (self.height, self.width, self.x0, self.y0, self.index, self.sums, self.total)
        add_patches(boxes, logits, self.config, *place)
        self.missing -= boxes.shape[0]

    @property
    def threshold(self) -> float:
        """What makes a pixel foreground: a probability of 0.5, or a logit of 0."""
        return 0.5 if self.config.average == "probability" else 0.0

    def paste(self, coarse: Mask) -> tuple[Mask, Change]:
        """The refined mask: thresholded where a patch lies, without new specks; the coarse mask elsewhere."""
        h, w = coarse.crop.shape
        x0, y0 = (min(self.x0, coarse.x), min(self.y0, coarse.y)) if h else (self.x0, self.y0)
        x1, y1 = max(self.x1, coarse.x + w), max(self.y1, coarse.y + h)
        window = coarse.window(x0, y0, x1, y1)
        change = Change(*paste(self.index, self.sums, self.total, self.threshold, self.x0, self.y0, window, x0, y0))
        if self.config.specks_px and change.added_px + change.removed_px:
            before = coarse.window(x0, y0, x1, y1)
            take_back_specks(window, before, self.config.specks_px)
            change = Change(int(np.sum(window > before)), int(np.sum(window < before)))
        return Mask.from_window(window, x0, y0, self.height, self.width), change

    def averaged(self, coarse: Mask) -> Averaged:
        """The averages as dense windows over the box of all patches."""
        known = coarse.window(self.x0, self.y0, self.x1, self.y1)
        logit = self.config.average == "logit"
        return average(self.x0, self.y0, self.index, self.sums, self.total, known, logit=logit)


def add_patches(boxes: Boxes, logits: F32, config: RefineConfig, height: int, width: int, *tiles: Any) -> None:
    """Add the logits of patches to the sums of `tiles`.

    Args:
        boxes: (n, 4) squares of one size in an (H, W) image.
        logits: (n, C, S, S) float32.
        config: window, padding and what is averaged.
        height: H.
        width: W.
        tiles: left, top, index, sums and total of `bpr_service.refine.tiles.accumulate`.
    """
    padding, side = config.patch.padding_of(int(boxes[0, 2] - boxes[0, 0])), logits.shape[-1]
    probability, flat = config.average == "probability", config.window == "flat"

    def add(boxes: Boxes, maps: F32) -> None:
        weights = window_weights(config.window, maps.shape[2] - 2 * padding, maps.shape[3] - 2 * padding)
        accumulate(maps, padding, probability, boxes, weights, flat, height, width, *tiles)

    if same_size(boxes, side - 2 * padding):
        add(boxes, np.ascontiguousarray(logits))
        return
    crops = (boxes[:, 2:] - boxes[:, :2]) + 2 * padding
    for box, crop, one in zip(boxes, crops.tolist(), logits, strict=True):  # OpenCV resizes one at a time
        add(box[None], _resize(one, crop[1], crop[0])[None])


def average(
    x: int, y: int, index: NDArray[np.int32], sums: F64, total: F64, known: NDArray[np.uint8], *, logit: bool
) -> Averaged:
    """The averages of tiles as dense windows.

    Args:
        x: left of the tiles and the window.
        y: top.
        index: grid of the tiles' numbers, -1 where there is none.
        sums: (K, C, T, T).
        total: (K, T, T).
        known: (h, w) {0, 1}, the coarse mask in the window.
        logit: whether logits were summed, not probabilities.
    """
    covered = np.zeros(known.shape, np.bool_)
    maps = [np.zeros(known.shape, np.float32) if logit else known.astype(np.float32)]
    maps += [np.zeros(known.shape, np.float32)] * (sums.shape[1] > 1)
    for channel, out in enumerate(maps):
        spread(index, sums, total, channel, out, covered)
    probability = np.where(covered, sigmoid(maps[0]), known.astype(np.float32)) if logit else maps[0]
    return Averaged(x, y, covered, probability, maps[1] if len(maps) > 1 else None)


def _resize(logits: F32, height: int, width: int) -> F32:
    """(C, S, S) -> (C, height, width)."""
    import cv2

    side = logits.shape[-1]
    method = resize_method(side, side, height, width)
    return np.stack([cv2.resize(channel, (width, height), interpolation=method) for channel in logits])


# ---- where the image holds no data

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
    """The (H, W) map with `coarse` where there is no data, and how many pixels each of ``labels`` won and lost."""
    new = np.where(valid, refined, coarse)
    differ = new != coarse
    won, lost = (_counts(array[differ]) for array in (new, coarse))
    return new, [(won.get(label, 0), lost.get(label, 0)) for label in labels]


def _counts(labels: NDArray[Any]) -> dict[int, int]:
    found, counts = np.unique(labels, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
