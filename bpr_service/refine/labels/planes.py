"""The contest for the pixels of a label map: who holds each one, and how surely.

Letters: H, W are the map's size, T the side of a tile, px; K the number of a piece's tiles, n of those worked on at
once, P of its patches.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bpr_service.kernel import kernel
from bpr_service.refine.labels.regions import LabelRegions, Labels
from bpr_service.refine.labels.tile_pool import TilePool
from bpr_service.refine.patches import Boxes
from bpr_service.refine.reassemble import TILE_PX, Accumulator, sigmoid

__all__ = ["LabelPlanes", "LabelRegions"]

_TOP = 32767  # confidence 1; the highest bit says that the pixel lies under a patch of its own coarse label
_OWN = 32768


@kernel
def _touched(boxes: Boxes, height: int, width: int) -> NDArray[np.int64]:
    """Tiles of the map that a box touches, each once, numbered row by row."""
    columns = (width + TILE_PX - 1) // TILE_PX
    x0, y0 = boxes[:, 0].min() // TILE_PX, boxes[:, 1].min() // TILE_PX
    x1, y1 = (min(boxes[:, 2].max(), width) - 1) // TILE_PX, (min(boxes[:, 3].max(), height) - 1) // TILE_PX
    seen = np.zeros((y1 - y0 + 1, x1 - x0 + 1), np.bool_)
    for i in range(boxes.shape[0]):
        bottom, right = min(boxes[i, 3], height) - 1, min(boxes[i, 2], width) - 1
        for ty in range(boxes[i, 1] // TILE_PX, bottom // TILE_PX + 1):
            for tx in range(boxes[i, 0] // TILE_PX, right // TILE_PX + 1):
                seen[ty - y0, tx - x0] = True
    tiles = np.empty(seen.sum(), np.int64)
    n = 0
    for ty in range(seen.shape[0]):
        for tx in range(seen.shape[1]):
            if seen[ty, tx]:
                tiles[n] = (ty + y0) * columns + tx + x0
                n += 1
    return tiles


@kernel
def _join(
    tiles: NDArray[np.int64],
    columns: int,
    index: NDArray[np.int32],
    sums: NDArray[np.float64],
    total: NDArray[np.float64],
    x0: int,
    y0: int,
    slots: NDArray[np.int32],
    held: NDArray[np.bool_],
    waiting: NDArray[np.float64],
) -> None:
    """Move a piece's sums under the map's `tiles` to ``waiting[slots]`` (K, 2, T, T), where some are `held` already."""
    for i in range(tiles.size):
        top, left = tiles[i] // columns * TILE_PX - y0, tiles[i] % columns * TILE_PX - x0
        values, weights = waiting[slots[i], 0], waiting[slots[i], 1]
        if not held[i]:
            values[:] = 0.0
            weights[:] = 0.0
        for r in range(max(0, -top), min(TILE_PX, index.shape[0] * TILE_PX - top)):
            ty, row = (top + r) // TILE_PX, (top + r) % TILE_PX
            for k in range(max(0, -left), min(TILE_PX, index.shape[1] * TILE_PX - left)):
                tile, column = index[ty, (left + k) // TILE_PX], (left + k) % TILE_PX
                if tile >= 0:
                    values[r, k] += sums[tile, 0, row, column]
                    weights[r, k] += total[tile, row, column]
                    total[tile, row, column] = 0.0


@kernel
def _contest(
    value: NDArray[np.float64],
    weight: NDArray[np.float64],
    label: int,
    void: int,
    coarse: Labels,
    winner: Labels,
    sure: NDArray[np.uint16],
) -> None:
    """Let `label` contest the pixels of a row where it has weight; its average there is ``value / weight``."""
    for k in range(coarse.size):
        before = coarse[k]
        if weight[k] <= 0.0 or before == void:
            continue
        mine = int(value[k] / weight[k] * _TOP + 0.5)
        best = int(sure[k])
        flag = best & _OWN
        best &= _TOP
        own = before == label
        if own:
            flag = _OWN
        held = winner[k]
        if mine > best or (mine == best and (own or (held != before and label < held))):
            best = mine
            winner[k] = label
        sure[k] = best | flag


@kernel
def _claim(
    tiles: NDArray[np.int64],
    columns: int,
    index: NDArray[np.int32],
    sums: NDArray[np.float64],
    total: NDArray[np.float64],
    x0: int,
    y0: int,
    label: int,
    void: int,
    coarse: Labels,
    winner: Labels,
    slots: NDArray[np.int32],
    confidence: NDArray[np.uint16],
) -> None:
    """Let `label` contest the pixels of the map's `tiles` under the patches of a piece."""
    height, width = coarse.shape
    for i in range(tiles.size):
        top, left = tiles[i] // columns * TILE_PX, tiles[i] % columns * TILE_PX
        right = min(left + TILE_PX, width, x0 + index.shape[1] * TILE_PX)
        for y in range(max(top, y0), min(top + TILE_PX, height, y0 + index.shape[0] * TILE_PX)):
            ty, row = (y - y0) // TILE_PX, (y - y0) % TILE_PX
            x = max(left, x0)
            while x < right:  # the piece's tiles start elsewhere than the map's: two of them share the row
                first = (x - x0) % TILE_PX
                n = min(TILE_PX - first, right - x)
                tile = index[ty, (x - x0) // TILE_PX]
                if tile >= 0:
                    value, weight = sums[tile, 0, row, first : first + n], total[tile, row, first : first + n]
                    sure = confidence[slots[i], y - top, x - left : x - left + n]
                    _contest(value, weight, label, void, coarse[y, x : x + n], winner[y, x : x + n], sure)
                x += n


@kernel
def _claim_joined(
    tiles: NDArray[np.int64],
    columns: int,
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    label: int,
    void: int,
    coarse: Labels,
    winner: Labels,
    slots: NDArray[np.int32],
    confidence: NDArray[np.uint16],
) -> None:
    """Let `label` contest the pixels of the map's `tiles`, from their (n, T, T) sums."""
    height, width = coarse.shape
    for i in range(tiles.size):
        top, left = tiles[i] // columns * TILE_PX, tiles[i] % columns * TILE_PX
        n = min(TILE_PX, width - left)
        for r in range(min(TILE_PX, height - top)):
            before, after = coarse[top + r, left : left + n], winner[top + r, left : left + n]
            _contest(values[i, r], weights[i, r], label, void, before, after, confidence[slots[i], r])


@kernel
def _settle(
    tiles: NDArray[np.int64],
    columns: int,
    coarse: Labels,
    winner: Labels,
    slots: NDArray[np.int32],
    confidence: NDArray[np.uint16],
    added: NDArray[np.int64],
    removed: NDArray[np.int64],
) -> None:
    """Give back the pixels of `tiles` that no patch of their own coarse label saw: there its confidence is 1. Count
    the rest.
    """
    height, width = coarse.shape
    for i in range(tiles.size):
        top, left = tiles[i] // columns * TILE_PX, tiles[i] % columns * TILE_PX
        sure = confidence[slots[i]]
        for r in range(min(TILE_PX, height - top)):
            for k in range(min(TILE_PX, width - left)):
                y, x = top + r, left + k
                if winner[y, x] == coarse[y, x]:
                    continue
                if sure[r, k] & _OWN:
                    added[winner[y, x]] += 1
                    removed[coarse[y, x]] += 1
                else:
                    winner[y, x] = coarse[y, x]


class LabelPlanes:
    """Who holds each pixel so far, and how surely: labels claim the pixels under their patches in any order.

    A label's patches come in pieces, each complete in itself. The map of winners is whole from the start, for it is the
    result; confidences, and sums that wait for another piece of their label, are held tile by tile, and only until the
    last piece that touches the tile is in. Pieces that come in order of space so keep a strip of the map in memory;
    any other order gives the same map and keeps more.

    Attributes
    ----------
    winner : (H, W), of the map's dtype
    added, removed : pixels won and lost of each label, indexed by label; of the tiles that are settled
    """

    def __init__(self, regions: LabelRegions) -> None:
        self.regions = regions
        self.winner: Labels = regions.map.copy()
        self.added, self.removed = np.zeros(regions.top + 1, np.int64), np.zeros(regions.top + 1, np.int64)
        height, width = regions.map.shape
        self._columns = -(-width // TILE_PX)
        self._tiles = self._columns * -(-height // TILE_PX)
        self._waiting = np.zeros(self._tiles, np.int32)  # pieces to come that touch the tile
        self._slots = np.full(self._tiles, -1, np.int32)
        self._confidence = TilePool((TILE_PX, TILE_PX), np.uint16)
        self._shared = np.empty(0, np.int64)  # tiles where a label has several pieces, as label * tiles + tile
        self._shares = np.empty(0, np.int64)  # how many of them are to come
        self._shared_slots = np.empty(0, np.int32)
        self._sums = TilePool((2, TILE_PX, TILE_PX), np.float64)

    def expect(self, pieces: Iterable[tuple[int, Boxes]]) -> None:
        """Before the first claim, all that will come: label and (P, 4) int32 boxes of each piece."""
        keys = []
        self._waiting[:] = 0
        for label, boxes in pieces:
            tiles = _touched(boxes, *self.winner.shape)
            self._waiting[tiles] += 1
            keys.append(label * self._tiles + tiles)
        if keys:
            found, counts = np.unique(np.concatenate(keys), return_counts=True)
            self._shared, self._shares = found[counts > 1], counts[counts > 1]
            self._shared_slots = np.full(self._shared.size, -1, np.int32)

    def take(self, label: int, patches: Accumulator, *, claim: bool = True) -> None:
        """A piece is in: let `label` contest the pixels under its patches, or not; settle what no other piece
        touches.
        """
        tiles = _touched(patches.boxes, *self.winner.shape)
        if claim:
            self._claim(label, tiles, patches)
        self._waiting[tiles] -= 1
        done = tiles[(self._waiting[tiles] == 0) & (self._slots[tiles] >= 0)]
        slots, coarse, sure = self._slots[done], self.regions.map, self._confidence.tiles
        _settle(done, self._columns, coarse, self.winner, slots, sure, self.added, self.removed)
        self._slots[done] = -1
        self._confidence.give_back(slots)

    def _claim(self, label: int, tiles: NDArray[np.int64], patches: Accumulator) -> None:
        void = -1 if self.regions.void is None else self.regions.void
        new = tiles[self._slots[tiles] < 0]
        self._slots[new] = self._confidence.lend(new.size)
        sure = self._confidence.tiles
        sure[self._slots[new]] = 0
        contest = (label, void, self.regions.map, self.winner)
        logit = patches.config.average == "logit"
        if self._shared.size:
            joined, values, weights = self._join(label, tiles, patches)
            if logit:
                values, weights = _probabilities(values, weights)
            _claim_joined(joined, self._columns, values, weights, *contest, self._slots[joined], sure)
        sums, total = patches.sums, patches.total
        if logit:
            sums, total = _probabilities(sums[:, :1], total[:, None])
            total = total[:, 0]
        place = (patches.index, sums, total, patches.x0, patches.y0)
        _claim(tiles, self._columns, *place, *contest, self._slots[tiles], sure)

    def _join(
        self, label: int, tiles: NDArray[np.int64], patches: Accumulator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Move the sums out of tiles that other pieces of the label touch too; those that have all of them now, with
        their (n, T, T) sums and total weights.
        """
        keys = label * self._tiles + tiles
        at = np.minimum(np.searchsorted(self._shared, keys), self._shared.size - 1)
        here = self._shared[at] == keys
        at = at[here]
        held = self._shared_slots[at] >= 0
        self._shared_slots[at[~held]] = self._sums.lend(int(at.size - held.sum()))
        self._shares[at] -= 1
        last, slots = self._shares[at] == 0, self._shared_slots[at]
        place = (patches.index, patches.sums, patches.total, patches.x0, patches.y0)
        _join(tiles[here], self._columns, *place, slots, held, self._sums.tiles)
        joined = self._sums.tiles[slots[last]]
        self._sums.give_back(slots[last])
        return tiles[here][last], joined[:, 0], joined[:, 1]

    def result(self) -> Labels:
        """The final map, in the dtype given, once all pieces are in."""
        return self.regions.named(self.winner)


def _probabilities(
    sums: NDArray[np.float64], total: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of logits as probabilities, of weight 1 where there is weight."""
    with np.errstate(invalid="ignore", divide="ignore"):  # where no patch lies; not read
        average = sigmoid((sums / total).astype(np.float32))
    return average.astype(np.float64), (total > 0.0).astype(np.float64)
