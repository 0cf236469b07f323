"""An endless stream of training patches, with coarse masks simulated on the fly from a scene store.

Shapes: N patches of S x S px (S the network size); channels are RGB and the mask, 0..255; targets are 0 background,
1 foreground, 255 ignore. Patches are cut as the refiner cuts them (``bpr_service.refine.patches``): centred on a
boundary pixel of the coarse mask, moved to stay inside the image, context repeated at the image's border.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from bpr_service.errors import ConfigError
from refiner_training.data.augment import flips, photometric
from refiner_training.data.scenes import IGNORED, IGNORED_INSIDE, SceneStore
from refiner_training.data.simulate import DEFAULT_MIX, coarse_mask

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class StreamConfig:
    """What the stream draws from, and how."""

    patch_size_px: int = 64
    padding_px: int = 16
    batch_size: int = 64
    sources: dict[str, float] = field(default_factory=lambda: {"ccp": 0.45, "bsds": 0.3, "camvid": 0.25})
    mix: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_MIX))
    source_mix: dict[str, dict[str, float]] = field(default_factory=dict)
    """Another mix for the masks of one source."""
    soft_share: float = 0.25
    """Share of masks given to the network as probabilities instead of 0 and 1."""
    scale_share: float = 0.45
    """Share of windows that are resized by 0.6 to 2."""
    patches_a_mask: int = 4


class PatchStream(IterableDataset[tuple[Tensor, Tensor]]):
    """Whole batches: patches (N, S, S, 4) uint8 and targets (N, S, S) uint8.

    Batch ``i`` depends on ``(seed, i)`` alone, whatever the number of workers and processes, so a run that is resumed
    at step ``i`` sees what an undisturbed one would have seen.
    """

    def __init__(
        self,
        store: SceneStore,
        config: StreamConfig,
        seed: int = 0,
        first: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        super().__init__()
        self.store, self.config, self.seed = store, config, seed
        self.first, self.rank, self.ranks = first, rank, ranks
        indices = {s: store.masks_of(s) for s in config.sources}
        self._names = [name for name, found in indices.items() if len(found)]
        if not self._names:
            raise ConfigError(
                "no masks to draw from",
                expected=f"some of the sources {sorted(set(store.sources.tolist()))}",
                got=f"{sorted(config.sources)}",
                fix="name the store's sources in data.sources",
            )
        self._indices = indices
        shares = np.array([config.sources[name] for name in self._names], np.float64)
        self._shares = shares / shares.sum()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        cv2.setNumThreads(0)
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        step = self.first + worker
        while True:
            yield self.batch(step * self.ranks + self.rank)
            step += workers

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """The ``index``-th batch: patches (N, S, S, 4) and targets (N, S, S), uint8."""
        rng = np.random.default_rng([self.seed, index])
        config, size = self.config, self.config.patch_size_px + 2 * self.config.padding_px
        patches = np.empty((config.batch_size, size, size, 4), np.uint8)
        targets = np.empty((config.batch_size, size, size), np.uint8)
        filled = 0
        while filled < config.batch_size:
            name = self._names[int(rng.choice(len(self._names), p=self._shares))]
            source, mix = self._indices[name], config.source_mix.get(name, config.mix)
            new_patches, new_targets = self._of_mask(int(source[rng.integers(len(source))]), mix, rng)
            new_patches, new_targets = flips(new_patches, new_targets, rng)
            take = min(len(new_patches), config.batch_size - filled)
            patches[filled : filled + take] = new_patches[:take]
            targets[filled : filled + take] = new_targets[:take]
            filled += take
        return torch.from_numpy(patches), torch.from_numpy(targets)

    def _of_mask(self, index: int, mix: dict[str, float], rng: Generator) -> tuple[U8, U8]:
        """Simulate a coarse mask of one ground truth and cut patches at its boundary."""
        config = self.config
        scale = 1.0
        if rng.random() < config.scale_share:
            scale = float(np.exp(rng.uniform(np.log(0.6), np.log(2.0))))
        image, truth, inside = self._window(index, scale, rng)
        shape = ((truth == 1) | (truth == IGNORED_INSIDE)).astype(np.uint8)
        truth[truth == IGNORED_INSIDE] = IGNORED
        soft, _kind = coarse_mask(shape, rng, mix)
        binary = (soft > 0.5).astype(np.uint8)
        edge = cv2.morphologyEx(binary, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        centres = np.argwhere(edge)
        size = config.patch_size_px + 2 * config.padding_px
        if not len(centres):
            return np.empty((0, size, size, 4), np.uint8), np.empty((0, size, size), np.uint8)
        count = int(np.clip(len(centres) // 24, 1, config.patches_a_mask))
        centres = centres[rng.integers(0, len(centres), count)] + rng.integers(-14, 15, (count, 2))
        mask = np.round(soft * 255).astype(np.uint8) if rng.random() < config.soft_share else binary * np.uint8(255)
        stacked = np.dstack([photometric(image, rng), mask])
        half, padding = config.patch_size_px // 2, config.padding_px
        height, width = truth.shape
        patches = np.empty((count, size, size, 4), np.uint8)
        targets = np.empty((count, size, size), np.uint8)
        left, top, right, bottom = inside
        for k, (y, x) in enumerate(centres):
            x0 = max(min(x - half, right - config.patch_size_px), left) - padding
            y0 = max(min(y - half, bottom - config.patch_size_px), top) - padding
            columns = np.clip(np.arange(x0, x0 + size), 0, width - 1)
            rows = np.clip(np.arange(y0, y0 + size), 0, height - 1)
            patches[k] = stacked[rows[:, None], columns]
            targets[k] = truth[rows[:, None], columns]
        return patches, targets

    def _window(self, index: int, scale: float, rng: Generator) -> tuple[U8, U8, tuple[int, int, int, int]]:
        """Image and truth around one mask, resized; and the image's own extent in the window (x0, y0, x1, y1)."""
        which, x, y, crop = self.store.mask(index)
        image = self.store.image(which)
        height, width = image.shape[:2]
        margin = round((self.config.patch_size_px / 2 + self.config.padding_px + 24) / scale)
        x0, y0 = max(x - margin, 0), max(y - margin, 0)
        x1, y1 = min(x + crop.shape[1] + margin, width), min(y + crop.shape[0] + margin, height)
        truth = np.zeros((y1 - y0, x1 - x0), np.uint8)
        truth[y - y0 : y - y0 + crop.shape[0], x - x0 : x - x0 + crop.shape[1]] = crop
        part = image[y0:y1, x0:x1]
        if scale != 1.0:
            size = (max(round(part.shape[1] * scale), 1), max(round(part.shape[0] * scale), 1))
            method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            part = np.asarray(cv2.resize(part, size, interpolation=method), np.uint8)
            inside_mask = ((truth == 1) | (truth == IGNORED_INSIDE)).astype(np.float32)
            ignored = cv2.resize((truth >= IGNORED_INSIDE).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
            truth = (cv2.resize(inside_mask, size, interpolation=cv2.INTER_LINEAR) > 0.5).astype(np.uint8)
            truth[ignored] = np.where(truth[ignored] == 1, np.uint8(IGNORED_INSIDE), np.uint8(IGNORED))
        # Sides of the window that are no border of the image never bound a patch.
        h, w = truth.shape
        far = 1 << 20
        inside = (
            0 if x0 == 0 else -far,
            0 if y0 == 0 else -far,
            w if x1 == width else far,
            h if y1 == height else far,
        )
        return part, truth, inside
