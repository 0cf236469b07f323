"""Simulated coarse masks: every kind stays a soft mask, near its ground truth."""

import numpy as np
import pytest

from bpr_service.errors import UnknownName
from refiner_training.data.simulate import DEFAULT_MIX, KINDS, LEAST_IOU, coarse_mask


def disc(size: int = 96, radius: int = 30) -> np.ndarray:
    ys, xs = np.mgrid[:size, :size] - size // 2
    return (ys**2 + xs**2 <= radius**2).astype(np.uint8)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_gives_a_soft_mask_near_the_truth(kind: str) -> None:
    truth = disc()
    ious = []
    for seed in range(12):
        soft, drawn = coarse_mask(truth, np.random.default_rng(seed), {kind: 1.0})
        assert (soft.shape, soft.dtype) == (truth.shape, np.float32)
        assert 0.0 <= soft.min() <= soft.max() <= 1.0
        assert drawn in (kind, "exact")
        coarse = soft > 0.5
        ious.append((coarse & (truth > 0)).sum() / (coarse | (truth > 0)).sum())
    assert min(ious) > LEAST_IOU.get(kind, 0.5)
    assert (max(ious) == 1.0) if kind == "exact" else (min(ious) < 1.0)


def test_thin_masks_stay_coarse_after_a_stride_only() -> None:
    pole = np.zeros((96, 96), np.uint8)
    pole[10:80, 46:50] = 1
    lowest = {}
    for kind in ("stride", "roi_grid"):
        ious = []
        for seed in range(40):
            soft, _ = coarse_mask(pole, np.random.default_rng(seed), {kind: 1.0})
            coarse = soft > 0.5
            ious.append((coarse & (pole > 0)).sum() / (coarse | (pole > 0)).sum())
        lowest[kind] = min(ious)
    assert lowest["stride"] < 0.5 < lowest["roi_grid"]


def test_the_same_seed_gives_the_same_mask() -> None:
    first, second = (coarse_mask(disc(), np.random.default_rng(3))[0] for _ in range(2))
    assert np.array_equal(first, second)


def test_no_recipe_trains_on_the_held_out_kind() -> None:
    assert "blocks" in KINDS
    assert "blocks" not in DEFAULT_MIX


def test_an_unknown_kind_lists_the_known() -> None:
    with pytest.raises(UnknownName, match="roi_grid"):
        coarse_mask(disc(), np.random.default_rng(0), {"rough": 1.0})
