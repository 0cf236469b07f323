"""Steps 2 and 4 of a label map in the processor's memory: patches cut straight from the map, sums in the ledger's room.

Letters: H, W are the map's size, S ``network_size_px``, T the side of a tile, px; P is the number of patches, n of
those in a batch, C of output maps.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import RefineConfig
from bpr_service.kernel import kernel
from bpr_service.refine.canvas import not_finite
from bpr_service.refine.crops import cut, gather
from bpr_service.refine.labels.ledger import Ledger, Settled, grow
from bpr_service.refine.labels.regions import LabelRegions, Labels
from bpr_service.refine.patches import Boxes
from bpr_service.refine.reassemble import add_patches
from bpr_service.refine.tiles import TILE_PX

_NOTHING = np.empty((0, 0), np.uint8)


@kernel
def _mark(label_map: Labels, owners: NDArray[np.int32], boxes: Boxes, padding: int, out: NDArray[np.uint8]) -> None:
    """Write 255 into the last channel of ``out[i]`` (h, 4 w) where the map, its border repeated, has ``owners[i]``."""
    height, width = label_map.shape
    for i in range(boxes.shape[0]):
        left, top, label = boxes[i, 0] - padding, boxes[i, 1] - padding, owners[i]
        columns = out.shape[2] // 4
        first, last = min(max(-left, 0), columns), min(max(width - left, 0), columns)
        for r in range(out.shape[1]):
            row, line = out[i, r], label_map[min(max(top + r, 0), height - 1)]
            source, target = line[left + first : left + last], row[4 * first : 4 * last]
            for k in range(last - first):
                target[4 * k + 3] = np.uint8(255) if source[k] == label else np.uint8(0)
            for k in range(first):
                row[4 * k + 3] = np.uint8(255) if line[0] == label else np.uint8(0)
            for k in range(last, columns):
                row[4 * k + 3] = np.uint8(255) if line[width - 1] == label else np.uint8(0)


@kernel
def _soften(
    levels: NDArray[np.uint8], channels: NDArray[np.int32], boxes: Boxes, padding: int, out: NDArray[np.uint8]
) -> None:
    """Write the (C, H, W) `levels` of ``channels[i]``, their border repeated, into the last channel of ``out[i]``."""
    height, width = levels.shape[1], levels.shape[2]
    for i in range(boxes.shape[0]):
        left, top, level = boxes[i, 0] - padding, boxes[i, 1] - padding, levels[channels[i]]
        for r in range(out.shape[1]):
            row, line = out[i, r], level[min(max(top + r, 0), height - 1)]
            for k in range(out.shape[2] // 4):
                row[4 * k + 3] = line[min(max(left + k, 0), width - 1)]


class LabelCanvas:
    """A `bpr_service.refine.canvas.Canvas` of a label map, in the processor's memory."""

    def __init__(
        self,
        image: NDArray[np.uint8],
        regions: LabelRegions,
        ledger: Ledger,
        *,
        outputs: int,
        config: RefineConfig,
        whole: bool,
    ) -> None:
        """For an image and what is known of its map's labels.

        Args:
            image: (H, W, 3) uint8.
            regions: the map's labels.
            ledger: its patches, and what waits for them.
            outputs: how many of the network's maps are summed, the first ones.
            config: the settings that the patches were placed with.
            whole: whether tiles are handed out only when all are complete.
        """
        self._image = image.reshape(image.shape[0], -1)
        self._regions, self._ledger, self._config = regions, ledger, config
        self._whole, self._missing = whole, len(ledger)
        self._sums = np.empty((0, outputs, TILE_PX, TILE_PX))
        self._total = np.empty((0, TILE_PX, TILE_PX))
        self._index = np.empty(ledger.grid, np.int32)

    def crops(self, start: int, stop: int) -> NDArray[np.uint8]:
        """See `Canvas.crops`."""
        patch = self._config.patch
        out = np.empty((stop - start, patch.network_size_px, patch.network_size_px, 4), np.uint8)
        boxes, owners = self._ledger.boxes[start:stop], self._ledger.owners[start:stop]
        if start == stop:
            return out
        padding, regions = patch.padding_of(int(boxes[0, 2] - boxes[0, 0])), self._regions

        def write(first: int, last: int, into: NDArray[np.uint8]) -> None:
            gather(self._image, _NOTHING, 0, 0, 0, boxes[first:last], padding, into)
            if regions.levels is None:
                _mark(regions.map, owners[first:last], boxes[first:last], padding, into)
            else:
                _soften(regions.levels, regions.channels[owners[first:last]], boxes[first:last], padding, into)

        cut(write, boxes, patch, out)
        return out

    def add(self, start: int, logits: NDArray[np.float32]) -> None:
        """See `Canvas.add`."""
        ledger = self._ledger
        if not np.isfinite(logits.sum(dtype=np.float64)):
            raise not_finite()
        stop = start + logits.shape[0]
        new = ledger.open(start, stop)
        self._sums, self._total = grow(self._sums, ledger.rooms.size), grow(self._total, ledger.rooms.size)
        self._sums[new], self._total[new] = 0.0, 0.0
        place = (ledger.height, ledger.width, 0, 0, self._index, self._sums, self._total)
        for first, end in ledger.runs(start, stop, self._index):
            add_patches(ledger.boxes[first:end], logits[first - start : end - start], self._config, *place)
        ledger.close(start, stop)
        self._missing -= logits.shape[0]

    def finished(self) -> Iterator[Settled]:
        """See `Canvas.finished`: tiles of the map, and the sums of every label in them."""
        if self._whole and self._missing:
            return
        if (done := self._ledger.settled()) is not None:
            yield Settled(*done, self._sums, self._total)
