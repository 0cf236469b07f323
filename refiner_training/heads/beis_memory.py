"""What BEIS remembers between steps, and how it draws keys: feature banks, category confusion, weighted samples.

Letters: N RoIs, S entries to draw from, D channels, C classes with 0 as background.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def weighted_sample(weights: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw without replacement from each row, in proportion to the weights (exponential trick, as multinomial).

    Unlike ``torch.multinomial``, rows with fewer positive weights than ``count``, or none, are allowed.

    Args:
        weights: (N, S), not negative.
        count: how many to draw a row.
        generator: on the device of ``weights``.

    Returns:
        indices (N, count) int64 and valid (N, count) bool: an entry of weight 0 is never valid.
    """
    entries = weights.shape[1]
    if entries < count:
        weights = F.pad(weights, (0, count - entries))
    noise = torch.empty(weights.shape, device=weights.device).exponential_(generator=generator)
    order = torch.where(weights > 0, weights.float() / noise.clamp(min=1e-30), -torch.ones_like(noise))
    best, indices = order.topk(count, dim=1)
    return indices.clamp(max=max(entries - 1, 0)), best > 0


def class_weights(affinity: Tensor, key_classes: Tensor, key_valid: Tensor) -> Tensor:
    """Adaptive key selection (BEIS, sec. 3.3.3): a class by softmax of the confusion row, then uniform inside it.

    Args:
        affinity: (N, C), row u of the confusion matrix for each query's class u.
        key_classes: (N, S) or (S,) int64, the class of each key.
        key_valid: same shape, bool.

    Returns:
        (N, S) weights: softmax over the classes that have a valid key, divided by the class' number of keys.
    """
    rows = len(affinity)
    key_classes = key_classes.expand(rows, -1)
    key_valid = key_valid.expand(rows, -1)
    counts = torch.zeros_like(affinity).scatter_add_(1, key_classes, key_valid.to(affinity))
    chance = torch.softmax(affinity.masked_fill(counts == 0, -torch.inf), dim=1).nan_to_num(0.0)
    per_key = chance / counts.clamp(min=1)
    return per_key.gather(1, key_classes) * key_valid


class FeatureBank:
    """First-in-first-out store of detached features with a class each (BEIS, sec. 3.3).

    Memory is taken at the first push. It is no part of the module's state dict; checkpoints carry :meth:`state`.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._features: Tensor | None = None
        self._classes: Tensor | None = None
        self._next = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def features(self) -> Tensor:
        """(len, D) float32."""
        assert self._features is not None, "the bank is empty"
        return self._features[: self._count]

    @property
    def classes(self) -> Tensor:
        """(len,) int64."""
        assert self._classes is not None, "the bank is empty"
        return self._classes[: self._count]

    def push(self, features: Tensor, classes: Tensor) -> None:
        """Store (n, D) features, dropping non-finite ones and overwriting the oldest."""
        features = features.detach().float()
        finite = features.isfinite().all(1)
        features, classes = features[finite][-self.capacity :], classes[finite][-self.capacity :]
        if len(features) == 0:
            return
        if self._features is None:
            self._begin(features)
        self.to(features.device)
        assert self._features is not None
        assert self._classes is not None
        slots = (self._next + torch.arange(len(features), device=features.device)) % self.capacity
        self._features[slots], self._classes[slots] = features, classes
        self._next = (self._next + len(features)) % self.capacity
        self._count = min(self._count + len(features), self.capacity)

    def to(self, device: torch.device) -> None:
        """Move what is held."""
        if self._features is not None and self._classes is not None:
            self._features, self._classes = self._features.to(device), self._classes.to(device)

    def _begin(self, like: Tensor) -> None:
        self._features = like.new_zeros((self.capacity, like.shape[1]))
        self._classes = torch.zeros(self.capacity, dtype=torch.int64, device=like.device)

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint needs."""
        return {
            "features": self._features,
            "classes": self._classes,
            "next": self._next,
            "count": self._count,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state`."""
        self._features, self._classes = state["features"], state["classes"]
        self._next, self._count = state["next"], state["count"]


class ConfusionMatrix:
    """How alike the boundary features of two classes are: P (C, C), an average of cosines (BEIS, sec. 3.3.3)."""

    def __init__(self, classes: int, initial: float = 0.1, momentum: float = 0.99) -> None:
        self.momentum = momentum
        self.values = torch.full((classes, classes), initial)

    def rows(self, labels: Tensor) -> Tensor:
        """(N, C) rows of the labels' classes, on the labels' device."""
        self.values = self.values.to(labels.device)
        return self.values[labels]

    def update(self, own: Tensor, other: Tensor, cosine: Tensor) -> None:
        """P(u, v) <- m P(u, v) + (1 - m) cos for every observed pair; several of one pair count as that many steps.

        ``own`` u, ``other`` v (n,) int64; ``cosine`` (n,). Non-finite cosines are dropped.
        """
        finite = cosine.isfinite()
        own, other, cosine = own[finite], other[finite], cosine.detach().float()[finite]
        values = self.values.to(cosine.device)
        flat = own * values.shape[1] + other
        count = torch.zeros(values.numel(), device=cosine.device).index_add_(0, flat, torch.ones_like(cosine))
        total = torch.zeros_like(count).index_add_(0, flat, cosine)
        keep = self.momentum**count
        mixed = keep * values.flatten() + (1 - keep) * total / count.clamp(min=1)
        self.values = mixed.reshape(values.shape)
