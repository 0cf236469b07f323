"""How much a refinement is worth, estimated without the truth: expected change of IoU, and of the boundary.

Letters: h, w are a window's size, px; F the number of features, K of hidden units.

The network's certainty is calibrated for pictures like those it was trained on, and for no others. What else tells a
good change from a bad one can be measured in the picture: whether the new boundary lies on an edge that the old one
missed, how far it moved, how rough the coarse boundary was (exact masks are rough, coarse ones smooth or made of
stairs). A small perceptron, fitted on masks with a known truth from many domains, turns these features into estimates;
its weights lie in the model's card.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import ModelError
from bpr_service.kernel import kernel
from bpr_service.network.weights import EstimateCard

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

FEATURES = (
    "certainty of the change",
    "distance moved",
    "disagreement with the coarse mask",
    "certainty at the boundary",
    "uncertain pixels",
    "gain by the network's own word",
    "error by the network's own word, at the boundary",
    "error by the network's own word, in the change",
    "share added",
    "added on other masks",
    "contrast at the refined boundary",
    "contrast at the coarse boundary",
    "contrast gained",
    "texture beside the refined boundary",
    "contrast over texture, refined",
    "contrast over texture, coarse",
    "sharpness of the picture",
    "sharpness at the coarse boundary",
    "bends of the coarse boundary",
    "bends of the refined boundary",
    "corners of the coarse boundary",
    "straight runs of the coarse boundary",
    "size",
    "length of the boundary over size",
    "scale",
    "soft",
)
"""What is measured of a change, in the order of the vector."""

CLIP = 4.0
"""A feature counts as no further from its mean than so many deviations."""
_LEAST = np.array([-1, -1, 0, 0], np.float32)
"""Least values of an `Estimate`; the greatest are 1."""
_SUMS = 10
_REACH = 3  # half side of the square that bends are measured in


@kernel
def _edges(
    mask: U8, covered: NDArray[np.bool_], gray: U8, probability: F32, error: F32, sums: NDArray[np.float64]
) -> None:
    """Sums over the pairs of neighbours that the boundary of `mask` parts.

    How many pairs, the picture's step across (2 px away on both sides), its texture beside, the step between the two
    themselves, certainty and error beside.
    """
    h, w = mask.shape
    for axis in range(2):
        for y in range(h - axis):
            for x in range(w - 1 + axis):
                y1, x1 = y + axis, x + 1 - axis
                if mask[y, x] == mask[y1, x1] or not (covered[y, x] and covered[y1, x1]):
                    continue
                dy, dx = axis, 1 - axis
                ya, xa = max(y - 2 * dy, 0), max(x - 2 * dx, 0)
                yb, xb = min(y1 + 2 * dy, h - 1), min(x1 + 2 * dx, w - 1)
                yc, xc = max(y - 5 * dy, 0), max(x - 5 * dx, 0)
                yd, xd = min(y1 + 5 * dy, h - 1), min(x1 + 5 * dx, w - 1)
                a, b = np.float64(gray[ya, xa]), np.float64(gray[yb, xb])
                sums[0] += 1.0
                sums[1] += abs(a - b)
                sums[2] += abs(np.float64(gray[yc, xc]) - a) + abs(np.float64(gray[yd, xd]) - b)
                sums[3] += abs(np.float64(gray[y, x]) - np.float64(gray[y1, x1]))
                sums[4] += abs(2.0 * probability[ya, xa] - 1.0) + abs(2.0 * probability[yb, xb] - 1.0)
                sums[5] += error[y, x] + error[y1, x1]
                ahead = y + 4 * dx, x + 4 * dy
                if ahead[0] < h - axis and ahead[1] < w - 1 + axis:
                    straight = True
                    for k in range(1, 5):
                        yk, xk = y + k * dx, x + k * dy
                        if mask[yk, xk] != mask[y, x] or mask[yk + dy, xk + dx] != mask[y1, x1]:
                            straight = False
                            break
                    sums[6] += straight
                    sums[7] += 1.0
                n, inside = 0, 0
                for r in range(max(y - _REACH, 0), min(y + _REACH + 1, h)):
                    for c in range(max(x - _REACH, 0), min(x + _REACH + 1, w)):
                        n += 1
                        inside += mask[r, c]
                sums[8] += abs(inside - 0.5 * n) / n
    for y in range(h - 1):
        for x in range(w - 1):
            s = mask[y, x] + mask[y + 1, x] + mask[y, x + 1] + mask[y + 1, x + 1]
            if covered[y, x] and s in (1, 3):
                sums[9] += 1.0


@kernel
def _change(
    coarse: U8,
    covered: NDArray[np.bool_],
    others: U8,
    probability: F32,
    error: F32,
    refined: U8,
    sums: NDArray[np.float64],
) -> None:
    """Write the thresholded mask into `refined`, and sums over the pixels that change."""
    h, w = coarse.shape
    for y in range(h):
        for x in range(w):
            before = coarse[y, x]
            if not covered[y, x]:
                refined[y, x] = before
                continue
            p = probability[y, x]
            after = np.uint8(p >= 0.5)
            refined[y, x] = after
            certainty = abs(2.0 * p - 1.0)
            sums[0] += 1.0 - certainty
            if after != before:
                sums[1] += 1.0
                sums[2] += certainty
                sums[3] += error[y, x]
                if after:
                    sums[4] += 1.0
                    sums[5] += others[y, x]


def features(
    coarse: U8,
    covered: NDArray[np.bool_],
    probability: F32,
    image: U8,
    *,
    area: int,
    scale: float,
    soft: bool = False,
    auxiliary: F32 | None = None,
    others: U8 | None = None,
) -> F32:
    """Measure a change; where no pixel changes, what concerns the change is 0.

    Args:
        coarse: (h, w) uint8, 0 or 1: the coarse mask in the window.
        covered: (h, w) bool, under a patch.
        probability: (h, w) float32, averaged foreground probability.
        image: (h, w, 3) uint8 RGB, the window of the picture.
        area: px of the whole coarse mask.
        scale: of the patches.
        soft: whether the network saw the coarse mask's probabilities.
        auxiliary: (h, w) float32, the network's second map (log-odds that its decision is wrong), or None.
        others: (h, w) uint8, 1 where another mask of the picture lies, or None.

    Returns:
        (F,) float32, see `FEATURES`.
    """
    import cv2

    gray = np.asarray(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY), np.uint8)
    shape = coarse.shape
    error = np.zeros(shape, np.float32) if auxiliary is None else 1 / (1 + np.exp(-np.clip(auxiliary, -30, 30)))
    error = np.ascontiguousarray(error, np.float32)
    refined = np.empty(shape, np.uint8)
    change, at_refined, at_coarse = (np.zeros(_SUMS) for _ in range(3))
    coarse = np.ascontiguousarray(coarse)
    _change(
        coarse, covered, np.zeros(shape, np.uint8) if others is None else others, probability, error, refined, change
    )
    _edges(refined, covered, gray, probability, error, at_refined)
    _edges(coarse, covered, gray, probability, error, at_coarse)
    changed = max(change[1], 1.0)
    length, length_coarse = max(at_refined[0], 1.0), max(at_coarse[0], 1.0)
    union = max(area + change[4], 1.0)
    size = np.sqrt(max(area, 1))

    def log(value: float) -> float:
        return float(np.log(value + 1e-3))

    contrast, contrast_coarse = at_refined[1] / length, at_coarse[1] / length_coarse
    texture, texture_coarse = at_refined[2] / (2 * length), at_coarse[2] / (2 * length_coarse)
    return np.array(
        [
            change[2] / changed,
            log(change[1] / length_coarse),
            log(change[1] / union),
            at_refined[4] / (2 * length),
            log(change[0] / length_coarse),
            change[2] / union,
            at_refined[5] / (2 * length),
            change[3] / changed,
            change[4] / changed,
            change[5] / changed,
            log(contrast),
            log(contrast_coarse),
            log(contrast) - log(contrast_coarse),
            log(texture),
            log(contrast) - log(texture),
            log(contrast_coarse) - log(texture_coarse),
            at_refined[3] / (at_refined[1] + length),
            at_coarse[3] / (at_coarse[1] + length_coarse),
            at_coarse[8] / length_coarse,
            at_refined[8] / length,
            at_coarse[9] / length_coarse,
            at_coarse[6] / max(at_coarse[7], 1.0),
            log(size),
            log(length_coarse / size),
            np.log2(scale),
            float(soft),
        ],
        np.float32,
    )


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a refinement is expected to bring.

    Attributes:
        gain: pixels mended less pixels spoiled, over pixels changed: -1 to 1.
        boundary_gain: change of boundary F at 1 px.
        boundary_f: boundary F at 2 px of the refined mask, 0 to 1: the confidence where it is taken.
        coarse_boundary_f: the same of the coarse mask.
    """

    gain: float
    boundary_gain: float
    boundary_f: float
    coarse_boundary_f: float


class Estimator:
    """The perceptron of a model's card: ``(F,) -> tanh (K,) -> 4``."""

    def __init__(self, card: EstimateCard) -> None:
        """Raises ModelError where the card was fitted on other features than `FEATURES`."""
        if tuple(card.features) != FEATURES:
            odd = sorted(set(card.features) ^ set(FEATURES))
            raise ModelError(
                "the card's estimate",
                expected=f"the {len(FEATURES)} features of this version, in their order",
                got=f"another list ({odd[0] if odd else 'in another order'})",
                fix="fit it again with this version",
            )
        self.least_gain = card.least_gain
        self._mean, self._scale = np.array(card.mean, np.float32), np.array(card.scale, np.float32)
        self._hidden, self._out = np.array(card.hidden, np.float32), np.array(card.out, np.float32)

    def table(self, values: F32) -> F32:
        """(n, F) float32 `features` of n changes -> (n, 4) float32, the values of their `Estimate`."""
        ones = np.ones((len(values), 1), np.float32)
        x = np.clip((values - self._mean) / self._scale, -CLIP, CLIP)
        h = np.tanh(np.concatenate((x, ones), 1) @ self._hidden)
        return np.clip(np.concatenate((h, ones), 1) @ self._out, _LEAST, 1)

    def __call__(self, values: F32) -> Estimate:
        """The estimate of a vector of `features`."""
        return Estimate(*self.table(values[None])[0].tolist())
