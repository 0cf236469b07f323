"""The labels of a map numbered without gaps: what is kept of each label then needs no table up to the highest.

Letters: H, W are the map's size, px; L the number of labels in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.kernel import kernel

_SPREAD = 2654435761
"""Knuth's multiplier: it spreads labels that follow each other over a table whose length is a power of two."""


@kernel
def _number(labels: NDArray[Any], numbers: NDArray[Any], found: NDArray[np.int64], places: NDArray[np.int32]) -> int:
    """Write into `numbers` (H, W) the place in `found` of each label, in the order in which labels are met.

    `places`, all -1 and longer than `found`, is the hash table.

    Returns:
        How many labels there are, -1 where `found` is too short.
    """
    last = places.size - 1
    n, number, before = 0, -1, labels[0, 0]
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            label = labels[y, x]
            if number < 0 or label != before:
                at = ((np.int64(label) * _SPREAD) >> 8) & last
                while places[at] >= 0 and found[places[at]] != label:
                    at = (at + 1) & last
                if places[at] < 0:
                    if n == found.size:
                        return -1
                    found[n] = label
                    places[at] = n
                    n += 1
                before, number = label, places[at]
            numbers[y, x] = number
    return n


@kernel
def _replace(numbers: NDArray[Any], new: NDArray[Any]) -> None:
    """In place: each number by its entry in `new`."""
    for y in range(numbers.shape[0]):
        for x in range(numbers.shape[1]):
            numbers[y, x] = new[numbers[y, x]]


def dense(label_map: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Number the labels of a map by their rank; ``labels[numbers]`` is the map.

    Args:
        label_map: (H, W) integers, at least one.

    Returns:
        The L labels, rising, and the (H, W) map of their numbers: uint16, or int32 of more than 65,536 labels.
    """
    room, n = 1 << 12, -1
    while n < 0:
        numbers = np.empty(label_map.shape, np.uint16 if room <= 1 << 16 else np.int32)
        found = np.empty(room, np.int64)
        n = _number(label_map, numbers, found, np.full(2 * room, -1, np.int32))
        room *= 4
    order = np.argsort(found[:n])
    rank = np.empty(n, numbers.dtype)
    rank[order] = np.arange(n)
    _replace(numbers, rank)
    return found[order], numbers
