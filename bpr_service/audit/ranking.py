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

from bpr_service.audit.measures import INPUTS
from bpr_service.audit.suspicion import Judge
from bpr_service.audit.verdict import Verdicts, flag_of

SAMPLE = 20_000
"""Masks from which it is known what is usual in the data set."""
CHUNK = 8192


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
            self._flags.append(flag_of(json.loads(line)["kinds"]))
        self._inputs.write(inputs)

    def judge(self, judge: Judge) -> None:
        """Say of each mask how suspicious it is, among all of them."""
        n = len(self)
        self._inputs.flush()
        shape = (n, len(INPUTS))
        known: Any = np.memmap(self._inputs, np.float32, "r", shape=shape) if n else np.empty(shape, np.float32)
        sample = np.asarray(known[:: max(1, n // SAMPLE)])
        usual = judge.usual(sample[np.isfinite(sample).all(1)])
        self._verdicts = Verdicts(n)
        for start in range(0, n, CHUNK):
            self._verdicts.judge(judge, start, np.asarray(known[start : start + CHUNK]), usual)
        self._verdicts.settle(np.frombuffer(self._flags, np.int8) if n else np.empty(0, np.int8))
        self.suspicion = self._verdicts.suspicion
        self.order = np.argsort(-self.suspicion, kind="stable")

    def rows(self, indices: Any = None) -> Iterator[dict[str, Any]]:
        """What is reported of masks, of all and the worst first where no indices are given."""
        for index in (self.order if indices is None else indices).tolist():
            yield self.row(index)

    def row(self, index: int) -> dict[str, Any]:
        """What is reported of a mask."""
        start, end = self._starts[index], self._starts[index + 1]
        self._rows.seek(start)
        return self._verdicts.tell(json.loads(self._rows.read(end - start)), index)
