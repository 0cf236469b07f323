"""What the machine can do, measured: a large matrix product, a large copy, and the network's share of the first."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.network.candidates import processor

if TYPE_CHECKING:
    from torch import nn

    from bpr_service.network.backends import Forward


def machine(device: str) -> dict[str, Any]:
    """The processor, its threads and a device's measured peaks: fp32 GFLOP/s of a matrix product, GB/s of a copy."""
    import torch

    found = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gemm_gflops": round(gemm_gflops(device), 1),
        "copy_gb_per_s": round(copy_gb_per_s(device), 1),
    }
    return found | ({"accelerator": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {})


def best_of(call: Callable[[], Any], repeat: int = 5) -> float:
    """Seconds of the quickest of some calls, after one that warms up."""
    call()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def gemm_gflops(device: str, side: int = 2048) -> float:
    """GFLOP/s of a float32 product of two side x side matrices, as torch does it with its threads."""
    import torch

    a, b, out = (torch.ones(side, side, device=device) for _ in range(3))
    return 2 * side**3 / best_of(until_done(lambda: torch.mm(a, b, out=out), device)) / 1e9


def copy_gb_per_s(device: str, megabytes: int = 256) -> float:
    """GB/s, read and written, of a copy that no cache holds."""
    import torch

    a = torch.ones(megabytes << 17, dtype=torch.float64, device=device)
    b = torch.empty_like(a)
    return 2 * a.numel() * 8 / best_of(until_done(lambda: b.copy_(a), device)) / 1e9


def until_done(call: Callable[[], Any], device: str) -> Callable[[], None]:
    """The same call, over when the device has done it."""
    import torch

    def whole() -> None:
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    return whole


def gflop_a_patch(network: nn.Module, network_size_px: int) -> float:
    """GFLOP (two a multiply-add) of one patch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 4, network_size_px, network_size_px, device=device))
    return float(counter.get_total_flops() / 1e9)


def patches_per_s(forward: Forward, crops: NDArray[np.uint8], batch: int, device: str) -> float:
    """The pure network: normalised patches in the device's memory to logits there, in batches of `batch`."""
    from bpr_service.network.normalise import normalise, normalise_tensor

    patches: Any = normalise(crops)
    if device != "cpu":
        import torch

        patches = normalise_tensor(torch.from_numpy(crops).to(device))
    batches = [patches[k : k + batch] for k in range(0, len(patches), batch)]

    def run() -> None:
        for one in batches:
            forward(one)

    return len(patches) / best_of(until_done(run, device), repeat=3)
