"""Averaged weights (exponential moving average): what is validated, and what a checkpoint gives as the network."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class Averaging(WeightAveraging):
    """Lightning's averaging with a short memory at first, so that the average does not drag the random start along."""

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=lambda mean, new, count: average(mean, new, int(count), decay))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the weights as they are: a checkpoint holds both, and the run can be gone on with."""


@torch.no_grad()
def average(mean: list[Tensor], new: list[Tensor], count: int, decay: float) -> None:
    """Move averages towards new values in place; whole numbers, such as counts of batches, are copied.

    Args:
        mean: the averages, changed in place.
        new: tensors of the same types.
        count: how many updates went before, at least 1.
        decay: the share of the average that is kept in the long run.
    """
    if new[0].is_floating_point():
        torch._foreach_lerp_(mean, new, 1 - min(decay, (1 + count) / (10 + count)))
    else:
        torch._foreach_copy_(mean, new)
