"""An endless stream of training patches, cut from a scene store, their coarse masks simulated on the fly or real.

Shapes: N patches of S x S px (S the network size); channels are RGB and the mask, 0..255; targets are 0 background,
1 foreground, 255 ignore. Patches are cut as the refiner cuts them (``bpr_service.refine.patches``): centred on a
boundary pixel of the coarse mask, moved to stay inside the image, context repeated at the image's border, and resized
to the network where they are cut at another scale.
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
from bpr_service.refine.crops import resize_method
from refiner_training.data.augment import appearance, flips, on_plain, photometric, plain
from refiner_training.data.scenes.store import IGNORED, IGNORED_INSIDE, SceneStore
from refiner_training.data.scenes.view import View, ViewConfig, view_of
from refiner_training.data.simulate import DEFAULT_MIX, SEEING_KINDS, coarse_mask, draw_kind
from refiner_training.data.simulate_network import Around, signed_distance_px

U8 = NDArray[np.uint8]

SMALL_PX = 32 * 32
"""Area below which a mask is small."""


@dataclass(frozen=True)
class StreamConfig:
    """What the stream draws from, and how."""

    patch_size_px: int = 64
    padding_px: int = 16
    network_size_px: int | None = None
    """S; None is `side_px`, which sees a picture px as one px."""
    batch_size: int = 64
    sources: dict[str, float] = field(default_factory=lambda: {"ccp": 0.45, "bsds": 0.3, "camvid": 0.25})
    mix: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_MIX))
    source_mix: dict[str, dict[str, float]] = field(default_factory=dict)
    """Another mix for the masks of one source."""
    soft_share: float = 0.25
    """Share of masks given to the network as probabilities instead of 0 and 1."""
    scale_share: float = 0.5
    """Share of masks whose patches are cut at another scale than 1, drawn log-uniformly from `scales`."""
    scales: tuple[float, float] = (0.25, 4.0)
    """Least and greatest zoom: patches of so many times fewer picture px."""
    real_share: float = 0.7
    """Share of the masks that have a real network's mask for which it is taken."""
    small_exact: float = 0.0
    """Share of masks under `SMALL_PX` that are right already."""
    fuzz_px: dict[str, float] = field(default_factory=dict)
    """Of a source whose annotated edge is a judgement: what is right within so many px stays as it was given."""
    appearance_share: float = 0.0
    """Share of masks whose picture is made grey, inverted, flat and so on (`augment.appearance`)."""
    plain_share: float = 0.0
    """Share of masks whose background is made plain."""
    blank_share: float = 0.0
    """Share of masks whose picture shows nothing; the target is the coarse mask: no evidence, no change."""
    patches_a_mask: int = 3

    @property
    def side_px(self) -> int:
        """Picture px of a patch with its padding, at zoom 1."""
        return self.patch_size_px + 2 * self.padding_px

    @property
    def size_px(self) -> int:
        """S."""
        return self.network_size_px or self.side_px


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
        self._names = list(config.sources)
        self._masks = {name: store.masks_of(name) for name in self._names}
        empty = [name for name in self._names if not len(self._masks[name])]
        if empty or not self._names:
            raise ConfigError(
                f"source {empty[0]}" if empty else "no source to draw from",
                expected=f"some of the store's sources {sorted(set(store.sources.tolist()))}",
                got="no mask of it in the store" if empty else "none",
                fix="name the store's sources in data.sources, or build the store with it",
            )
        self._of_source = {name: store.shares(self._masks[name]) for name in self._names}
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
        config, size = self.config, self.config.size_px
        patches = np.empty((config.batch_size, size, size, 4), np.uint8)
        targets = np.empty((config.batch_size, size, size), np.uint8)
        filled = 0
        while filled < config.batch_size:
            name = self._names[int(rng.choice(len(self._names), p=self._shares))]
            mask = int(rng.choice(self._masks[name], p=self._of_source[name]))
            new_patches, new_targets = flips(*self._of_mask(mask, name, rng), rng)
            take = min(len(new_patches), config.batch_size - filled)
            patches[filled : filled + take] = new_patches[:take]
            targets[filled : filled + take] = new_targets[:take]
            filled += take
        return torch.from_numpy(patches), torch.from_numpy(targets)

    def _of_mask(self, index: int, source: str, rng: Generator) -> tuple[U8, U8]:
        """Patches and targets along a coarse mask of one true mask."""
        config = self.config
        shrink, zoom = self._scales(rng)
        view = view_of(self.store, index, ViewConfig(config.side_px / zoom, shrink), rng)
        soft = self._coarse(view, index, source, rng)
        centres = _boundary(soft, view)
        if not len(centres):
            size = config.size_px
            return np.empty((0, size, size, 4), np.uint8), np.empty((0, size, size), np.uint8)
        count = int(np.clip(len(centres) // 24, 1, config.patches_a_mask))
        reach = max(round(14 / zoom), 1)
        centres = centres[rng.integers(0, len(centres), count)] + rng.integers(-reach, reach + 1, (count, 2))
        truth = view.truth
        if config.fuzz_px.get(source):
            truth = _within(truth, soft, config.fuzz_px[source] * shrink)
        levels = np.round(soft * 255).astype(np.uint8)
        if rng.random() >= config.soft_share and not view.is_soft:
            levels = (soft > 0.5) * np.uint8(255)
        patches, targets = self._cut(view, levels, truth, centres, zoom)
        if zoom > 1 and rng.random() < 0.4:  # a mask that was made for the small picture and enlarged with it
            patches[..., 3] = (patches[..., 3] > 127) * np.uint8(255)
        self._show(patches, targets, rng)
        return patches, targets

    def _scales(self, rng: Generator) -> tuple[float, float]:
        """How much the picture is shrunk before a mask is made of it, and the zoom its patches are cut at."""
        if rng.random() >= self.config.scale_share:
            return 1.0, 1.0
        scale = float(np.exp(rng.uniform(*np.log(self.config.scales))))
        return (scale, 1.0) if scale < 1 and rng.random() < 0.5 else (1.0, scale)

    def _coarse(self, view: View, index: int, source: str, rng: Generator) -> NDArray[np.float32]:
        """The coarse mask of a window, (h, w) float32 probabilities: the real one, or a simulated one."""
        config = self.config
        if view.coarse is not None and rng.random() < config.real_share:
            return np.asarray(view.coarse / np.float32(255), np.float32)
        kind = draw_kind(config.source_mix.get(source, config.mix), rng)
        shape = ((view.truth == 1) | (view.truth == IGNORED_INSIDE)).astype(np.uint8)
        if config.small_exact and int(shape.sum()) < SMALL_PX and rng.random() < config.small_exact:
            kind = "exact"
        around = Around(view.image, view.others(self.store, index)) if kind in SEEING_KINDS else None
        return coarse_mask(shape, rng, {kind: 1.0}, around)[0]

    def _cut(self, view: View, levels: U8, truth: U8, centres: NDArray[np.int64], zoom: float) -> tuple[U8, U8]:
        """Patches (n, S, S, 4) and targets (n, S, S) around (n, 2) centres (y, x), of S / zoom picture px."""
        config, size = self.config, self.config.size_px
        inner = round(config.patch_size_px / zoom)
        padding = round(config.padding_px / zoom)
        side, half = inner + 2 * padding, inner // 2
        left, top, right, bottom = view.inside
        height, width = truth.shape
        inside = ((truth == 1) | (truth == IGNORED_INSIDE)) * np.uint8(255)
        ignored = truth >= IGNORED_INSIDE
        patches = np.empty((len(centres), size, size, 4), np.uint8)
        targets = np.empty((len(centres), size, size), np.uint8)
        for k, (y, x) in enumerate(centres):
            x0 = max(min(x - half, right - inner), left) - padding
            y0 = max(min(y - half, bottom - inner), top) - padding
            at = (
                np.clip(np.arange(y0, y0 + side), 0, height - 1)[:, None],
                np.clip(np.arange(x0, x0 + side), 0, width - 1),
            )
            crop, target = np.dstack([view.image[at], levels[at]]), inside[at]
            if side != size:
                method = resize_method(side, side, size, size)
                crop, target = (cv2.resize(part, (size, size), interpolation=method) for part in (crop, target))
            patches[k], targets[k] = crop, target > 127
            if ignored[at].any():
                near = cv2.resize(ignored[at].astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST)
                targets[k][near > 0] = IGNORED
        return patches, targets

    def _show(self, patches: U8, targets: U8, rng: Generator) -> None:
        """Change what the pictures of one mask's patches look like, in place, alike in all of them."""
        config = self.config
        n, size = targets.shape[:2]
        if rng.random() < config.plain_share and not (targets == IGNORED).any():
            for patch, target in zip(patches, targets, strict=True):
                patch[..., :3] = on_plain(patch[..., :3], target == 1, rng)
        pictures = np.ascontiguousarray(patches[..., :3]).reshape(n * size, size, 3)
        if rng.random() < config.blank_share:
            pictures = plain((n * size, size), rng)
            known = targets != IGNORED
            targets[known] = (patches[..., 3] > 127)[known]
        if rng.random() < config.appearance_share:
            pictures = appearance(pictures, rng)
        patches[..., :3] = photometric(pictures, rng).reshape(n, size, size, 3)


def _boundary(soft: NDArray[np.float32], view: View) -> NDArray[np.int64]:
    """(n, 2) boundary pixels (y, x) of a coarse mask, those near a side of the window that cuts the object left out."""
    binary = (soft > 0.5).astype(np.uint8)
    edge = cv2.morphologyEx(binary, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    x0, y0, x1, y1 = view.usable
    return np.asarray(np.argwhere(edge[y0:y1, x0:x1]) + np.array([y0, x0]), np.int64)


def _within(truth: U8, soft: NDArray[np.float32], fuzz_px: float) -> U8:
    """The truth (h, w), but the coarse mask where it lies within ``fuzz_px`` of the true edge."""
    near = np.abs(signed_distance_px((truth == 1).astype(np.float32))) <= fuzz_px
    near &= truth <= 1
    kept = truth.copy()
    kept[near] = soft[near] > 0.5
    return kept
