"""A network as CUDA graphs: recorded once for each of a few batch sizes, then started with one call each.

Letters: n patches of S x S px, C output maps.

A light network on an accelerator is bound by the start of its hundreds of kernels; a graph starts them all at once.
Its shapes are fixed, so a batch is cut into the recorded sizes, and only its last few patches are filled up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

SIZES = (256, 128, 64, 32, 16, 8)
"""Batch sizes that are recorded, each when it is first needed."""
WARM_UPS = 3
"""Runs before a recording: libraries choose their algorithms and take their memory in them."""

Graph = Callable[["Tensor"], "Tensor"]


def pieces(count: int, sizes: Sequence[int] = SIZES) -> Iterator[tuple[int, int, int]]:
    """(first, how many, recorded size) of the runs for a batch of `count`.

    `sizes` fall; at most the last run is filled up.

    >>> list(pieces(135, (128, 16, 8)))
    [(0, 128, 128), (128, 7, 8)]
    """
    at = 0
    while at < count:
        left = count - at
        size = next((size for size in sizes if size <= left), sizes[-1])
        take = min(size, left)
        yield at, take, size
        at += take


def in_fixed_sizes(record: Callable[[int], Graph], sizes: Sequence[int] = SIZES) -> Graph:
    """A function of any number of patches from ``record(size)``, which gives one of exactly `size` patches."""
    recorded: dict[int, Graph] = {}
    turn = threading.Lock()  # refiners of several threads may share the recordings, and each holds one batch

    def forward(patches: Tensor) -> Tensor:
        import torch

        parts = []
        for first, count, size in pieces(patches.shape[0], sizes):
            with turn:
                if size not in recorded:
                    recorded[size] = record(size)
                parts.append(recorded[size](patches[first : first + count])[:count])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return forward


def graphed(network: nn.Module, precision: str, device: str, network_size_px: int, *, compiled: bool) -> Graph:
    """(n, 4, S, S) float32 patches -> (n, C, S, S) float32 logits, both on `device`, by CUDA graphs.

    Args:
        network: in evaluation mode, on `device`. In ``bf16`` a copy in bfloat16 runs.
        precision: ``fp32`` or ``bf16``; what is computed in.
        device: ``cuda:N``.
        network_size_px: S.
        compiled: record the kernels of torch's compiler instead of its own.
    """
    import copy

    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    network = copy.deepcopy(network).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward: Graph = torch.compile(network, dynamic=False) if compiled else network
    pool: Any = None  # the graphs run one after the other and share their memory

    def record(size: int) -> Graph:
        nonlocal pool
        shape = (size, 4, network_size_px, network_size_px)
        with torch.inference_mode(), torch.cuda.device(device), torch.backends.cudnn.flags(benchmark=True):
            given = torch.zeros(shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    forward(given)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits = forward(given).float()
            pool = pool or graph.pool()

        def run(patches: Tensor) -> Tensor:
            given[: patches.shape[0]].copy_(patches)
            graph.replay()
            return logits.clone()  # the next run writes to the same place

        return run

    return in_fixed_sizes(record)
