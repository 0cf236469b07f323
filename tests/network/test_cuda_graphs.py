"""Batches in fixed sizes, and the graphs that need them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bpr_service.network.cuda_graphs import SIZES, graphed, in_fixed_sizes, pieces
from bpr_service.network.registry import build_network


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 135, 255, 256, 332, 1000])
def test_pieces_cover_a_batch_once_and_fill_up_less_than_the_smallest_size(count: int) -> None:
    cut = list(pieces(count))
    assert [first for first, _, _ in cut] == [sum(n for _, n, _ in cut[:i]) for i in range(len(cut))]
    assert sum(n for _, n, _ in cut) == count
    assert all(n <= size and size in SIZES for _, n, size in cut)
    assert sum(size - n for _, n, size in cut) < SIZES[-1]


def test_each_size_is_recorded_once_and_the_answers_are_in_order() -> None:
    recorded: list[int] = []

    def record(size: int) -> Callable[[Tensor], Tensor]:
        recorded.append(size)
        held = torch.zeros(size, 4, 2, 2)

        def run(patches: Tensor) -> Tensor:
            held[: len(patches)].copy_(patches)
            return held[:, :1].clone()

        return run

    forward = in_fixed_sizes(record, (16, 4))
    for count in (27, 3, 27, 1):
        patches = torch.randn(count, 4, 2, 2)
        assert torch.equal(forward(patches), patches[:, :1])
    assert recorded == [16, 4]


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05)])
def test_graphs_give_the_logits_of_the_network(precision: str, tolerance: float, compiled: bool) -> None:
    device = torch.device("cuda")
    network = build_network("light_unet_s").eval().to(device)
    forward = graphed(network, precision, str(device), 64, compiled=compiled)
    with torch.inference_mode():
        for count in (21, 5, 21):
            patches = torch.randn(count, 4, 64, 64, device=device)
            want, got = network(patches), forward(patches)
            assert got.dtype == torch.float32
            assert (got - want).abs().max() <= tolerance * want.abs().max()
