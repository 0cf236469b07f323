"""Which backend and precision run a network best on this processor: measured side by side, for the model's card.

Shapes: n patches of S x S px.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import Precision, Runner
from bpr_service.network.backends import open_backend
from bpr_service.network.choice import PIXELS_EQUAL
from bpr_service.network.devices import threads
from bpr_service.network.weights import Candidate, Chosen, Int8Files, RuntimeCard

if TYPE_CHECKING:
    from torch import nn

    from bpr_service.network.backends import Forward

CANDIDATES: tuple[tuple[Runner, Precision], ...] = (
    ("eager", "fp32"),
    ("eager", "bf16"),
    ("compile", "fp32"),
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)
BATCH = 32
"""Patches a call, as on a CPU."""
ROUNDS = (3, 12)
"""Times that each candidate is timed: at least, and at most."""
TIMED_S = 6.0
"""No further round begins when the rounds have taken this long."""


def measure(
    network: nn.Module,
    crops: NDArray[np.uint8],
    int8: Int8Files | None = None,
    *,
    patches: str = "",
) -> RuntimeCard:
    """Time `CANDIDATES` in turns, with torch's number of threads, and compare their answers with eager float32's.

    Every round runs each candidate once on the same batch, so that what slows the machine slows them all; a
    candidate's figure is its best round. With one thread processor time counts, which other processes hardly change.
    What cannot run is listed with the reason.

    Args:
        network: in evaluation mode, on the CPU; its first output is the foreground logit.
        crops: (n, S, S, 4) uint8, n > 0: all are compared, the first `BATCH` are timed.
        int8: the network quantised at S.
        patches: what `crops` are, for the card.
    """
    import torch

    from bpr_service.network.normalise import normalise

    network = network.eval().to(memory_format=torch.channels_last)
    batches = [normalise(crops[k : k + BATCH]) for k in range(0, len(crops), BATCH)]
    eager = _foreground(open_backend("eager", "fp32", network, "cpu", crops.shape[1]), batches)
    found: list[Candidate] = []
    running: dict[int, Forward] = {}
    for backend, precision in CANDIDATES:
        try:
            forward = open_backend(backend, precision, network, "cpu", crops.shape[1], int8)
            equal = float((_foreground(forward, batches) == eager).mean())
        except Exception as cause:  # a backend raises whatever its compiler meets
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            found.append(Candidate(backend=backend, precision=precision, missing=reason[:200]))
            continue
        running[len(found)] = forward
        found.append(Candidate(backend=backend, precision=precision, pixels_equal=round(equal, 6)))
    for place, seconds in _best_seconds(running, batches[0]).items():
        found[place] = found[place].with_options(patches_per_s=round(len(batches[0]) / seconds, 1))
    best = max((c for c in found if (c.pixels_equal or 0) >= PIXELS_EQUAL), key=lambda c: c.patches_per_s or 0)
    return RuntimeCard(
        processor=processor(),
        threads=threads(),
        patches=patches,
        candidates=found,
        chosen=Chosen(backend=best.backend, precision=best.precision),
    )


def _foreground(forward: Forward, batches: Sequence[NDArray[np.float32]]) -> NDArray[np.bool_]:
    """Pixels with a positive logit: (n, S, S) bool."""
    return np.concatenate([forward(batch)[:, 0] > 0 for batch in batches])


def _best_seconds(running: dict[int, Forward], batch: NDArray[np.float32]) -> dict[int, float]:
    """Seconds of each function's quickest call on a batch, called in turns."""
    clock = time.process_time if threads() == 1 else time.perf_counter
    best = dict.fromkeys(running, float("inf"))
    least, most = ROUNDS
    begin = time.perf_counter()
    for done in range(most):
        if done >= least and time.perf_counter() - begin > TIMED_S:
            break
        for place, forward in running.items():
            start = clock()
            forward(batch)
            best[place] = min(best[place], clock() - start)
    return best


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(runtime: RuntimeCard) -> str:
    """The candidates as text, the chosen one marked."""
    lines = [f"{runtime.processor}, {runtime.threads} thread{'s' * (runtime.threads > 1)}; pixels on {runtime.patches}"]
    for c in runtime.candidates:
        mark = "*" if (c.backend, c.precision) == (runtime.chosen.backend, runtime.chosen.precision) else " "
        figures = f"{c.patches_per_s or 0:8.1f} patches/s  {100 * (c.pixels_equal or 0):8.4f} % of pixels equal"
        lines.append(f"{mark} {c.backend:<12}{c.precision:<5}{c.missing or figures}")
    return "\n".join(lines)
