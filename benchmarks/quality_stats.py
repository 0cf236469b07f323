"""Intervals and slices of a set's rows, and what its confidences are worth.

Intervals are those of a paired bootstrap over groups of images (a video is one group): every method is measured on the
same draws, so that the difference of two of them has an interval of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quality_measure import AREA, CONFIDENCE, DISTANCES_PX, F_2PX, WRONG, summarise_set

DRAWS = 300
LEVELS = (2.5, 97.5)
SEED = 7
SIZES = {"under 32 x 32 px": (0, 32**2), "to 96 x 96": (32**2, 96**2), "over": (96**2, np.inf)}
COVERAGES = (0.5, 0.8, 0.9, 1.0)
IOUS = {"coarse IoU under .8": (0, 0.8), ".8 to .95": (0.8, 0.95), "over .95": (0.95, 1.01)}


def draws(groups: Sequence[str], count: int = DRAWS) -> list[NDArray[np.int64]]:
    """Row numbers of each draw: groups with replacement, as many as there are."""
    names, which = np.unique(np.array(groups), return_inverse=True)
    rows = [np.flatnonzero(which == k) for k in range(len(names))]
    rng = np.random.default_rng(SEED)
    return [np.concatenate([rows[k] for k in rng.integers(0, len(names), len(names))]) for _ in range(count)]


def intervals(kind: str, methods: dict[str, list[Any]], groups: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each method its measures' 95 % intervals, and those of its difference to the first method after ``coarse``.

    Args:
        kind: of the set.
        methods: rows by method, in step with `groups`.
        groups: the group of each row; whole groups are drawn.

    Returns:
        By method: ``low`` and ``high`` by measure, and where there is a method to compare with, ``difference_low`` and
        ``difference_high``.
    """
    of_draw = draws(groups)
    tables = {
        name: [summarise_set(kind, [rows[k] for k in draw]) for draw in of_draw] for name, rows in methods.items()
    }
    first = next((name for name in methods if name != "coarse"), None)
    out: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        values = {key: np.array([row[key] for row in table]) for key in table[0]}
        out[name] = {"low": _at(values, 0), "high": _at(values, 1)}
        if first is not None and name not in ("coarse", first):
            base = {key: np.array([row[key] for row in tables[first]]) for key in values}
            gained = {key: values[key] - base[key] for key in values}
            out[name] |= {"difference_low": _at(gained, 0), "difference_high": _at(gained, 1)}
    return out


def _at(values: dict[str, NDArray[np.float64]], side: int) -> dict[str, float]:
    with np.errstate(invalid="ignore"):  # where nothing was wrong, the share of it that was removed is -inf
        return {key: float(np.percentile(v, LEVELS[side])) for key, v in values.items()}


def risk_coverage(order: NDArray[np.float64], risk: NDArray[np.float64]) -> dict[str, float]:
    """What is risked when the best by `order` are taken.

    The mean risk of the first half, .8, .9 and all, and its mean over all coverages (the area under the curve), with
    the least that any order could have.

    Args:
        order: (N,), the highest first.
        risk: (N,).
    """
    count = np.arange(1, len(risk) + 1)
    curve = risk[np.argsort(-order, kind="stable")].cumsum() / count
    found = {f"at {share:g}": float(curve[max(round(share * len(curve)), 1) - 1]) for share in COVERAGES}
    return found | {"area": float(curve.mean()), "least area": float((np.sort(risk).cumsum() / count).mean())}


def calibration_error(confidence: NDArray[np.float64], actual: NDArray[np.float64], bins: int = 10) -> float:
    """Mean of |mean confidence - mean outcome| over bins of confidence, weighted by their masks."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[which == b].mean() - actual[which == b].mean()) * (which == b).mean() for b in set(which)]
    return float(sum(gaps))


def confidence_of(rows: list[Any]) -> dict[str, float]:
    """What an instance set's confidences are worth; nothing where there are none.

    Their calibration error, their rank correlation with the boundary F at 2 px of the mask given back, and their
    `risk_coverage`, the risk being 1 - F.
    """
    from scipy.stats import spearmanr

    table = np.array(rows, np.float64)
    table = table[np.isfinite(table[:, CONFIDENCE])]
    if len(table) < 2:
        return {}
    confidence, actual = table[:, CONFIDENCE], table[:, F_2PX]
    found = {"masks": len(table), "ECE": calibration_error(confidence, actual)}
    return found | {"rank": float(spearmanr(confidence, actual)[0])} | risk_coverage(confidence, 1 - actual)


def by_distance(rows: list[Any]) -> dict[str, int]:
    """Wrong pixels of an instance set's rows, by their distance from the coarse boundary."""
    wrong = np.array([row[WRONG : WRONG + len(DISTANCES_PX)] for row in rows]).sum(0)
    names = [f"to {end:g} px" for end in DISTANCES_PX[:-1]] + ["farther"]
    return {name: int(count) for name, count in zip(names, wrong, strict=True)}


def slices(rows: list[Any]) -> dict[str, dict[str, float]]:
    """The measures of an instance set's rows by object size and by coarse IoU; slices without a mask are left out."""
    table = np.array(rows, np.float64)
    out = {}
    for names, values in ((SIZES, table[:, AREA]), (IOUS, table[:, 0])):
        for name, (least, most) in names.items():
            found = np.flatnonzero((values >= least) & (values < most))
            if len(found):
                out[name] = summarise_set("instance", [rows[k] for k in found])
    return out
