"""The patch set: training patches in memory-mapped shards with an index and a manifest, and the stream over it.

Letters: N patches, c the side they are stored at (the crop's size in image px), S the network size (px).

A record holds one patch as it was cut: c c 3 bytes of RGB, the coarse mask (c c bytes where the set has
probabilities, else c c bits), and two bit planes, true foreground and void. It is brought to network size when it is
read, the way the refiner brings its crops there. A folder with ``manifest.json`` is whole; while it is built it holds
``plan.json`` and finished shards only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from bpr_service.errors import FormatError
from refiner_training.data.augment import flips, photometric

U8 = NDArray[np.uint8]
FORMAT = 1


def record_type(side: int, soft: bool) -> np.dtype[Any]:
    """The layout of one record of side c."""
    bits = -(-side * side // 8)
    return np.dtype(
        [
            ("rgb", np.uint8, (side, side, 3)),
            ("mask", np.uint8, (side * side if soft else bits,)),
            ("truth", np.uint8, (bits,)),
            ("void", np.uint8, (bits,)),
        ]
    )


def pack(patches: U8, targets: U8, soft: bool) -> NDArray[np.void]:
    """Patches (N, c, c, 4) and targets (N, c, c) {0, 1, 255} -> (N,) records."""
    count, side = targets.shape[:2]
    records = np.empty(count, record_type(side, soft))
    masks = patches[..., 3].reshape(count, -1)
    records["rgb"] = patches[..., :3]
    records["mask"] = masks if soft else np.packbits(masks > 127, axis=1)
    records["truth"] = np.packbits(targets.reshape(count, -1) == 1, axis=1)
    records["void"] = np.packbits(targets.reshape(count, -1) == 255, axis=1)
    return records


def unpack(records: NDArray[np.void], side: int, soft: bool) -> tuple[U8, U8]:
    """The inverse of :func:`pack`."""
    count, pixels = len(records), side * side

    def plane(name: str) -> U8:
        return np.unpackbits(records[name], axis=1, count=pixels).reshape(count, side, side)

    patches = np.empty((count, side, side, 4), np.uint8)
    patches[..., :3] = records["rgb"]
    patches[..., 3] = records["mask"].reshape(count, side, side) if soft else plane("mask") * np.uint8(255)
    targets = plane("truth")
    targets[plane("void") == 1] = 255
    return patches, targets


class PatchSet:
    """Read access to a patch set built by ``bpr-train patches``.

    Raises:
        FormatError: no such folder, an unfinished or empty set, or a shard of another size than its index says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        if not path.is_file():
            begun = (self.folder / "plan.json").is_file()
            raise FormatError(
                f"{folder}",
                expected="a patch set with manifest.json",
                got="one that is not finished" if begun else "none",
                fix="run the same `bpr-train patches` again to finish it" if begun else "build it: bpr-train patches",
            )
        self.manifest: dict[str, Any] = json.loads(path.read_text())
        self.side, self.soft = int(self.manifest["side_px"]), bool(self.manifest["soft"])
        self.dtype = record_type(self.side, self.soft)
        counts = [int(s["patches"]) for s in self.manifest["shards"]]
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        for shard, count in zip(self.manifest["shards"], counts, strict=True):
            file = self.folder / shard["file"]
            size = file.stat().st_size if file.is_file() else -1
            if count and size != count * self.dtype.itemsize:
                raise FormatError(
                    f"{file}",
                    expected=f"{count} patches, {count * self.dtype.itemsize} bytes",
                    got="no such file" if size < 0 else f"{size} bytes",
                    fix="build the patch set again",
                )
        self._maps: dict[int, NDArray[np.void]] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a pickled memory map would be a copy of the file

    def index(self) -> NDArray[np.void]:
        """(N,) records: ``image`` (number in the manifest's reader), ``category``, ``iou`` (nan where not known)."""
        found: NDArray[np.void] = np.load(self.folder / "index.npy")
        return found

    def read(self, indices: NDArray[np.int64]) -> tuple[U8, U8]:
        """Patches (N, c, c, 4) and targets (N, c, c) uint8 of the given numbers, in their order."""
        records = np.empty(len(indices), self.dtype)
        shards = np.searchsorted(self.starts, indices, side="right") - 1
        for k, (shard, index) in enumerate(zip(shards.tolist(), indices.tolist(), strict=True)):
            if shard not in self._maps:
                file = self.folder / self.manifest["shards"][shard]["file"]
                self._maps[shard] = np.memmap(file, self.dtype, "r")
            records[k] = self._maps[shard][index - self.starts[shard]]
        return unpack(records, self.side, self.soft)


def to_network_size(patches: U8, targets: U8, size: int) -> tuple[U8, U8]:
    """Resize (N, c, c, 4) and (N, c, c) to S, as :func:`bpr_service.refine.crops.crop_patches` resizes crops."""
    import cv2

    from bpr_service.refine.crops import resize_method

    count, side = targets.shape[:2]
    if side == size:
        return patches, targets
    out, out_targets = np.empty((count, size, size, 4), np.uint8), np.empty((count, size, size), np.uint8)
    method = resize_method(side, side, size, size)
    for k in range(count):  # OpenCV resizes one picture at a time
        cv2.resize(patches[k], (size, size), dst=out[k], interpolation=method)
        truth = cv2.resize((targets[k] == 1).astype(np.float32), (size, size), interpolation=method)
        void = cv2.resize((targets[k] == 255).astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST)
        out_targets[k] = np.where(void > 0, 255, truth > 0.5)
    return out, out_targets


class PatchSetStream(IterableDataset[tuple[Tensor, Tensor]]):
    """Whole batches: patches (N, S, S, 4) uint8 and targets (N, S, S) uint8, each patch once an epoch.

    Batch ``i`` depends on ``(seed, i)`` alone, whatever the number of workers and processes, so a run that is resumed
    at step ``i`` sees what an undisturbed one would have seen.
    """

    def __init__(
        self,
        patches: PatchSet,
        batch_size: int,
        seed: int = 0,
        first: int = 0,
        *,
        network_size_px: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        augment: bool = True,
    ) -> None:
        super().__init__()
        self.patches, self.batch_size, self.seed, self.first = patches, batch_size, seed, first
        self.size = network_size_px or patches.side
        self.rank, self.ranks, self.augment = rank, ranks, augment
        self._epoch: tuple[int, NDArray[np.int64]] | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        import cv2

        cv2.setNumThreads(0)
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        step = self.first + worker
        while True:
            yield self.batch(step * self.ranks + self.rank)
            step += workers

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """The ``index``-th batch: patches (N, S, S, 4) and targets (N, S, S), uint8."""
        chosen = np.array([self._patch(index * self.batch_size + k) for k in range(self.batch_size)], np.int64)
        patches, targets = to_network_size(*self.patches.read(chosen), self.size)
        if self.augment:
            rng = np.random.default_rng([self.seed, 1, index])
            for k in range(self.batch_size):
                patches[k, ..., :3] = photometric(patches[k, ..., :3], rng)
                patches[k : k + 1], targets[k : k + 1] = flips(
                    patches[k : k + 1].copy(), targets[k : k + 1].copy(), rng
                )
        return torch.from_numpy(patches), torch.from_numpy(targets)

    def _patch(self, position: int) -> int:
        """The number of the patch at a position of the endless sequence of shuffled epochs."""
        epoch, at = divmod(position, len(self.patches))
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.patches))
            self._epoch = (epoch, order)
        return int(self._epoch[1][at])
