"""Steps 2 and 4 in the device's memory: image, masks and sums stay there from the first copy to the last.

Letters: H, W are the image's size; p is the side of a patch, c that of a patch with its padding, S
``network_size_px``, T the side of a tile, all in px; P is the number of patches of all masks, n of those in a batch, M
of masks, C of output maps, K of tiles.

The same as `bpr_service.refine.crops.crop_patches` and `bpr_service.refine.reassemble.Accumulator`, as torch operations
on whole batches. Where c equals S the crops are equal to a bit, else within one level of 255: the weights of OpenCV's
resizing without its fixed point. Sums are integers (a weight of 1 is 2**32), so they do not depend on the order in
which a device adds. Nothing waits for the device until the averages are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bpr_service.config import RefineConfig
from bpr_service.masks.mask import Mask
from bpr_service.refine.canvas import not_finite
from bpr_service.refine.patches import Boxes
from bpr_service.refine.reassemble import TILE_PX, Accumulator, window_weights

GROUP_BYTES = 1 << 30
"""Sums held on the device at once; the masks of a request that needs more are averaged group by group."""
_ONE = float(1 << 32)


def upload(array: NDArray[Any], device: str) -> Tensor:
    """A copy on `device`; to an accelerator by way of pinned memory, so that the processor does not wait for it."""
    host = torch.from_numpy(np.require(array, requirements=("C", "W")))  # torch warns of memory that is read-only
    return host.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else host.to(device)


# ---- masks -------------------------------------------------------------------------------------------------


class MaskLevels:
    """Masks as boxes and crops, one behind the other in one buffer; 0 to 255."""

    def __init__(self, masks: Sequence[Mask], device: str) -> None:
        crops = [mask.crop * np.uint8(255) if mask.soft is None else mask.soft for mask in masks]
        ends = np.cumsum([0, *(crop.size for crop in crops)])
        table = [(end, m.x, m.y, *m.crop.shape) for end, m in zip(ends.tolist(), masks, strict=False)]
        flat = np.concatenate([crop.ravel() for crop in crops] + [np.zeros(1, np.uint8)])
        self._flat = upload(flat, device)
        self._table = upload(np.array(table, np.int64).reshape(-1, 5), device)

    def at(self, rows: Tensor, columns: Tensor, which: Tensor) -> Tensor:
        """(n, c, c) uint8 of masks `which` (n,) at image `rows` and `columns` (n, c), all int64."""
        start, x, y, height, width = (part[:, None] for part in self._table[which].unbind(1))
        r, k = rows - y, columns - x
        inside = ((r >= 0) & (r < height))[:, :, None] & ((k >= 0) & (k < width))[:, None, :]
        at = (start + r * width)[:, :, None] + k[:, None, :]
        return self._flat[torch.where(inside, at, 0)] * inside


# ---- resizing ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def resize_weights(size: int, to: int) -> NDArray[np.float32]:
    """(to, size) float32: what each of `size` pixels adds to each of `to`.

    OpenCV's area where it shrinks, its linear where it grows.
    """
    if to <= size:
        step = size / to
        low, high = np.arange(to)[:, None] * step, (np.arange(to)[:, None] + 1) * step
        at = np.arange(size)[None]
        shared = np.minimum(high, at + 1) - np.maximum(low, at)
        return np.asarray(shared.clip(0) / step, np.float32)
    centre = np.clip((np.arange(to) + 0.5) * size / to - 0.5, 0, size - 1)
    first = np.minimum(centre.astype(np.int64), max(size - 2, 0))
    out = np.zeros((to, size), np.float32)
    out[np.arange(to), first] = 1 - (centre - first)
    out[np.arange(to), np.minimum(first + 1, size - 1)] += (centre - first).astype(np.float32)
    return out


@lru_cache(maxsize=32)
def _resize_weights(size: int, to: int, device: str) -> Tensor:
    with torch.inference_mode(False):
        return upload(resize_weights(size, to), device)


def resize(planes: Tensor, to: int) -> Tensor:
    """(..., s, s) float32 -> (..., to, to) float32."""
    weights = _resize_weights(planes.shape[-1], to, str(planes.device))
    return weights @ planes @ weights.T


@lru_cache(maxsize=32)
def _window(name: str, side: int, device: str) -> Tensor:
    with torch.inference_mode(False):
        return upload(window_weights(name, side, side) * _ONE, device)


# ---- patches -----------------------------------------------------------------------------------------------


class Levels(Protocol):
    """The masks of patches, in a device's memory."""

    def at(self, rows: Tensor, columns: Tensor, which: Tensor) -> Tensor:
        """(n, c, c) uint8, 0 to 255, of masks `which` (n,) at image `rows` and `columns` (n, c), all int64."""


class DevicePatches:
    """Patches of an image in a device's memory: cut, and added to sums that lie in tiles."""

    def __init__(
        self,
        image: NDArray[np.uint8],
        levels: Levels,
        boxes: Boxes,
        which: NDArray[Any],
        config: RefineConfig,
        device: str,
    ) -> None:
        """Start to copy an image, and where its patches lie.

        Args:
            image: (H, W, 3) uint8.
            levels: the levels that masks are of.
            boxes: (P, 4) int32 squares.
            which: (P,) which of the `levels` is the mask of each.
            config: the settings that the patches were placed with.
            device: ``cuda:N``.
        """
        self.device, self._config, self._levels = device, config, levels
        self.height, self.width = image.shape[:2]
        self._image = upload(image, device)
        self._sizes = boxes[:, 2] - boxes[:, 0]
        self._boxes = upload(boxes.astype(np.int64), device)
        self._which = upload(which.astype(np.int64), device)
        longest = int(self._sizes.max(initial=0))
        self._offsets = upload(np.arange(longest + 2 * config.patch.padding_of(longest)), device)
        self._wrong = torch.zeros((), device=device)

    def _by_size(self, start: int, stop: int) -> Iterator[tuple[int, slice | Tensor]]:
        """The sizes of patches `start` to `stop`, px, and which of them have it, counted from `start`."""
        sizes = self._sizes[start:stop]
        for size in np.unique(sizes).tolist():
            here = np.flatnonzero(sizes == size)
            yield size, slice(None) if here.size == sizes.size else upload(here, self.device)

    def crops(self, start: int, stop: int) -> Tensor:
        """See `Canvas.crops`."""
        boxes, which = self._boxes[start:stop], self._which[start:stop]
        side = self._config.patch.network_size_px
        out = torch.empty((len(boxes), side, side, 4), dtype=torch.uint8, device=self.device)
        for size, here in self._by_size(start, stop):
            out[here] = self._cut(boxes[here], which[here], size)
        return out

    def _cut(self, boxes: Tensor, which: Tensor, size: int) -> Tensor:
        """(n, S, S, 4) uint8 of patches of one `size`, of masks `which`."""
        padding, side = self._config.patch.padding_of(size), self._config.patch.network_size_px
        offsets = self._offsets[: size + 2 * padding] - padding
        rows = (boxes[:, 1:2] + offsets).clamp(0, self.height - 1)
        columns = (boxes[:, 0:1] + offsets).clamp(0, self.width - 1)
        colours = self._image[rows[:, :, None], columns[:, None, :]]
        pieces = torch.cat([colours, self._levels.at(rows, columns, which)[..., None]], 3)
        if pieces.shape[1] == side:
            return pieces
        planes = resize(pieces.permute(0, 3, 1, 2).float(), side)
        return (planes + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def _sum(self, start: int, logits: Tensor, sums: Tensor, table: Tensor, numbers: Tensor) -> None:
        """Add the (n, ., S, S) `logits` of the patches from number `start` on.

        Args:
            start: number of the first patch.
            logits: the first C maps are summed.
            sums: (C + 1, K * T * T) int64; the last is the weight.
            table: (n, 4) int64, of each patch the place in `numbers` where its grid of tiles begins, how many columns
                that has, and its left and top, px.
            numbers: the number of each tile of the grids.
        """
        boxes = self._boxes[start : start + logits.shape[0]]
        for size, here in self._by_size(start, start + logits.shape[0]):
            self._sum_size(boxes[here], logits[here], sums, table[here], numbers, size)

    def _sum_size(self, boxes: Tensor, logits: Tensor, sums: Tensor, table: Tensor, numbers: Tensor, size: int) -> None:
        """As `_sum`, of patches of one `size`."""
        config, padding = self._config, self._config.patch.padding_of(size)
        crop = size + 2 * padding
        maps = logits if logits.shape[-1] == crop else resize(logits, crop)
        maps = maps[:, :, padding : crop - padding, padding : crop - padding]
        if config.average == "probability":
            maps = torch.cat([maps[:, :1].sigmoid(), maps[:, 1:]], 1)
        at, columns, x0, y0 = (part[:, None] for part in table.unbind(1))
        row, column = boxes[:, 1:2] + self._offsets[:size], boxes[:, 0:1] + self._offsets[:size]
        inside = (row < self.height)[:, :, None] & (column < self.width)[:, None, :]
        r, k = row - y0, column - x0
        cell = (at + r // TILE_PX * columns)[:, :, None] + (k // TILE_PX)[:, None, :]
        tile = numbers[torch.where(inside, cell, 0)].long()
        pixel = ((tile * TILE_PX + (r % TILE_PX)[:, :, None]) * TILE_PX + (k % TILE_PX)[:, None, :]).reshape(-1)
        weights = _window(config.window, size, self.device) * inside
        for channel in range(sums.shape[0] - 1):
            values = (maps[:, channel] * weights).round().long()
            sums[channel].index_add_(0, pixel, values.reshape(-1))
        sums[-1].index_add_(0, pixel, weights.round().long().reshape(-1))

    def _to_host(self, averages: Tensor) -> Tensor:
        """Start to copy averages back."""
        if not self.device.startswith("cuda"):
            return averages
        return torch.empty(averages.shape, pin_memory=True).copy_(averages, non_blocking=True)


@dataclass(eq=False)
class _Group:
    """Masks `first` to `stop` (exclusive), whose sums are on the device together."""

    first: int
    stop: int
    tiles: int
    missing: int
    sums: Tensor | None = None
    """(C + 1, K * T * T) int64; the last is the weight."""
    averages: Tensor | None = None
    """(K, C, T, T) float32, NaN where no patch lies; in host memory, perhaps still on its way."""


class DeviceCanvas(DevicePatches):
    """A canvas in a device's memory: see `bpr_service.refine.canvas.Canvas`."""

    def __init__(
        self,
        image: NDArray[np.uint8],
        masks: Sequence[Mask],
        boxes: Sequence[Boxes],
        *,
        outputs: int,
        config: RefineConfig,
        device: str,
    ) -> None:
        """Start to copy an image, its masks, and where their patches lie.

        Args:
            image: (H, W, 3) uint8.
            masks: of the image.
            boxes: of each mask (P_i, 4) int32 squares of one size, maybe none.
            outputs: C, of the network's maps those that are summed.
            config: the settings that the patches were placed with.
            device: ``cuda:N``.
        """
        counts = np.array([len(some) for some in boxes], np.int64)
        every = np.concatenate([np.empty((0, 4), np.int32), *boxes])
        which = np.repeat(np.arange(len(boxes)), counts)
        super().__init__(image, MaskLevels(masks, device), every, which, config, device)
        self._outputs = outputs
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._patches = [
            Accumulator(some, self.height, self.width, outputs, config) if len(some) else None for some in boxes
        ]
        self._groups = list(self._grouped(counts))
        self._place_tiles()

    def _grouped(self, counts: NDArray[np.int64]) -> Iterator[_Group]:
        """Masks in their order, as many to a group as `GROUP_BYTES` hold."""
        room = max(GROUP_BYTES // (8 * TILE_PX * TILE_PX * (self._outputs + 1)), 1)
        group = _Group(0, 0, 0, 0)
        for i, patches in enumerate(self._patches):
            tiles = 0 if patches is None else patches.total.shape[0]
            if group.tiles and group.tiles + tiles > room:
                yield group
                group = _Group(i, i, 0, 0)
            group.stop, group.tiles, group.missing = i + 1, group.tiles + tiles, group.missing + int(counts[i])
        yield group

    def _place_tiles(self) -> None:
        """Copy what finds the tile of a pixel: all masks' tile numbers, counted on within a group, and their grids."""
        numbers, table, at = [np.zeros(1, np.int32)], np.zeros((len(self._patches), 4), np.int64), 1
        for group in self._groups:
            base = 0
            for i in range(group.first, group.stop):
                patches = self._patches[i]
                if patches is None:
                    continue
                table[i] = at, patches.index.shape[1], patches.x0, patches.y0
                numbers.append(np.where(patches.index < 0, 0, patches.index + base).ravel())
                at += patches.index.size
                base += patches.total.shape[0]
        self._tile_numbers = upload(np.concatenate(numbers), self.device)
        self._tile_table = upload(table, self.device)

    def add(self, start: int, logits: Tensor) -> None:
        """See `Canvas.add`."""
        self._wrong += (~torch.isfinite(logits)).any()
        stop = start + logits.shape[0]
        for group in self._groups:
            low, high = int(self._starts[group.first]), int(self._starts[group.stop])
            first, last = max(start, low), min(stop, high)
            if first < last:
                self._add(group, first, logits[first - start : last - start])

    def _add(self, group: _Group, start: int, logits: Tensor) -> None:
        stop = start + logits.shape[0]
        if group.sums is None:
            shape = (self._outputs + 1, group.tiles * TILE_PX * TILE_PX)
            group.sums = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self._sum(start, logits, group.sums, self._tile_table[self._which[start:stop]], self._tile_numbers)
        group.missing -= stop - start
        if group.missing == 0:
            self._average(group)

    def _average(self, group: _Group) -> None:
        """Start to copy the averages back, and let the sums go."""
        assert group.sums is not None
        averages = (group.sums[:-1].double() / group.sums[-1]).float()
        tiles = averages.view(self._outputs, group.tiles, TILE_PX, TILE_PX).transpose(0, 1).contiguous()
        group.sums = None
        group.averages = self._to_host(tiles)

    def finished(self) -> Iterator[tuple[int, Accumulator]]:
        """See `Canvas.finished`. The masks of a group come together: of the usual request all, after the last patch."""
        done = [group for group in self._groups if group.averages is not None]
        if done and float(self._wrong):  # this read waits for everything before it, the copies too
            raise not_finite()
        for group in done:
            assert group.averages is not None
            averages = group.averages.numpy()
            group.averages = None
            yield from self._handed_out(group, averages)

    def _handed_out(self, group: _Group, averages: NDArray[np.float32]) -> Iterator[tuple[int, Accumulator]]:
        """Each mask of a group with its part of the (K, C, T, T) averages as sums of weight 1."""
        held = [(i, patches) for i in range(group.first, group.stop) if (patches := self._patches[i]) is not None]
        ends = np.cumsum([0, *(patches.total.shape[0] for _, patches in held)]).tolist()
        for (i, patches), (low, high) in zip(held, pairwise(ends), strict=True):
            part = averages[low:high].astype(np.float64)
            seen = ~np.isnan(part[:, 0])
            patches.total = seen.astype(np.float64)
            patches.sums = np.where(seen[:, None], part, 0.0)
            patches.missing = 0
            self._patches[i] = None
            yield i, patches
