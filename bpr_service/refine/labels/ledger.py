"""Which tiles of a map each label's patches touch, where their sums lie, and when a tile is complete.

Letters: H, W are the map's size, T the side of a tile, px; P is the number of patches, n of those added at once, K of
tiles, E of entries.

An entry is a tile and a label with a patch in it; entries are sorted by tile, then label. Only what lies between a
tile's first patch and its last has room for sums: patches come block by block, so that is a strip of the map, whatever
its size. All of it follows from where the patches lie, so it is known without looking at a value, which may lie in the
memory of a device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.kernel import kernel
from bpr_service.refine.labels.free_list import FreeList
from bpr_service.refine.patches import Boxes
from bpr_service.refine.tiles import F64, TILE_PX

BLOCK_PX = 512
"""About the side of the blocks that the patches of a map come in."""

I32 = NDArray[np.int32]

_FOUND = -2  # in place of a room: of an entry that is to have one


def in_blocks(boxes: Sequence[Boxes], height: int, width: int) -> NDArray[np.int64]:
    """(P,) int64: the order in which the patches of all labels come block by block of an (H, W) map.

    In a block they come label by label.

    A box belongs to the block of its left top. Blocks start at multiples of a tile, so that those beside each other
    share as few as can be.
    """
    rows, columns = max(round(height / BLOCK_PX), 1), max(round(width / BLOCK_PX), 1)
    sides = [-(-length // (n * TILE_PX)) * TILE_PX for length, n in ((height, rows), (width, columns))]
    placed = np.concatenate([np.empty((0, 4), np.int32), *boxes])
    return np.argsort(placed[:, 1] // sides[0] * columns + placed[:, 0] // sides[1], kind="stable")


@kernel
def _enter(boxes: Boxes, owners: I32, height: int, width: int, ends: NDArray[np.int64], waiting: I32, out: I32) -> None:
    """For each entry, ``out[ends[tile]++]`` is the label, and for each patch ``waiting[tile] += 1``.

    `owners` rise. Only counts where `out` is empty.
    """
    columns = (width + TILE_PX - 1) // TILE_PX
    last = np.full(ends.size, -1, np.int32)  # the label that entered a tile last
    for i in range(boxes.shape[0]):
        bottom, right = min(boxes[i, 3], height) - 1, min(boxes[i, 2], width) - 1
        for ty in range(boxes[i, 1] // TILE_PX, bottom // TILE_PX + 1):
            for tile in range(ty * columns + boxes[i, 0] // TILE_PX, ty * columns + right // TILE_PX + 1):
                waiting[tile] += 1
                if last[tile] != owners[i]:
                    last[tile] = owners[i]
                    if out.size:
                        out[ends[tile]] = owners[i]
                    ends[tile] += 1


@kernel
def _entry(starts: NDArray[np.int64], labels: I32, tile: int, label: int) -> int:
    """Number of an entry that exists."""
    low, high = starts[tile], starts[tile + 1]
    while high - low > 1:
        middle = (low + high) // 2
        if labels[middle] <= label:
            low = middle
        else:
            high = middle
    return int(low)


@kernel
def _without_room(
    boxes: Boxes, owners: I32, height: int, width: int, starts: NDArray[np.int64], labels: I32, rooms: I32
) -> NDArray[np.int64]:
    """The entries that patches touch and that have no room."""
    columns = (width + TILE_PX - 1) // TILE_PX
    found = np.empty(64, np.int64)
    n = 0
    for i in range(boxes.shape[0]):
        bottom, right = min(boxes[i, 3], height) - 1, min(boxes[i, 2], width) - 1
        for ty in range(boxes[i, 1] // TILE_PX, bottom // TILE_PX + 1):
            for tile in range(ty * columns + boxes[i, 0] // TILE_PX, ty * columns + right // TILE_PX + 1):
                entry = _entry(starts, labels, tile, owners[i])
                if rooms[entry] >= 0 or rooms[entry] == _FOUND:
                    continue
                rooms[entry] = _FOUND
                if n == found.size:
                    found = np.concatenate((found, found))
                found[n] = entry
                n += 1
    return found[:n]


@kernel
def _look_up(
    boxes: Boxes, label: int, height: int, width: int, starts: NDArray[np.int64], labels: I32, rooms: I32, index: I32
) -> None:
    """Write the rooms of a label's tiles under its patches into `index`, a grid of the map's tiles."""
    columns = (width + TILE_PX - 1) // TILE_PX
    for i in range(boxes.shape[0]):
        bottom, right = min(boxes[i, 3], height) - 1, min(boxes[i, 2], width) - 1
        for ty in range(boxes[i, 1] // TILE_PX, bottom // TILE_PX + 1):
            for tx in range(boxes[i, 0] // TILE_PX, right // TILE_PX + 1):
                index[ty, tx] = rooms[_entry(starts, labels, ty * columns + tx, label)]


@kernel
def _grids(
    boxes: Boxes, owners: I32, height: int, width: int, starts: NDArray[np.int64], labels: I32, rooms: I32, out: I32
) -> None:
    """As `_look_up`, into a grid for each patch that begins at the tile of its left top."""
    columns = (width + TILE_PX - 1) // TILE_PX
    for i in range(boxes.shape[0]):
        y, x = boxes[i, 1] // TILE_PX, boxes[i, 0] // TILE_PX
        bottom, right = min(boxes[i, 3], height) - 1, min(boxes[i, 2], width) - 1
        for ty in range(y, bottom // TILE_PX + 1):
            for tx in range(x, right // TILE_PX + 1):
                out[i, ty - y, tx - x] = rooms[_entry(starts, labels, ty * columns + tx, owners[i])]


@kernel
def _count_down(boxes: Boxes, height: int, width: int, waiting: I32) -> NDArray[np.int64]:
    """Patches are in: the tiles that wait for none any more."""
    columns = (width + TILE_PX - 1) // TILE_PX
    done = np.empty(64, np.int64)
    n = 0
    for i in range(boxes.shape[0]):
        bottom, right = min(boxes[i, 3], height) - 1, min(boxes[i, 2], width) - 1
        for ty in range(boxes[i, 1] // TILE_PX, bottom // TILE_PX + 1):
            for tile in range(ty * columns + boxes[i, 0] // TILE_PX, ty * columns + right // TILE_PX + 1):
                waiting[tile] -= 1
                if waiting[tile] == 0:
                    if n == done.size:
                        done = np.concatenate((done, done))
                    done[n] = tile
                    n += 1
    return done[:n]


@kernel
def _entries(tiles: NDArray[np.int64], starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the entries of each tile begin among those of all `tiles` (K + 1,), and their numbers."""
    firsts = np.zeros(tiles.size + 1, np.int64)
    for i in range(tiles.size):
        firsts[i + 1] = firsts[i] + starts[tiles[i] + 1] - starts[tiles[i]]
    numbers = np.empty(firsts[-1], np.int64)
    for i in range(tiles.size):
        for k in range(firsts[i + 1] - firsts[i]):
            numbers[firsts[i] + k] = starts[tiles[i]] + k
    return firsts, numbers


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """Tiles that are complete, and the sums of every label that has a patch in them; read it before the next patch.

    Attributes:
        tiles: (K,) int64, tiles of the map, numbered row by row.
        firsts: (K + 1,) int64, where the entries of each begin.
        labels: (E,) int32, the label of each entry as the map has it; rising within a tile.
        rooms: (E,) int32, where it lies in `sums` and `total`.
        sums: (rooms, C, T, T) float64.
        total: (rooms, T, T) float64, the weight of the sums; 0 where no patch lies.
    """

    tiles: NDArray[np.int64]
    firsts: NDArray[np.int64]
    labels: I32
    rooms: I32
    sums: F64
    total: F64


class Ledger:
    """The patches of all labels of a map, in the order in which they are cut and added.

    Attributes:
        boxes: (P, 4) int32.
        owners: (P,) int32, the label of each as the map has it.
        rooms: which place for a tile's sums is lent.
    """

    def __init__(self, boxes: Sequence[Boxes], numbers: Sequence[int], height: int, width: int) -> None:
        """For the (P_i, 4) int32 patches of each label, whose `numbers` rise, of an (H, W) map."""
        self.height, self.width = height, width
        self.grid = -(-height // TILE_PX), -(-width // TILE_PX)
        every = np.concatenate([np.empty((0, 4), np.int32), *boxes])
        owners = np.repeat(np.array(numbers, np.int32), [some.shape[0] for some in boxes])
        counts = np.zeros(self.grid[0] * self.grid[1], np.int64)
        self._waiting = np.zeros(counts.size, np.int32)
        nowhere, patches = np.zeros_like(self._waiting), (every, owners, height, width)
        _enter(*patches, counts, self._waiting, np.empty(0, np.int32))
        self._starts = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])
        self._labels = np.empty(self._starts[-1], np.int32)
        _enter(*patches, self._starts[:-1].copy(), nowhere, self._labels)
        self._rooms = np.full(self._labels.size, -1, np.int32)
        order = in_blocks(boxes, height, width)
        self.boxes, self.owners = every[order], owners[order]
        self.rooms = FreeList()
        self._done: list[NDArray[np.int64]] = []

    def __len__(self) -> int:
        return self.owners.size

    def open(self, start: int, stop: int) -> I32:
        """Lend room for the sums of patches `start` to `stop` (exclusive).

        Returns:
            The rooms that are lent now, and need to be cleared.
        """
        place = (self.boxes[start:stop], self.owners[start:stop], self.height, self.width)
        entries = (self._starts, self._labels, self._rooms)
        new = _without_room(*place, *entries)
        lent = self.rooms.lend(new.size)
        self._rooms[new] = lent
        return lent

    def runs(self, start: int, stop: int, index: I32) -> Iterator[tuple[int, int]]:
        """Patches `start` to `stop` label by label: the first and the end of its own.

        The rooms of the tiles that they touch are in `index`, a grid of the map's tiles.
        """
        changes = np.flatnonzero(np.diff(self.owners[start:stop])) + start + 1
        edges = [start, *changes.tolist(), stop]
        for first, end in pairwise(edges):
            place = (self.boxes[first:end], self.owners[first], self.height, self.width)
            _look_up(*place, self._starts, self._labels, self._rooms, index)
            yield first, end

    def grids(self, start: int, stop: int) -> I32:
        """(n, k, k) int32: the rooms of the tiles under patches `start` to `stop` (exclusive), all of one size.

        They begin at the tile of a patch's left top; 0 beyond.
        """
        boxes = self.boxes[start:stop]
        k = (int(boxes[0, 2] - boxes[0, 0]) + TILE_PX - 2) // TILE_PX + 1
        out = np.zeros((stop - start, k, k), np.int32)
        place = (boxes, self.owners[start:stop], self.height, self.width)
        _grids(*place, self._starts, self._labels, self._rooms, out)
        return out

    def close(self, start: int, stop: int) -> None:
        """The sums of patches `start` to `stop` (exclusive) are in."""
        done = _count_down(self.boxes[start:stop], self.height, self.width, self._waiting)
        if done.size:
            self._done.append(done)

    def settled(self) -> tuple[NDArray[np.int64], NDArray[np.int64], I32, I32] | None:
        """Tiles that became complete since the last call: `tiles`, `firsts`, `labels` and `rooms` of `Settled`.

        The rooms may be lent again from the next call of `open`.
        """
        if not self._done:
            return None
        tiles = np.concatenate(self._done)
        self._done = []
        firsts, entries = _entries(tiles, self._starts)
        rooms = self._rooms[entries]
        self.rooms.give_back(rooms)
        return tiles, firsts, self._labels[entries], rooms


def grow(array: NDArray[Any], length: int) -> NDArray[Any]:
    """With room for `length` in all; what is there stays, the rest is undefined."""
    if length <= array.shape[0]:
        return array
    return np.concatenate([array, np.empty((length - array.shape[0], *array.shape[1:]), array.dtype)])
