"""All masks of an audit, judged against each other and in order, in bounded memory.

What was found of a mask lies in a local file and is read when it is asked for; memory holds some 90 bytes a mask.

Letters: n masks, M measures.
"""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.audit.kinds import EMPTY, ESTIMATED, TWICE, TWICE_SUSPICION
from bpr_service.audit.measures import INPUTS
from bpr_service.audit.suspicion import Judge

SAMPLE = 20_000
"""Masks from which it is known what is usual in the data set."""
CHUNK = 8192
NAMED_FROM = 0.2
"""Suspicion from which the kinds of error of a mask are named."""
LIKELY = 0.3
"""How likely a kind must be to be named."""
UNJUDGED = "unjudged"


class Ranking:
    """The masks of a data set, the most suspicious first.

    Fill it with `add`, then call `judge`; the rest answers after that.
    """

    def __init__(self, folder: Path) -> None:
        """`folder`: where the rows wait."""
        self._rows = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._inputs = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._starts, self._flags = array("q", [0]), array("b")
        self.suspicion = np.empty(0, np.float32)
        self.order = np.empty(0, np.int64)

    def __enter__(self) -> Ranking:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()
        self._inputs.close()

    def __len__(self) -> int:
        return len(self._flags)

    def add(self, lines: bytes, inputs: bytes) -> None:
        """Take in the masks of a unit: a JSON line each, and their measures as float32."""
        for line in lines.splitlines():
            self._rows.write(line)
            self._starts.append(self._starts[-1] + len(line))
            kinds = json.loads(line)["kinds"]
            self._flags.append(1 * (EMPTY in kinds) + 2 * (TWICE in kinds))
        self._inputs.write(inputs)

    def judge(self, judge: Judge) -> None:
        """Say of each mask how suspicious it is, among all of them."""
        n = len(self)
        self._inputs.flush()
        shape = (n, len(INPUTS))
        known: Any = np.memmap(self._inputs, np.float32, "r", shape=shape) if n else np.empty(shape, np.float32)
        sample = np.asarray(known[:: max(1, n // SAMPLE)])
        usual = judge.usual(sample[np.isfinite(sample).all(1)])
        flags = np.frombuffer(self._flags, np.int8) if n else np.empty(0, np.int8)
        self.suspicion = np.zeros(n, np.float32)
        self._estimates = np.zeros((n, 2), np.float32)
        self._kinds = np.zeros((n, len(ESTIMATED)), np.float16)
        self._judged = np.zeros(n, np.bool_)
        for start in range(0, n, CHUNK):
            part = slice(start, start + CHUNK)
            values = np.asarray(known[part])
            can: NDArray[np.bool_] = np.isfinite(values).all(axis=1)
            found = judge(np.where(can[:, None], values, 0), usual)
            self._judged[part] = can
            self.suspicion[part] = np.where(can, found.suspicion, 0)
            self._estimates[part] = np.stack([found.iou, found.boundary_f], 1) * can[:, None]
            self._kinds[part] = found.kinds * can[:, None]
        twice, empty = flags & 2 > 0, flags & 1 > 0
        self.suspicion[twice] = np.maximum(self.suspicion[twice], TWICE_SUSPICION)
        self.suspicion[empty] = 1.0
        self._judged |= empty
        self.order = np.argsort(-self.suspicion, kind="stable")

    def rows(self, indices: Any = None) -> Iterator[dict[str, Any]]:
        """What is reported of masks, of all and the worst first where no indices are given."""
        for index in (self.order if indices is None else indices).tolist():
            yield self.row(index)

    def row(self, index: int) -> dict[str, Any]:
        """What is reported of a mask."""
        start, end = self._starts[index], self._starts[index + 1]
        self._rows.seek(start)
        row: dict[str, Any] = json.loads(self._rows.read(end - start))
        suspicion = float(self.suspicion[index])
        row["suspicion"] = round(suspicion, 4)
        if not self._judged[index]:
            return {**row, "expected_iou": None, "expected_boundary_f": None, UNJUDGED: "it fills the picture"}
        row["expected_iou"], row["expected_boundary_f"] = (round(float(v), 4) for v in self._estimates[index])
        if suspicion >= NAMED_FROM:
            likely = np.argsort(-self._kinds[index], kind="stable")
            row["kinds"] += [ESTIMATED[k] for k in likely if self._kinds[index, k] >= LIKELY]
        return row
