"""Steps 2 and 4 of a label map in a device's memory: image, map and sums stay there from the first copy to the last.

Letters: H, W are the map's size, T the side of a tile, px; n is the number of patches in a batch, C of output maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bpr_service.config import RefineConfig
from bpr_service.refine.canvas import not_finite
from bpr_service.refine.device_canvas import GROUP_BYTES, DevicePatches, upload
from bpr_service.refine.labels.ledger import Ledger, Settled
from bpr_service.refine.labels.regions import LabelRegions
from bpr_service.refine.tiles import TILE_PX


class LabelLevels:
    """The labels of a map as masks: 255 where the map has the label, or its probability times 255."""

    def __init__(self, regions: LabelRegions, device: str) -> None:
        self._channels = None if regions.levels is None else upload(regions.channels, device)
        if regions.levels is not None:
            self._map = upload(regions.levels, device)
            return
        wide = regions.map.astype(np.int32, copy=False)
        self._map = upload(wide, device)

    def at(self, rows: Tensor, columns: Tensor, which: Tensor) -> Tensor:
        """See `bpr_service.refine.device_canvas.Levels.at`."""
        if self._channels is not None:
            return self._map[self._channels[which][:, None, None], rows[:, :, None], columns[:, None, :]]
        found = self._map[rows[:, :, None], columns[:, None, :]] == which[:, None, None]
        return found.to(torch.uint8) * 255


class LabelDeviceCanvas(DevicePatches):
    """A `bpr_service.refine.canvas.Canvas` of a label map, in a device's memory.

    Which tile has which room is known on the host, so nothing waits for the device until averages are asked for.
    """

    def __init__(
        self,
        image: NDArray[np.uint8],
        regions: LabelRegions,
        ledger: Ledger,
        *,
        outputs: int,
        config: RefineConfig,
        whole: bool,
        device: str,
    ) -> None:
        """As `bpr_service.refine.labels.canvas.LabelCanvas`."""
        super().__init__(image, LabelLevels(regions, device), ledger.boxes, ledger.owners, config, device)
        self._ledger, self._whole, self._missing = ledger, whole, len(ledger)
        self._sums = torch.zeros((outputs + 1, 0, TILE_PX * TILE_PX), dtype=torch.int64, device=device)
        self._done: list[tuple[Any, ...]] = []  # tiles, entries of each, labels, averages on their way to the host

    def add(self, start: int, logits: Tensor) -> None:
        """See `Canvas.add`."""
        self._wrong += (~torch.isfinite(logits)).any()
        ledger, n = self._ledger, logits.shape[0]
        new = ledger.open(start, start + n)
        if (more := ledger.rooms.size - self._sums.shape[1]) > 0:
            room = self._sums.new_empty((self._sums.shape[0], more, TILE_PX * TILE_PX))
            self._sums = torch.cat([self._sums, room], 1)
        if new.size:
            self._sums[:, upload(new.astype(np.int64), self.device)] = 0
        grids = ledger.grids(start, start + n)
        corners = ledger.boxes[start : start + n, :2] // TILE_PX * TILE_PX
        ways = np.column_stack([np.arange(n) * grids[0].size, np.full(n, grids.shape[2]), corners]).astype(np.int64)
        sums = self._sums.view(self._sums.shape[0], -1)
        self._sum(start, logits, sums, upload(ways, self.device), upload(grids.ravel(), self.device))
        ledger.close(start, start + n)
        self._missing -= n
        if self._missing == 0 or self._sums.nbytes > GROUP_BYTES:
            self._average()

    def _average(self) -> None:
        """Start to copy the averages of complete tiles back, and let their sums go."""
        if (settled := self._ledger.settled()) is None:
            return
        tiles, firsts, labels, rooms = settled
        part = self._sums[:, upload(rooms.astype(np.int64), self.device)]
        averages = (part[:-1].double() / part[-1]).float().transpose(0, 1).contiguous()
        self._done.append((tiles, np.diff(firsts), labels, self._to_host(averages)))

    def finished(self) -> Iterator[Settled]:
        """See `Canvas.finished`. The tiles of the usual map come together, after the last patch."""
        if not self._done or (self._whole and self._missing):
            return
        if float(self._wrong):  # this read waits for everything before it, the copies too
            raise not_finite()
        tiles, counts, labels, averages = zip(*self._done, strict=True)
        self._done = []
        firsts = np.concatenate([[0], *counts]).cumsum()
        found = np.concatenate([some.numpy() for some in averages]).astype(np.float64)
        found = found.reshape(*found.shape[:2], TILE_PX, TILE_PX)
        seen = ~np.isnan(found[:, 0])
        rooms = np.arange(len(found), dtype=np.int32)
        sums = np.where(seen[:, None], found, 0.0)
        yield Settled(np.concatenate(tiles), firsts, np.concatenate(labels), rooms, sums, seen.astype(np.float64))
