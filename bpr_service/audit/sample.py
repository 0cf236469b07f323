"""A sample for people to look at, and what it says of the share of wrong masks in the whole data set.

Masks are drawn at random within strata of suspicion, more from those of which less is known, and each stands for as
many as its stratum has for one drawn. The interval is of the posterior of all strata together: in each, Beta with one
mask's worth of prior at its mean suspicion, at least a fifth of a mask for either answer (suspicion may be off), and a
binomial of the masks that nobody saw (Gelman et al., Bayesian Data Analysis, sections 2.4 and 8.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import ConfigError

CUTS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
LEAST = 8
"""Masks that are drawn of a stratum at least, where it has as many."""
LEAST_VARIANCE = 0.01
"""Variance of wrong among a stratum's masks, taken as no less: suspicion may be off."""
LEAST_PRIOR = 0.2
DRAWS, CONFIDENCE = 4_000, 0.95


@dataclass(frozen=True, slots=True)
class Stratum:
    """Masks of a range of suspicion: how many there are, their mean suspicion, and how many were drawn."""

    masks: int
    suspicion: float
    drawn: int


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A stratified sample: the strata, the masks' indices, and the stratum of each."""

    strata: list[Stratum]
    indices: NDArray[np.int64]
    stratum: NDArray[np.int64]


def draw(suspicion: NDArray[np.float32], count: int, seed: int = 0) -> Drawn:
    """Draw `count` masks, or all where there are fewer, at random within strata of their suspicion.

    Args:
        suspicion: (M,) float32, of every mask.
        count: how many masks a person will look at.
        seed: another one gives another sample.
    """
    which = np.searchsorted(CUTS, suspicion, side="right")
    members = [np.flatnonzero(which == k) for k in range(len(CUTS) + 1)]
    members = [one for one in members if len(one)]
    sizes = np.array([len(one) for one in members], np.int64)
    middle = np.array([float(suspicion[one].mean()) for one in members])
    drawn = _allocated(sizes, middle, count)
    rng = np.random.default_rng(seed)
    picked = [rng.choice(one, n, replace=False) for one, n in zip(members, drawn.tolist(), strict=True)]
    strata = [Stratum(*values) for values in zip(sizes.tolist(), middle.tolist(), drawn.tolist(), strict=True)]
    stratum = np.repeat(np.arange(len(strata)), drawn)
    order = rng.permutation(len(stratum))
    indices = np.concatenate(picked) if picked else np.empty(0, np.int64)
    return Drawn(strata, indices[order], stratum[order])


def _allocated(sizes: NDArray[np.int64], middle: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """How many of each stratum: as its masks times the deviation of wrong among them (Neyman 1934)."""
    if not len(sizes) or sizes.sum() <= count:
        return sizes
    wanted = sizes * np.sqrt(np.maximum(middle * (1 - middle), LEAST_VARIANCE))
    least = np.minimum(sizes, min(LEAST, max(count // len(sizes), 1)))
    drawn: NDArray[np.int64] = np.clip(np.floor(count * wanted / wanted.sum()).astype(np.int64), least, sizes)
    while drawn.sum() > count and (drawn > least).any():
        drawn[np.argmax(np.where(drawn > least, drawn, -1))] -= 1
    while drawn.sum() < count:
        drawn[np.argmax(np.where(drawn < sizes, wanted / (drawn + 1), -1))] += 1
    return drawn


@dataclass(frozen=True, slots=True)
class Share:
    """The estimated share of wrong masks in the whole data set, and its 95 % interval."""

    share: float
    low: float
    high: float


def estimate(strata: Sequence[Stratum], wrong: Sequence[int], seed: int = 0) -> Share:
    """What a looked-at sample says of the whole data set.

    Args:
        strata: of the sample, as they were drawn.
        wrong: of each stratum, how many of the drawn masks are wrong.
        seed: of the interval's random numbers.

    Raises:
        ConfigError: a stratum with more wrong masks than were drawn, or another number of strata.
    """
    if len(wrong) != len(strata) or any(not 0 <= k <= s.drawn for k, s in zip(wrong, strata, strict=False)):
        raise ConfigError(
            "a sample's result",
            expected="of each stratum as many wrong masks as were drawn, at most",
            got=str(list(wrong)),
            fix="take the sample of the same report",
        )
    n, drawn = np.array([s.masks for s in strata]), np.array([s.drawn for s in strata])
    k, prior = np.array(wrong), np.array([s.suspicion for s in strata])
    rng = np.random.default_rng(seed)
    a, b = k + np.maximum(prior, LEAST_PRIOR), drawn - k + np.maximum(1 - prior, LEAST_PRIOR)
    share = rng.beta(a, b, (DRAWS, len(strata)))
    total = (k + rng.binomial(n - drawn, share)).sum(1) / n.sum()
    low, high = np.quantile(total, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return Share(float((n * (k / np.maximum(drawn, 1))).sum() / n.sum()), float(low), float(high))


def told(drawn: Drawn, keys: Sequence[Any]) -> dict[str, Any]:
    """A sample as the report has it. `keys`: those of the drawn masks, in their order."""
    masks = [{"key": key, "stratum": k} for key, k in zip(keys, drawn.stratum.tolist(), strict=True)]
    return {"strata": [asdict(stratum) for stratum in drawn.strata], "masks": masks}
