"""Intervals and slices of a set's rows.

Intervals are those of a paired bootstrap over groups of images (a video is one group): every method is measured on the
same draws, so that the difference of two of them has an interval of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quality_measure import AREA, summarise_set

DRAWS = 300
LEVELS = (2.5, 97.5)
SEED = 7
SIZES = {"under 32 x 32 px": (0, 32**2), "to 96 x 96": (32**2, 96**2), "over": (96**2, np.inf)}
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
