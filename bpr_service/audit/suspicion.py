"""How likely a mask is wrong, from what was measured of it and of the other masks of its data set.

Letters: n masks, M the number of inputs, K of hidden units.

Wrong is a mask whose IoU with the truth is under .9, or whose boundary F at 2 px is. A perceptron, fitted on masks with
a known truth from many domains, sees each measure twice: as it is, and how far it lies from the median of the data set,
in the set's own deviations. So a set with soft edges or loose outlines is held against itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bpr_service.audit.kinds import ESTIMATED
from bpr_service.audit.measures import INPUTS
from bpr_service.errors import ModelError
from bpr_service.network.weights import AuditCard, ModelCard

F32 = NDArray[np.float32]

WRONG_IOU = WRONG_BOUNDARY_F = 0.9
CLIP = 4.0
"""A measure counts as no further from the middle than so many deviations."""
PRIOR_MASKS = 20
"""The medians of a small set are drawn towards those that the card knows, as if these were of so many masks."""


@dataclass(frozen=True, slots=True, eq=False)
class Usual:
    """What is usual in a data set: (M,) float32 median of each measure, and its deviation."""

    middle: F32
    spread: F32


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What is thought of n masks.

    Attributes:
        suspicion: (n,) float32, probability that a mask is wrong.
        iou: (n,) float32, expected IoU with the truth.
        boundary_f: (n,) float32, expected boundary F at 2 px.
        kinds: (n, 8) float32, of `ESTIMATED`: which error it is, were it wrong; a row sums to 1.
    """

    suspicion: F32
    iou: F32
    boundary_f: F32
    kinds: F32


class Judge:
    """The perceptron of a model's card."""

    def __init__(self, card: AuditCard) -> None:
        """Raises ModelError where the card was fitted on measures that this version does not have."""
        odd = sorted({*card.inputs, *card.kinds} - {*INPUTS, *ESTIMATED})
        if odd or tuple(card.kinds) != ESTIMATED:
            raise ModelError(
                "the card's audit",
                expected="measures and kinds of this version",
                got=odd[0] if odd else "the kinds in another order",
                fix="fit it again with this version",
            )
        self._columns = [INPUTS.index(name) for name in card.inputs]
        self._mean, self._scale = np.array(card.mean, np.float32), np.array(card.scale, np.float32)
        self._hidden, self._out = np.array(card.hidden, np.float32), np.array(card.out, np.float32)

    def usual(self, values: F32) -> Usual:
        """What is usual in a data set of which (n, M) `values` are a sample; n may be 0."""
        n = len(values)
        if not n:
            return Usual(self._mean, self._scale)
        values = values[:, self._columns]
        middle = np.median(values, 0)
        spread = 1.4826 * np.median(np.abs(values - middle), 0)
        known, share = n / (n + PRIOR_MASKS), PRIOR_MASKS / (n + PRIOR_MASKS)
        spread = np.maximum(known * spread + share * self._scale, 0.1 * self._scale)
        return Usual((known * middle + share * self._mean).astype(np.float32), spread.astype(np.float32))

    def table(self, values: F32, usual: Usual) -> F32:
        """(n, M) measures -> (n, 2 M) what the perceptron sees."""
        values = values[:, self._columns]
        both = ((values - self._mean) / self._scale, (values - usual.middle) / usual.spread)
        return np.clip(np.concatenate(both, 1), -CLIP, CLIP).astype(np.float32)

    def __call__(self, values: F32, usual: Usual) -> Judged:
        """Judge n masks by their (n, M) measures."""
        ones = np.ones((len(values), 1), np.float32)
        hidden = np.tanh(np.concatenate((self.table(values, usual), ones), 1) @ self._hidden)
        answer = np.concatenate((hidden, ones), 1) @ self._out
        estimates = 1.0 / (1.0 + np.exp(-np.clip(answer[:, :3], -30, 30)))
        odds = np.exp(answer[:, 3:] - answer[:, 3:].max(1, keepdims=True))
        wrong, iou, boundary_f = estimates.T
        return Judged(wrong, iou, boundary_f, odds / odds.sum(1, keepdims=True))


def judge_of(card: ModelCard) -> Judge:
    """The judge of a model. Raises `ModelError` where its card has none."""
    if card.audit is None:
        raise ModelError(
            f"{card.name}@{card.version} cannot audit",
            expected="a card with an audit",
            got="none",
            fix="take --preset balanced, or fit one: benchmarks/audit.py",
        )
    return Judge(card.audit)
