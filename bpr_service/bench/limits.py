"""What the machine can do, measured: a large matrix product, a large copy, and the network's share of the first."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn

    from bpr_service.core.backends import Forward


def machine() -> dict[str, Any]:
    """The processor, its threads and its measured peaks: fp32 GFLOP/s of a matrix product, GB/s of a copy."""
    import torch

    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gemm_gflops": round(gemm_gflops(), 1),
        "copy_gb_per_s": round(copy_gb_per_s(), 1),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def best_of(call: Any, repeat: int = 5) -> float:
    """Seconds of the quickest of some calls, after one that warms up."""
    call()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def gemm_gflops(side: int = 2048) -> float:
    """GFLOP/s of a float32 product of two side x side matrices, as torch does it with its threads."""
    import torch

    a, b, out = (torch.ones(side, side) for _ in range(3))
    return 2 * side**3 / best_of(lambda: torch.mm(a, b, out=out)) / 1e9


def copy_gb_per_s(megabytes: int = 256) -> float:
    """GB/s, read and written, of a copy that no cache holds."""
    a = np.ones(megabytes << 17, np.float64)
    b = np.empty_like(a)
    return 2 * a.nbytes / best_of(lambda: np.copyto(b, a)) / 1e9


def gflop_a_patch(network: nn.Module, network_size_px: int) -> float:
    """GFLOP (two a multiply-add) of one patch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 4, network_size_px, network_size_px))
    return float(counter.get_total_flops() / 1e9)


def patches_per_s(forward: Forward, crops: np.ndarray[Any, Any], batch: int) -> float:
    """The pure network: normalised patches in memory to logits in memory, in batches of `batch`."""
    import torch

    from bpr_service.core.normalise import normalise

    patches = normalise(torch.from_numpy(crops))
    batches = [patches[k : k + batch] for k in range(0, len(patches), batch)]

    def run() -> None:
        with torch.inference_mode():
            for one in batches:
                forward(one)

    return len(patches) / best_of(run, repeat=3)
