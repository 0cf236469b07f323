"""What the audit measures of a mask, beside the features of the estimate: how the refined outline lies to it.

Letters: H, W are the picture's size; h, w a window's; n boundary pixels; M the number of measures; all sizes in px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bpr_service.audit.looks import LOOKS, looks
from bpr_service.audit.shapes import SHAPE, blurred, shape, slopes
from bpr_service.masks.mask import Mask
from bpr_service.refine.estimate import FEATURES

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

MOVES = (
    "disagreement",
    "grown or shrunk",
    "off by 1.5 px",
    "off by 3 px",
    "off at the worst twentieth",
    "largest change",
    "shift",
    "fatness",
    "explained by shift and fatness",
    "left unexplained",
)
NEARBY = ("like another mask", "covered by another", "covers another")
SEEN = tuple(name for name in FEATURES if name != "scale")
"""Of the estimate's features all but the scale: an audit sees every mask at one."""
INPUTS = (
    *SEEN,
    *MOVES,
    *SHAPE,
    *(f"{name}, refined" for name in SHAPE[4:9]),
    *LOOKS,
    *NEARBY,
)
"""What suspicion is estimated from, in the order of the vector."""

MARGIN_PX = 12
FAR_PX = 32.0
AROUND = 0.25
"""How much of the picture around a mask is looked at, as a share of the mask's sides."""
MOST_NEIGHBOURS = 12


@dataclass(frozen=True, slots=True, eq=False)
class Offsets:
    """How far the refined outline lies from each boundary pixel of a mask.

    Attributes:
        x, y: (n,) int64, the boundary pixels in the picture.
        outward: (n,) float32, px from the pixel to the refined outline: above 0 where that lies further out.
        normal: (n, 2) float32, unit vectors x, y that point out of the mask.
    """

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    outward: F32
    normal: F32


def window_of(coarse: Mask, refined: Mask, share: float = 0.0) -> tuple[int, int, int, int]:
    """Box (x0, y0, x1, y1) of both masks in the picture, with `MARGIN_PX`, or a share of its sides, around."""
    boxes = np.array([mask.box for mask in (coarse, refined) if not mask.is_empty])
    left, right = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    margin = np.maximum(MARGIN_PX, np.rint(share * (right - left)).astype(int))
    x0, y0 = (left - margin).clip(0).tolist()
    x1, y1 = np.minimum(right + margin, [coarse.width, coarse.height]).tolist()
    return x0, y0, x1, y1


def offsets(coarse: Mask, refined: Mask, soft: F32 | None = None) -> Offsets:
    """Measure the refined outline from the boundary pixels of `coarse`, which has some foreground.

    The picture's own edge is no boundary. `soft` is `coarse`, `blurred` in its window with `AROUND`, where it is known.
    """
    import cv2

    x0, y0, x1, y1 = window_of(coarse, refined)
    before, after = coarse.window(x0, y0, x1, y1), refined.window(x0, y0, x1, y1)
    eroded = cv2.erode(before, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
    ys, xs = np.nonzero(before > eroded)
    inside = cv2.distanceTransform(after, cv2.DIST_L2, 3) if after.any() else np.zeros(after.shape, np.float32)
    outside = cv2.distanceTransform(1 - after, cv2.DIST_L2, 3) if after.any() else np.full(after.shape, FAR_PX)
    # a boundary pixel that both masks share is 1 px from the outside: that is no distance at all
    signed = np.where(after[ys, xs] > 0, inside[ys, xs] - 1.0, -outside[ys, xs])
    xs, ys = xs + x0, ys + y0
    x0, y0, x1, y1 = window_of(coarse, coarse, AROUND)
    normal = -slopes(blurred(coarse.window(x0, y0, x1, y1)) if soft is None else soft, xs - x0, ys - y0)
    return Offsets(xs, ys, signed.clip(-FAR_PX, FAR_PX).astype(np.float32), normal)


def shift_of(found: Offsets) -> tuple[float, float, float, float, float]:
    """Least squares of ``outward = normal . shift - fatness``.

    Returns:
        shift in x and y, fatness (above 0: the mask is too fat), all px; the share of the squared offsets that these
        explain; the root mean square of what is left, px.
    """
    if len(found.outward) < 8:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    a = np.concatenate([found.normal, -np.ones((len(found.outward), 1), np.float32)], 1).astype(np.float64)
    s = found.outward.astype(np.float64)
    solved = np.linalg.solve(a.T @ a + 0.05 * len(s) * np.diag([1.0, 1.0, 0.05]), a.T @ s)
    left = float(np.square(s - a @ solved).mean())
    explained = 1.0 - left / (float(np.square(s).mean()) + 0.05)
    return float(solved[0]), float(solved[1]), float(solved[2]), explained, float(np.sqrt(left))


def moves(coarse: Mask, refined: Mask, found: Offsets) -> list[float]:
    """The measures of `MOVES`."""
    import cv2

    x0, y0, x1, y1 = window_of(coarse, refined)
    before, after = coarse.window(x0, y0, x1, y1), refined.window(x0, y0, x1, y1)
    union = max(int(np.count_nonzero(before | after)), 1)
    change = before ^ after
    grown = int(np.count_nonzero(after)) - int(np.count_nonzero(before))
    largest = 0.0
    if change.any():
        stats = cv2.connectedComponentsWithStats(change, connectivity=4)[2]
        largest = float(stats[1:, 4].max())
    far = np.abs(found.outward)
    length = max(len(far), 1)
    dx, dy, fat, explained, left = shift_of(found)
    return [
        float(np.log(np.count_nonzero(change) / union + 1e-3)),
        float(np.sign(grown) * np.log1p(abs(grown) / length)),
        float((far > 1.5).mean()) if len(far) else 0.0,
        float((far >= 3.0).mean()) if len(far) else 0.0,
        float(np.log1p(np.quantile(far, 0.95))) if len(far) else 0.0,
        float(np.log(largest / union + 1e-3)),
        float(np.log1p(np.hypot(dx, dy))),
        float(np.sign(fat) * np.log1p(abs(fat))),
        explained,
        float(np.log1p(left)),
    ]


class Neighbours:
    """The other masks of a picture."""

    def __init__(self, masks: Sequence[Mask]) -> None:
        self.masks = masks
        self.boxes = np.array([mask.box for mask in masks], np.int64).reshape(-1, 4)
        self.areas = [mask.area for mask in masks]

    def overlap(self, index: int) -> tuple[float, int, float, float]:
        """How much the mask shares with the other masks.

        Returns:
            The greatest IoU with another mask; that mask's index or -1; the share of this mask that another covers; the
            share of another, not much smaller, that this one covers.
        """
        boxes, mine = self.boxes, self.boxes[index]
        sides = np.minimum(boxes[:, 2:], mine[2:]) - np.maximum(boxes[:, :2], mine[:2])
        shared = sides.clip(0).prod(1)
        shared[index] = 0
        iou, like, covered, covers = 0.0, -1, 0.0, 0.0
        area, mask = self.areas[index], self.masks[index]
        for other in np.argsort(-shared)[:MOST_NEIGHBOURS].tolist():
            if not shared[other] or not area:
                break
            both = int(np.count_nonzero(mask.window(*mask.box) & self.masks[other].window(*mask.box)))
            if not both:
                continue
            one = both / (area + self.areas[other] - both)
            iou, like = (one, other) if one > iou else (iou, like)
            covered = max(covered, both / area)
            if self.areas[other] > 0.03 * area and one < 0.8:
                covers = max(covers, both / self.areas[other])
        return iou, like, covered, covers


def measure(
    image: U8, coarse: Mask, refined: Mask, features: F32, overlap: tuple[float, int, float, float]
) -> tuple[F32, Offsets]:
    """The inputs of suspicion of one mask that has some foreground.

    Args:
        image: (H, W, 3) uint8 RGB.
        coarse: the mask, which has some foreground.
        refined: the same mask refined.
        features: (F,) float32 of the estimate.
        overlap: of `Neighbours.overlap`.

    Returns:
        (M,) float32 of `INPUTS`, and the offsets of the refined outline.
    """
    x0, y0, x1, y1 = window_of(coarse, coarse, AROUND)
    own = coarse.window(x0, y0, x1, y1)
    soft = blurred(own)
    found = offsets(coarse, refined, soft)
    seen = looks(image[y0:y1, x0:x1], own, soft)
    x0, y0, x1, y1 = window_of(coarse, refined)
    outline = shape(coarse.window(x0, y0, x1, y1))
    after = refined.window(x0, y0, x1, y1)
    other = shape(after)[4:9] if after.any() else outline[4:9]
    nearby = [overlap[0], overlap[2], overlap[3]]
    seen_by_refiner = [v for name, v in zip(FEATURES, features.tolist(), strict=True) if name != "scale"]
    values = [*seen_by_refiner, *moves(coarse, refined, found), *outline, *other, *seen, *nearby]
    return np.asarray(values, np.float32), found
