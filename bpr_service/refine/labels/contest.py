"""Step 4 of a map: the contest of its labels for each pixel.

Letters: H, W are the map's size, T the side of a tile, px; K is the number of tiles.

A label's confidence at a pixel is its averaged probability where one of its patches lies. A pixel that no patch of its
own coarse label sees stays as it is; any other goes to the label of the highest confidence: on a tie to the coarse one,
then to the smallest.

A boundary between two labels that moves by next to nothing was right, or shows nothing to go by: it stays
(`Contest.restrain`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bpr_service.kernel import kernel
from bpr_service.masks.mask import Mask
from bpr_service.refine.labels.ledger import Settled
from bpr_service.refine.labels.regions import LabelRegions, Labels
from bpr_service.refine.reassemble import TILE_PX, Averaged, average, sigmoid
from bpr_service.refine.tiles import F64

_TOP = 32767  # confidence 1

LEAST_SHIFT = 0.1
"""Least pixels that change hands between two labels, for each edge between their pixels in the coarse map.

On exact maps it is about .1, on pictures that show nothing .01, on a network's maps .4 and more (val of CamVid).
"""


@kernel
def _own(value: F64, weight: F64, label: int, coarse: Labels, best: NDArray[np.int32]) -> None:
    """The confidence of `label` in the pixels of a row that it has in the coarse map."""
    for k in range(best.size):
        if coarse[k] == label and weight[k] > 0.0:
            best[k] = int(value[k] / weight[k] * _TOP + 0.5)


@kernel
def _claim(value: F64, weight: F64, label: int, coarse: Labels, winner: Labels, best: NDArray[np.int32]) -> None:
    """Let `label` contest the pixels of a row that another one has, where `best` is one's confidence and not -1."""
    for k in range(best.size):
        if best[k] >= 0 and weight[k] > 0.0 and coarse[k] != label:
            mine = int(value[k] / weight[k] * _TOP + 0.5)
            if mine > best[k]:
                best[k] = mine
                winner[k] = label


@kernel
def _contest(
    tiles: NDArray[np.int64],
    firsts: NDArray[np.int64],
    labels: NDArray[np.int32],
    rooms: NDArray[np.int32],
    sums: F64,
    total: F64,
    kept: NDArray[np.bool_],
    coarse: Labels,
    winner: Labels,
    added: NDArray[np.int64],
    removed: NDArray[np.int64],
) -> None:
    """Write the winners of `tiles` into `winner` and count what changed.

    Labels that are `kept` as they are do not take part.
    """
    height, width = coarse.shape
    columns = (width + TILE_PX - 1) // TILE_PX
    best = np.empty((TILE_PX, TILE_PX), np.int32)
    for i in range(tiles.size):
        top, left = tiles[i] // columns * TILE_PX, tiles[i] % columns * TILE_PX
        rows, right = min(TILE_PX, height - top), min(left + TILE_PX, width)
        best[:] = -1
        for e in range(firsts[i], firsts[i + 1]):
            for r in range(rows if not kept[labels[e]] else 0):
                before, row = coarse[top + r, left:right], best[r, : right - left]
                _own(sums[rooms[e], 0, r], total[rooms[e], r], labels[e], before, row)
        for e in range(firsts[i], firsts[i + 1]):
            for r in range(rows if not kept[labels[e]] else 0):
                before, after, row = coarse[top + r, left:right], winner[top + r, left:right], best[r, : right - left]
                _claim(sums[rooms[e], 0, r], total[rooms[e], r], labels[e], before, after, row)
        for y in range(top, top + rows):
            for x in range(left, right):
                if winner[y, x] != coarse[y, x]:
                    added[winner[y, x]] += 1
                    removed[coarse[y, x]] += 1


@kernel
def _edges(coarse: Labels, pairs: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    """Count the edges between pixels of each of `pairs`, the smaller label times 2^32 plus the greater, which rise."""
    height, width = coarse.shape
    for y in range(height):
        for x in range(width):
            here = np.int64(coarse[y, x])
            for down in range(2):
                if (y + 1 == height) if down else (x + 1 == width):
                    continue
                there = np.int64(coarse[y + down, x + 1 - down])
                if here != there:
                    pair = (min(here, there) << 32) + max(here, there)
                    k = np.searchsorted(pairs, pair)
                    if k < pairs.size and pairs[k] == pair:
                        counts[k] += 1


class Contest:
    """Who holds each pixel of a map.

    Attributes:
        winner: (H, W), of the map's dtype.
        added: pixels won by each label, indexed by the label as the map has it.
        removed: pixels lost.
        kept: (labels,) bool, those that are not to change, which must be known before their tiles come.
    """

    def __init__(self, regions: LabelRegions, *, logit: bool) -> None:
        """`logit`: whether logits were averaged, not probabilities."""
        self.regions, self._logit = regions, logit
        self.winner: Labels = regions.map.copy()
        self.added, self.removed = np.zeros(regions.top + 1, np.int64), np.zeros(regions.top + 1, np.int64)
        self.kept = np.zeros(regions.top + 1, np.bool_)

    def take(self, done: Settled) -> None:
        """Decide the pixels of tiles that are complete."""
        if self._logit:
            done = _probabilities(done)
        _contest(
            done.tiles, done.firsts, done.labels, done.rooms, done.sums, done.total,
            self.kept, self.regions.map, self.winner, self.added, self.removed,
        )  # fmt: skip

    def restrain(self) -> None:
        """Give back what changed between labels whose boundary moved by less than `LEAST_SHIFT`; all tiles are in."""
        coarse, winner = self.regions.map.ravel(), self.winner.ravel()
        at = np.flatnonzero(coarse != winner)
        if not at.size:
            return
        lost, won = coarse[at].astype(np.int64), winner[at].astype(np.int64)
        pairs, which, changes = np.unique(
            (np.minimum(lost, won) << 32) + np.maximum(lost, won), return_inverse=True, return_counts=True
        )
        edges = np.zeros(pairs.size, np.int64)
        _edges(self.regions.map, pairs, edges)
        back = (changes < LEAST_SHIFT * edges)[which]
        winner[at[back]] = coarse[at[back]]
        self.added -= np.bincount(won[back], minlength=self.added.size)
        self.removed -= np.bincount(lost[back], minlength=self.removed.size)

    def averaged(self, done: Settled, index: int, coarse: Mask) -> Averaged:
        """What the patches of label number `index` say together.

        Its mask is `coarse`, and all of its tiles are `done`.
        """
        mine = done.labels == self.regions.numbers[index]
        tiles = np.repeat(done.tiles, np.diff(done.firsts))[mine]
        rows, columns = np.divmod(tiles, -(-coarse.width // TILE_PX))
        x, y = int(columns.min()), int(rows.min())
        grid = np.full((rows.max() - y + 1, columns.max() - x + 1), -1, np.int32)
        grid[rows - y, columns - x] = done.rooms[mine]
        corner = min((x + grid.shape[1]) * TILE_PX, coarse.width), min((y + grid.shape[0]) * TILE_PX, coarse.height)
        known = coarse.window(x * TILE_PX, y * TILE_PX, *corner)
        return average(x * TILE_PX, y * TILE_PX, grid, done.sums, done.total, known, logit=self._logit)

    def result(self) -> Labels:
        """The final map, in the dtype given, once all tiles are in."""
        return self.regions.named(self.winner)


def _probabilities(done: Settled) -> Settled:
    """Sums of logits as probabilities, of weight 1 where there is weight."""
    sums, total = done.sums[done.rooms, :1], done.total[done.rooms]
    with np.errstate(invalid="ignore", divide="ignore"):  # where no patch lies; not read
        probability = sigmoid((sums / total[:, None]).astype(np.float32))
    rooms = np.arange(done.rooms.size, dtype=np.int32)
    return replace(done, rooms=rooms, sums=probability.astype(np.float64), total=(total > 0.0).astype(np.float64))
