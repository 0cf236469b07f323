"""What is said of a mask once it is judged: suspicion, expected figures, and the kinds of error that are named.

Letters: n masks, M measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.audit.kinds import EMPTY, ESTIMATED, NAMED_FROM, TWICE, TWICE_SUSPICION
from bpr_service.audit.suspicion import F32, Judge, Usual

UNJUDGED = "unjudged"
_LIMITS = np.array([NAMED_FROM[kind] for kind in ESTIMATED], np.float32)


def flag_of(kinds: Sequence[str]) -> int:
    """What was counted of a mask and decides about it, as bits: 1 empty, 2 like another."""
    return 1 * (EMPTY in kinds) + 2 * (TWICE in kinds)


class Verdicts:
    """Verdicts about n masks: fill them with `judge`, then call `settle`.

    Attributes:
        suspicion: (n,) float32, 0 for masks that cannot be judged.
    """

    def __init__(self, n: int) -> None:
        self.suspicion = np.zeros(n, np.float32)
        self._estimates = np.zeros((n, 2), np.float32)
        self._kinds = np.zeros((n, len(ESTIMATED)), np.float16)
        self._judged = np.zeros(n, np.bool_)

    def judge(self, judge: Judge, start: int, values: F32, usual: Usual) -> None:
        """Judge the masks from `start` on by their (k, M) measures; NaN where the refiner could not see one."""
        part = slice(start, start + len(values))
        can = np.asarray(np.isfinite(values).all(axis=1), np.bool_)
        found = judge(np.where(can[:, None], values, 0), usual)
        self._judged[part] = can
        self.suspicion[part] = np.where(can, found.suspicion, 0)
        self._estimates[part] = np.stack([found.iou, found.boundary_f], 1) * can[:, None]
        self._kinds[part] = found.kinds * can[:, None]

    def settle(self, flags: NDArray[np.int8]) -> None:
        """Let what was counted decide: (n,) `flag_of` of the masks."""
        twice, empty = flags & 2 > 0, flags & 1 > 0
        self.suspicion[twice] = np.maximum(self.suspicion[twice], TWICE_SUSPICION)
        self.suspicion[empty] = 1.0
        self._judged |= empty

    def tell(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        """A mask's row with the verdict."""
        suspicion = float(self.suspicion[index])
        told = {**row, "suspicion": round(suspicion, 4)}
        if not self._judged[index]:
            return {**told, "expected_iou": None, "expected_boundary_f": None, UNJUDGED: "it fills the picture"}
        told["expected_iou"], told["expected_boundary_f"] = (round(float(v), 4) for v in self._estimates[index])
        likely = suspicion * self._kinds[index].astype(np.float32)
        order = np.argsort(-likely, kind="stable")
        told["kinds"] = [*row["kinds"], *(ESTIMATED[k] for k in order if likely[k] >= _LIMITS[k])]
        return told


def verdicts(judge: Judge, rows: Sequence[Mapping[str, Any]], values: F32) -> list[dict[str, Any]]:
    """The rows of one picture's masks with their verdicts, from their (n, M) measures alone."""
    found = Verdicts(len(rows))
    found.judge(judge, 0, values, judge.usual(values[np.isfinite(values).all(axis=1)]))
    found.settle(np.array([flag_of(row["kinds"]) for row in rows], np.int8))
    return [found.tell(row, index) for index, row in enumerate(rows)]
