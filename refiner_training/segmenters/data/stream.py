"""Training data as endless and exactly resumable streams of batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from refiner_training.segmenters.base import Target
from refiner_training.segmenters.data.augment import Sample
from refiner_training.segmenters.data.sets import InstanceSet, LabelSet


class StreamSampler(Sampler[tuple[int, int]]):
    """Endless (index, position): every epoch a new order; what position p shows depends on seed and p alone.

    An epoch shows image i floor(r) or ceil(r) times, r = ``repeats[i]``, on average r times. All epochs have one
    length, the sum of ``repeats`` rounded. Processes take every ``world``-th position, so one run on many processes
    sees what one process would.
    """

    def __init__(
        self, repeats: NDArray[np.float64], *, seed: int, first: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.until = np.cumsum(repeats) * (round(repeats.sum()) / repeats.sum())
        self.count, self.seed, self.first, self.rank, self.world = round(repeats.sum()), seed, first, rank, world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, order = -1, np.empty(0, np.int64)
        position = self.first + self.rank
        while True:
            if position // self.count != epoch:
                epoch = position // self.count
                order = self._epoch(epoch)
            yield int(order[position % self.count]), position
            position += self.world

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        """Indices of one epoch: points a unit apart, laid over the repeats end to end, then shuffled."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self.count)
        drawn = np.searchsorted(self.until, np.arange(self.count) + rng.random(), side="right")
        return np.minimum(drawn, len(self.until) - 1)[order]


def collate(samples: list[Sample]) -> tuple[list[Tensor], list[Target]]:
    """A batch as two lists: images differ in size."""
    return [image for image, _ in samples], [target for _, target in samples]


def make_loader(dataset: InstanceSet | LabelSet, sampler: StreamSampler, batch: int, workers: int) -> DataLoader[Any]:
    """Batches of one process, for ever."""
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def val_loader(dataset: InstanceSet | LabelSet) -> DataLoader[Any]:
    """One image a batch, in order."""
    places: Any = [(index, index) for index in range(len(dataset))]
    return DataLoader(dataset, batch_size=1, sampler=places, collate_fn=collate)
