"""Step 4: average the overlapping patches, threshold, paste (Tang et al., CVPR 2021, section 3.4).

Letters: H, W are the image's size; p is ``patch_size_px``, S ``network_size_px``, T the side of a tile, all
in px; P is the number of patches, C of output maps (1: foreground; 2: foreground and an auxiliary map), K of
tiles.

The sums live in T x T tiles that exist only where a patch lies, so memory and time follow the length of the
boundary, not the size of the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import RefineConfig
from bpr_service.core.kernel import kernel
from bpr_service.core.masks import Mask
from bpr_service.core.patches import Boxes, resize_method
from bpr_service.errors import ConfigError

TILE_PX = 32
_CHUNK = 64
"""Patches averaged at once: few enough for the processor's cache."""
_FLOOR = 0.02
"""Weight of a "hann" window at its edge: above zero, so that a pixel under one patch only still has a
value.
"""

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Averaged:
    """What the patches of one mask say together, over the box that holds them.

    Attributes
    ----------
    x, y : left and top of the window in the image, px
    covered : (h, w) bool, under a patch
    probability : (h, w) float32 foreground probability; the coarse mask (0 or 1) where not covered
    auxiliary : (h, w) float32 average of the network's second map, 0 where not covered; None when it has one
        map
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
    """(height, width) float64 weight of each pixel of a patch: "flat" is 1, "hann" falls to 0.02 at the
    edge.
    """
    if name == "flat":
        return np.ones((height, width))

    def side(n: int) -> F64:
        return np.asarray(_FLOOR + (1.0 - _FLOOR) * np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2, np.float64)

    return np.outer(side(height), side(width))


def sigmoid(logits: F32) -> F32:
    """``1 / (1 + exp(-x))`` in float32; torch has it in vector code."""
    import torch

    out: F32 = torch.sigmoid(torch.from_numpy(np.ascontiguousarray(logits))).numpy()
    return out


# ---- tiles -------------------------------------------------------------------------------------------------


@kernel
def _number_tiles(boxes: Boxes, height: int, width: int, x0: int, y0: int, index: NDArray[np.int32]) -> int:
    """Number the tiles of the grid from (x0, y0) that a box touches, in `index` (-1 elsewhere); how many."""
    index[:] = -1
    n = 0
    for i in range(boxes.shape[0]):
        for ty in range((boxes[i, 1] - y0) // TILE_PX, (min(boxes[i, 3], height) - 1 - y0) // TILE_PX + 1):
            for tx in range((boxes[i, 0] - x0) // TILE_PX, (min(boxes[i, 2], width) - 1 - x0) // TILE_PX + 1):
                if index[ty, tx] < 0:
                    index[ty, tx] = n
                    n += 1
    return n


@kernel
def _accumulate(
    maps: F32,
    boxes: Boxes,
    weights: F64,
    height: int,
    width: int,
    x0: int,
    y0: int,
    index: NDArray[np.int32],
    sums: F64,
    total: F64,
) -> None:
    """Add the (n, C, h, w) `maps` at `boxes` to the tiles: sums (K, C, T, T) and total weight (K, T, T)."""
    for i in range(maps.shape[0]):
        left, top = boxes[i, 0], boxes[i, 1]
        bottom, right = min(top + maps.shape[2], height), min(left + maps.shape[3], width)
        for row in range(top, bottom):
            ty = (row - y0) // TILE_PX
            r = row - y0 - ty * TILE_PX
            column = left
            while column < right:
                tx = (column - x0) // TILE_PX
                first = column - x0 - tx * TILE_PX
                n = min(TILE_PX - first, right - column)
                tile = index[ty, tx]
                weight = weights[row - top, column - left : column - left + n]
                target = total[tile, r, first : first + n]
                for k in range(n):
                    target[k] += weight[k]
                for c in range(maps.shape[1]):
                    values = maps[i, c, row - top, column - left : column - left + n]
                    into = sums[tile, c, r, first : first + n]
                    for k in range(n):
                        into[k] += weight[k] * values[k]
                column += n


@kernel
def _paste(
    index: NDArray[np.int32],
    sums: F64,
    total: F64,
    threshold: float,
    x0: int,
    y0: int,
    window: NDArray[np.uint8],
    wx: int,
    wy: int,
) -> tuple[int, int]:
    """Write the thresholded average into `window`, whose left top is (wx, wy); pixels added and removed."""
    added, removed = 0, 0
    h, w = window.shape
    for ty in range(index.shape[0]):
        for tx in range(index.shape[1]):
            tile = index[ty, tx]
            if tile < 0:
                continue
            left, top = x0 + tx * TILE_PX - wx, y0 + ty * TILE_PX - wy
            first, last = max(0, -left), min(TILE_PX, w - left)
            for r in range(max(0, -top), min(TILE_PX, h - top)):
                line = window[top + r, left + first : left + last]
                value, weight = sums[tile, 0, r, first:last], total[tile, r, first:last]
                for k in range(last - first):  # value >= threshold * weight is value / weight >= threshold
                    before = line[k]
                    seen = weight[k] > 0.0
                    now = value[k] >= threshold * weight[k]
                    added += seen & now & (before == 0)
                    removed += seen & (not now) & (before != 0)
                    line[k] = now if seen else before
    return added, removed


@kernel
def _spread(
    index: NDArray[np.int32], values: F64, total: F64, channel: int, x0: int, y0: int, out: F32, wx: int, wy: int
) -> None:
    """Write the average of a channel into the (h, w) `out` at (wx, wy), where there is weight."""
    h, w = out.shape
    for ty in range(index.shape[0]):
        for tx in range(index.shape[1]):
            tile = index[ty, tx]
            if tile < 0:
                continue
            left, top = x0 + tx * TILE_PX - wx, y0 + ty * TILE_PX - wy
            for r in range(max(0, -top), min(TILE_PX, h - top)):
                for k in range(max(0, -left), min(TILE_PX, w - left)):
                    if total[tile, r, k] > 0.0:
                        out[top + r, left + k] = values[tile, channel, r, k] / total[tile, r, k]


class Accumulator:
    """The weighted sums of the patches of one mask; made for all of its boxes, filled in any order.

    Sums are float64: the result equals a plain float64 loop in the order of `add`.
    """

    def __init__(self, boxes: Boxes, height: int, width: int, outputs: int, config: RefineConfig) -> None:
        """For (P, 4) int32 `boxes` of an (H, W) image and a network of `outputs` maps."""
        if boxes.shape[0] == 0:
            raise ConfigError("nothing to reassemble", expected="one patch or more", got="none", fix="skip the mask")
        self.boxes, self.height, self.width, self.config = boxes, height, width, config
        self.x0, self.y0 = (int(v) for v in boxes[:, :2].min(axis=0))
        right, bottom = (int(v) for v in boxes[:, 2:].max(axis=0))
        self.x1, self.y1 = min(right, width), min(bottom, height)
        grid = (-(-(self.y1 - self.y0) // TILE_PX), -(-(self.x1 - self.x0) // TILE_PX))
        self.index = np.empty(grid, np.int32)
        n = _number_tiles(boxes, height, width, self.x0, self.y0, self.index)
        self.sums = np.zeros((n, outputs, TILE_PX, TILE_PX))
        self.total = np.zeros((n, TILE_PX, TILE_PX))
        self.missing = int(boxes.shape[0])

    def add(self, start: int, logits: F32) -> None:
        """Add the (n, C, S, S) float32 `logits` of the patches from number `start` on, each patch once.

        The padding is cut off; where S is not the size of the patch with its padding, the logits are resized
        to it.
        """
        boxes = self.boxes[start : start + logits.shape[0]]
        padding = self.config.patch.padding_px
        side = logits.shape[-1]
        crops = (boxes[:, 2:] - boxes[:, :2]) + 2 * padding
        if (crops == side).all():
            self._add(boxes, logits[:, :, padding : side - padding, padding : side - padding])
        else:
            for box, crop, one in zip(boxes, crops.tolist(), logits, strict=True):  # OpenCV resizes one at a time
                self._add(box[None], _resize(one, crop[1], crop[0], padding)[None])
        self.missing -= boxes.shape[0]

    def _add(self, boxes: Boxes, inner: F32) -> None:
        """Add the (n, C, h, w) logits of the patches' own pixels."""
        weights = window_weights(self.config.window, inner.shape[2], inner.shape[3])
        place = (self.height, self.width, self.x0, self.y0, self.index, self.sums, self.total)
        for start in range(0, inner.shape[0], _CHUNK):
            maps = np.ascontiguousarray(inner[start : start + _CHUNK])
            if self.config.average == "probability":
                foreground = sigmoid(maps[:, :1])
                maps = foreground if maps.shape[1] == 1 else np.concatenate([foreground, maps[:, 1:]], axis=1)
            _accumulate(maps, boxes[start : start + _CHUNK], weights, *place)

    @property
    def threshold(self) -> float:
        """What makes a pixel foreground: a probability of 0.5, or a logit of 0."""
        return 0.5 if self.config.average == "probability" else 0.0

    def paste(self, coarse: Mask) -> tuple[Mask, Change]:
        """The refined mask: thresholded where a patch lies, the coarse mask elsewhere."""
        h, w = coarse.crop.shape
        x0, y0 = (min(self.x0, coarse.x), min(self.y0, coarse.y)) if h else (self.x0, self.y0)
        x1, y1 = max(self.x1, coarse.x + w), max(self.y1, coarse.y + h)
        window = coarse.window(x0, y0, x1, y1)
        change = Change(*_paste(self.index, self.sums, self.total, self.threshold, self.x0, self.y0, window, x0, y0))
        return Mask.from_window(window, x0, y0, self.height, self.width), change

    def averaged(self, coarse: Mask) -> Averaged:
        """The averages as dense windows over the box of all patches."""
        window = (self.x0, self.y0, self.x1, self.y1)
        shape = (self.y1 - self.y0, self.x1 - self.x0)
        maps = [np.full(shape, np.nan, np.float32) for _ in range(self.sums.shape[1])]
        for channel, out in enumerate(maps):
            _spread(self.index, self.sums, self.total, channel, self.x0, self.y0, out, self.x0, self.y0)
        covered = ~np.isnan(maps[0])
        foreground = maps[0] if self.config.average == "probability" else sigmoid(maps[0])
        probability = np.where(covered, foreground, coarse.window(*window).astype(np.float32))
        auxiliary = np.where(covered, maps[1], np.float32(0.0)) if len(maps) > 1 else None
        return Averaged(self.x0, self.y0, covered, probability, auxiliary)


def _resize(logits: F32, height: int, width: int, padding: int) -> F32:
    """(C, S, S) -> (C, height - 2 padding, width - 2 padding): resized to (height, width), the padding cut
    off.
    """
    import cv2

    side = logits.shape[-1]
    method = resize_method(side, side, height, width)
    whole = [cv2.resize(channel, (width, height), interpolation=method) for channel in logits]
    return np.stack([channel[padding : height - padding, padding : width - padding] for channel in whole])
