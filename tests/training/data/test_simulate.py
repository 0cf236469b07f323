"""Simulated coarse masks: every kind stays a soft mask, near its ground truth."""

import numpy as np
import pytest

from bpr_service.errors import UnknownName
from refiner_training.data.simulate import ALL_KINDS, DEFAULT_MIX, KINDS, LEAST_IOU, coarse_mask
from refiner_training.data.simulate_network import Around, limbs, signed_distance_px, staircase, swollen


def disc(size: int = 96, radius: int = 30) -> np.ndarray:
    ys, xs = np.mgrid[:size, :size] - size // 2
    return (ys**2 + xs**2 <= radius**2).astype(np.uint8)


def around_disc() -> Around:
    """A low-contrast picture of the disc, and a touching neighbour at its right."""
    image = np.repeat((100 + 20 * disc())[..., None], 3, 2).astype(np.uint8)
    others = np.zeros((96, 96), np.uint8)
    others[20:76, 70:] = 1
    return Around(image, others & (1 - disc()))


@pytest.mark.parametrize("kind", sorted(ALL_KINDS))
def test_every_kind_gives_a_soft_mask_near_the_truth(kind: str) -> None:
    truth = disc()
    ious = []
    for seed in range(12):
        soft, drawn = coarse_mask(truth, np.random.default_rng(seed), {kind: 1.0}, around_disc())
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


def test_a_merged_mask_takes_from_its_neighbour_alone() -> None:
    around, truth = around_disc(), disc()
    assert around.others is not None
    taken = 0
    for seed in range(12):
        soft, kind = coarse_mask(truth, np.random.default_rng([seed, 1]), {"merged": 1.0}, around)
        if kind == "merged":
            more = (soft > 0.5) & (truth == 0)
            taken += int(more[:, 72:].sum())
            assert not (soft > 0.5)[:, :14].any()
    assert taken > 200


def test_a_leak_moves_the_edge_and_keeps_it_where_the_picture_has_contrast() -> None:
    truth = disc()
    image = np.repeat((60 + 140 * disc())[..., None], 3, 2).astype(np.uint8)
    image[:48] = 128  # no contrast in the upper half
    moved = np.zeros(2)
    for seed in range(12):
        soft, _ = coarse_mask(truth, np.random.default_rng([seed, 2]), {"leaks": 1.0}, Around(image))
        wrong = (soft > 0.5) != (truth > 0)
        moved += wrong[:44].sum(), wrong[52:].sum()
    assert moved[0] > 2 * moved[1] > 0


def test_limbs_and_poles_go_and_bodies_stay() -> None:
    truth = np.zeros((120, 120), np.float32)
    truth[20:70, 20:100] = 1
    truth[70:110, 30:35] = truth[70:110, 80:85] = 1
    lost = np.zeros(2)
    for seed in range(20):
        for error in (limbs, staircase):
            gone = (truth > 0) & (error(truth, np.random.default_rng(seed)) <= 0.5)
            lost += gone[72:].mean() / truth[72:].mean(), gone[:68].mean() / truth[:68].mean()
    assert lost[0] > 4 * lost[1]


def test_a_swollen_mask_is_off_by_a_steady_distance() -> None:
    truth = disc(160, 60).astype(np.float32)
    spreads, means = [], []
    for seed in range(12):
        edge = np.abs(signed_distance_px((swollen(truth, np.random.default_rng(seed)) > 0.5).astype(np.float32))) < 1
        distance = signed_distance_px(truth)[edge]
        means.append(abs(distance.mean()))
        spreads.append(distance.std())
    assert np.mean(means) > 2.5 > 2 * np.mean(spreads)
