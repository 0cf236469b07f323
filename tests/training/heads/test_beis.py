"""BEIS: banks, the confusion matrix, samples, and the two contrast losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bpr_service.config import build
from bpr_service.errors import ConfigError
from refiner_training.heads.beis import BeisHead, BeisSettings
from refiner_training.heads.beis_contrast import StageContrast, StageInput, roi_class_maps
from refiner_training.heads.beis_memory import ConfusionMatrix, FeatureBank, class_weights, weighted_sample
from refiner_training.heads.protocol import OwnRandom, RoiBatch, RoiTruth
from refiner_training.heads.targets import laplace_boundary

TINY: dict[str, Any] = {"channels": (8, 8, 4, 4), "bank_size": 64, "bank_warmup": 4}


def make_rois(count: int = 4, channels: int = 6, seed: int = 0) -> RoiBatch:
    """RoIs of two neighbouring instances of classes 1 and 2 on one image."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(2, 96, 96, dtype=torch.uint8)
    masks[0, 20:70, 10:45] = 1
    masks[1, 30:80, 45:85] = 1
    matched = torch.arange(count) % 2
    boxes = torch.tensor([[10.0, 20, 45, 70], [45, 30, 85, 80]])[matched] + torch.rand(count, 4, generator=generator)
    boxes[:, 2:] += 12
    labels = matched + 1
    pooled = {name: torch.randn(count, channels, 14, 14, generator=generator) for name in ("mask", "fine")}
    return RoiBatch(pooled, [boxes], labels, RoiTruth([masks], [torch.tensor([1, 2])], [matched]))


def make_head(**settings: Any) -> BeisHead:
    torch.manual_seed(0)
    return BeisHead(6, 4, BeisSettings(**{**TINY, **settings}))


def step(head: BeisHead, rois: RoiBatch) -> dict[str, torch.Tensor]:
    losses = head.losses(head(rois), rois)
    head.after_step()
    return losses


# ---- memory ------------------------------------------------------------------------------------------------------


def test_bank_is_first_in_first_out() -> None:
    bank = FeatureBank(8)
    for value in range(11):
        bank.push(torch.full((1, 3), float(value)), torch.tensor([value]))
    assert sorted(bank.features[:, 0].tolist()) == list(range(3, 11))
    assert sorted(bank.classes.tolist()) == list(range(3, 11))


def test_bank_takes_more_than_its_capacity_and_drops_what_is_not_finite() -> None:
    bank = FeatureBank(4)
    bank.push(torch.arange(6.0)[:, None], torch.arange(6))
    assert sorted(bank.features[:, 0].tolist()) == [2, 3, 4, 5]
    bank.push(torch.tensor([[math.nan], [math.inf]]), torch.zeros(2, dtype=torch.int64))
    assert sorted(bank.features[:, 0].tolist()) == [2, 3, 4, 5]


def test_no_gradient_flows_into_the_bank() -> None:
    bank = FeatureBank(4)
    bank.push(torch.ones(2, 3, requires_grad=True) * 2, torch.zeros(2, dtype=torch.int64))
    assert not bank.features.requires_grad


def test_confusion_matrix_follows_the_cosines() -> None:
    matrix = ConfusionMatrix(3)
    u, v, one = torch.tensor([1]), torch.tensor([2]), torch.ones(1)
    torch.testing.assert_close(matrix.rows(u).softmax(1), torch.full((1, 3), 1 / 3))
    matrix.update(u, v, one)
    assert matrix.values[1, 2].item() == pytest.approx(0.109)
    for _ in range(99):
        matrix.update(u, v, one)
    assert matrix.values[1, 2].item() == pytest.approx(0.6706, abs=1e-4)
    assert matrix.values[2, 1].item() == pytest.approx(0.1)


def test_many_observations_of_a_pair_count_as_many_steps() -> None:
    one, many = ConfusionMatrix(2), ConfusionMatrix(2)
    for _ in range(5):
        one.update(torch.tensor([0]), torch.tensor([1]), torch.tensor([0.5]))
    many.update(torch.zeros(5).long(), torch.ones(5).long(), torch.full((5,), 0.5))
    torch.testing.assert_close(one.values, many.values)
    many.update(torch.tensor([0]), torch.tensor([1]), torch.tensor([math.nan]))
    assert many.values.isfinite().all()


def test_samples_follow_the_weights_without_repeats() -> None:
    weights = torch.tensor([[0.0, 1.0, 3.0, 0.0, 2.0]])
    drawn, valid = weighted_sample(weights, 5, torch.Generator().manual_seed(0))
    assert sorted(drawn[valid].tolist()) == [1, 2, 4]
    first = [int(weighted_sample(weights, 1, torch.Generator().manual_seed(s))[0][0, 0]) for s in range(3000)]
    shares = torch.bincount(torch.tensor(first), minlength=5) / len(first)
    torch.testing.assert_close(shares, weights[0] / 6, atol=0.03, rtol=0)


def test_samples_of_nothing_are_not_valid() -> None:
    generator = torch.Generator().manual_seed(0)
    assert not weighted_sample(torch.zeros(2, 3), 4, generator)[1].any()
    assert weighted_sample(torch.zeros(0, 3), 4, generator)[0].shape == (0, 4)


def test_a_class_without_keys_is_never_drawn() -> None:
    affinity = torch.tensor([[0.1, 0.1, 9.0]])  # class 2 would be drawn nearly always, but has no key
    weights = class_weights(affinity, torch.tensor([0, 0, 1, 2]), torch.tensor([True, True, True, False]))
    torch.testing.assert_close(weights, torch.tensor([[0.25, 0.25, 0.5, 0.0]]))
    assert not class_weights(affinity, torch.tensor([2, 2]), torch.tensor([False, False])).any()


# ---- losses of a stage -------------------------------------------------------------------------------------------


def stage_input(features: torch.Tensor) -> StageInput:
    masks = torch.zeros(1, 28, 28)
    masks[0, 8:20, 8:20] = 1
    unsure = torch.full_like(masks, 0.5)
    return StageInput(
        features, masks, laplace_boundary(masks), unsure, torch.tensor([1]), torch.zeros(1, 28, 28).long()
    )


def test_equal_features_cost_2_log_9_within_and_log_9_across() -> None:
    contrast = StageContrast(BeisSettings(bank_size=300, bank_warmup=128), 3, OwnRandom())
    for bank in contrast.banks:
        bank.push(torch.ones(200, 4), torch.ones(200).long())
    losses = contrast.losses(stage_input(torch.ones(1, 4, 28, 28)))
    assert losses["loss_ibdl"].item() == pytest.approx(4.3944, abs=1e-3)
    assert losses["loss_cbdl"].item() == pytest.approx(2.1972, abs=1e-3)


def test_separated_sides_cost_less_than_mixed_ones() -> None:
    settings = BeisSettings(cbdl=False, normalize=False)
    apart = stage_input(torch.ones(1, 4, 28, 28)).masks[:, None] * 6 * torch.ones(1, 4, 1, 1)
    mixed = torch.randn(1, 4, 28, 28, generator=torch.Generator().manual_seed(0))
    costs = [
        StageContrast(settings, 3, OwnRandom()).losses(stage_input(features))["loss_ibdl"]
        for features in (apart, mixed)
    ]
    assert costs[0] < 0.05 < costs[1]


def test_gradient_separates_the_sides() -> None:
    features = torch.randn(1, 4, 28, 28, generator=torch.Generator().manual_seed(0)).requires_grad_()
    contrast = StageContrast(BeisSettings(cbdl=False), 3, OwnRandom())
    before = contrast.losses(stage_input(features))["loss_ibdl"]
    (gradient,) = torch.autograd.grad(before, features)
    moved = (features - 5 * gradient).detach()
    contrast = StageContrast(BeisSettings(cbdl=False), 3, OwnRandom())
    assert contrast.losses(stage_input(moved))["loss_ibdl"] < before


def test_sure_pixels_are_no_queries() -> None:
    """AQS: where the mask is right and sure, there is nothing to ask."""
    sure = stage_input(torch.randn(1, 4, 28, 28, generator=torch.Generator().manual_seed(0)))
    sure = StageInput(sure.features, sure.masks, sure.contour, sure.masks, sure.labels, sure.others)
    assert StageContrast(BeisSettings(), 3, OwnRandom()).losses(sure)["loss_ibdl"].item() == 0
    assert StageContrast(BeisSettings(aqs=False), 3, OwnRandom()).losses(sure)["loss_ibdl"].item() > 0


def test_empty_and_cold_banks_give_no_cross_image_loss() -> None:
    contrast = StageContrast(BeisSettings(bank_size=256, bank_warmup=128), 3, OwnRandom())
    features = torch.randn(1, 4, 28, 28, generator=torch.Generator().manual_seed(0))
    assert contrast.losses(stage_input(features))["loss_cbdl"].item() == 0
    for bank in contrast.banks:
        bank.push(torch.ones(127, 4), torch.ones(127).long())
    assert contrast.losses(stage_input(features))["loss_cbdl"].item() == 0
    for bank in contrast.banks:
        bank.push(torch.ones(1, 4), torch.ones(1).long())
    assert contrast.losses(stage_input(features))["loss_cbdl"].item() > 0


def test_positives_of_the_same_class_only_when_asked() -> None:
    """A bank whose class-1 entries are far away: with ``pos_same_class`` they are the only positives."""
    costs = []
    for same in (False, True):
        settings = BeisSettings(bank_size=64, bank_warmup=4, pos_same_class=same, ibdl=False)
        contrast = StageContrast(settings, 3, OwnRandom())
        for bank in contrast.banks:
            bank.push(torch.zeros(40, 4), torch.full((40,), 2))
            bank.push(torch.full((4, 4), 9.0), torch.ones(4).long())
        costs.append(contrast.losses(stage_input(torch.zeros(1, 4, 28, 28)))["loss_cbdl"].item())
    assert costs[0] < costs[1]


def test_class_maps_show_who_covers_a_cell() -> None:
    rois = make_rois(1)
    boxes = torch.tensor([[10.0, 30, 80, 70]])
    rois = RoiBatch({}, [boxes], rois.labels, rois.truth)
    maps = roi_class_maps(rois, 14)
    assert maps[0, 5].tolist() == [1] * 7 + [2] * 7


# ---- the head ----------------------------------------------------------------------------------------------------


def test_stages_go_from_14_to_112() -> None:
    head = make_head()
    out = head(make_rois(2))
    assert [out[f"mask_{s}"].shape[-1] for s in range(4)] == [14, 28, 56, 112]
    assert [tuple(out[f"features_{s}"].shape[1:]) for s in range(4)] == [
        (8, 14, 14),
        (8, 28, 28),
        (4, 56, 56),
        (4, 112, 112),
    ]
    assert head.eval()(make_rois(2))["mask"].shape == (2, 112, 112)
    assert head.predict(head(make_rois(2)), torch.tensor([1, 2]))[0].shape == (2, 1, 112, 112)


def test_two_channels_keep_14_and_28() -> None:
    head = make_head(channels=(8, 8))
    assert head(make_rois(2))["mask"].shape[-1] == 28


@pytest.mark.parametrize(
    ("ibdl", "cbdl", "names"),
    [
        (True, True, ("loss_mask", "loss_ibdl", "loss_cbdl")),
        (True, False, ("loss_mask", "loss_ibdl")),
        (False, True, ("loss_mask", "loss_cbdl")),
        (False, False, ("loss_mask",)),
    ],
)
def test_each_loss_can_be_off(ibdl: bool, cbdl: bool, names: tuple[str, ...]) -> None:
    head = make_head(ibdl=ibdl, cbdl=cbdl)
    assert head.spec.loss_names == names
    assert tuple(step(head, make_rois())) == names


def test_the_contrast_losses_have_a_weight() -> None:
    whole, half = (step(make_head(contrast_weight=weight, cbdl=False), make_rois()) for weight in (1.0, 0.5))
    assert float(half["loss_ibdl"].detach()) == pytest.approx(0.5 * float(whole["loss_ibdl"].detach()), rel=1e-4)
    assert float(half["loss_mask"].detach()) == pytest.approx(float(whole["loss_mask"].detach()), rel=1e-4)


def test_losses_are_sums_over_stages() -> None:
    head = make_head()
    losses = step(head, make_rois())
    stages = [float(head.values[f"loss_mask_{size}"]) for size in (14, 28, 56, 112)]
    assert float(losses["loss_mask"].detach()) == pytest.approx(sum(stages), rel=1e-5)


def test_the_bank_is_written_after_the_loss() -> None:
    head = make_head()
    rois = make_rois()
    head.losses(head(rois), rois)
    assert [len(bank) for bank in head.contrasts[0].banks] == [0, 0]
    head.after_step()
    assert [len(bank) for bank in head.contrasts[0].banks] == [4, 4]
    head.after_step()
    assert [len(bank) for bank in head.contrasts[0].banks] == [4, 4]
    assert float(step(head, rois)["loss_cbdl"].detach()) > 0


def test_neighbours_enter_the_confusion_matrix_and_the_background_has_a_column() -> None:
    head = make_head()
    step(head, make_rois())
    changed = head.contrasts[1].confusion.values != 0.1
    assert changed[1, 2]
    assert changed[1, 0]
    assert not changed[2, 1], "instance 1 does not reach into the boxes of instance 2"
    assert not changed[3].any()
    assert not changed[0].any()


def test_evaluation_leaves_bank_and_matrix_alone() -> None:
    head = make_head()
    step(head, make_rois())
    before = (head.contrasts[0].banks[0].features.clone(), head.contrasts[0].confusion.values.clone())
    head.eval()
    head(make_rois(seed=1))
    head.after_step()
    torch.testing.assert_close(head.contrasts[0].banks[0].features, before[0])
    torch.testing.assert_close(head.contrasts[0].confusion.values, before[1])


def test_banks_are_in_the_training_state_not_in_the_state_dict() -> None:
    head = make_head()
    step(head, make_rois())
    assert not [name for name in head.state_dict() if "bank" in name or "confusion" in name]
    other = make_head()
    other.load_training_state(head.training_state())
    torch.testing.assert_close(other.contrasts[2].banks[1].features, head.contrasts[2].banks[1].features)
    head.random.reseed(5)
    other.random.reseed(5)
    torch.testing.assert_close(step(other, make_rois()), step(head, make_rois()))


def test_own_random_numbers_do_not_touch_the_detectors() -> None:
    head = make_head()
    torch.manual_seed(3)
    step(head, make_rois())
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), after)


def test_warmup_over_the_bank_is_refused() -> None:
    with pytest.raises(ConfigError, match="bank_warmup"):
        build(BeisSettings, {"bank_size": 8, "bank_warmup": 9})


def test_a_fresh_head_s_contrast_pulls_no_harder_than_its_masks() -> None:
    """Normalised features, the default: of the order of the mask loss. As they are, the contrast drowns it."""

    def pull(normalize: bool) -> float:
        head = make_head(normalize=normalize, bank_warmup=1)
        rois = make_rois()
        for pooled in rois.pooled.values():
            pooled.mul_(100).requires_grad_()
        step(head, rois)
        losses = head.losses(head(rois), rois)
        (losses["loss_ibdl"] + losses["loss_cbdl"]).backward()
        return float(sum(p.grad.abs().sum() for p in rois.pooled.values() if p.grad is not None))

    assert pull(True) < pull(False) / 10


def test_the_contrast_rises_from_nothing() -> None:
    head, rois = make_head(contrast_ramp=2), make_rois()
    weights = []
    for _ in range(4):
        weights.append(head._contrast_weight())
        step(head, rois)
        head.after_step()  # again, as before a checkpoint: the step counts once
    assert weights == [0, 0.5, 1, 1]
    other = make_head(contrast_ramp=2)
    other.load_training_state(head.training_state())
    assert other._contrast_weight() == 1
