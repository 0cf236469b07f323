"""Losses, checked against the formula by hand and against their limits."""

from __future__ import annotations

import math

import pytest
import torch

from refiner_training.heads.losses import (
    bce_loss,
    boundary_loss,
    contrastive_loss,
    crisp_loss,
    dice_loss,
    dice_per_sample,
    pairwise_distance,
)
from refiner_training.heads.targets import laplace_boundary, laplacian

BIG = 50.0


def ring() -> torch.Tensor:
    mask = torch.zeros(1, 8, 8)
    mask[0, 2:6, 2:6] = 1
    return laplace_boundary(mask)


def test_dice_of_known_predictions() -> None:
    y = ring()
    assert dice_loss((2 * y - 1) * BIG, y).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(torch.full_like(y, -BIG), y).item() == pytest.approx(1 - 1 / 13, abs=1e-4)
    assert dice_loss(torch.full_like(y, -BIG), torch.zeros_like(y)).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(torch.zeros_like(y), y).item() == pytest.approx(0.5517, abs=1e-4)
    assert dice_loss(torch.zeros_like(y), y, squared=False).item() == pytest.approx(0.7111, abs=1e-4)


def test_dice_without_positives_is_one_over_what_was_predicted() -> None:
    logits = torch.zeros(1, 4, 4)
    assert dice_loss(logits, torch.zeros(1, 4, 4)).item() == pytest.approx(1 - 1 / (16 * 0.25 + 1))


def test_dice_of_raw_laplacian_responses_shows_why_targets_are_binary() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[0, 2:6, 2:6] = 1
    raw, y = laplacian(mask).flatten(), ring().flatten()
    similarity = 2 * (raw * y).sum() / ((raw * raw).sum() + (y * y).sum())
    assert similarity.item() == pytest.approx(0.478, abs=1e-3)


def test_dice_of_a_sample_ignores_what_is_not_valid() -> None:
    y = ring()
    valid = torch.ones_like(y, dtype=torch.bool)
    valid[..., :4] = False
    logits = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = logits.clone()
    changed[..., :4] = 7.0
    torch.testing.assert_close(dice_per_sample(logits, y, valid=valid), dice_per_sample(changed, y, valid=valid))
    assert not torch.allclose(dice_per_sample(logits, y), dice_per_sample(changed, y))


@pytest.mark.parametrize("loss", [bce_loss, dice_loss, boundary_loss, crisp_loss])
def test_no_samples_give_a_zero_on_the_graph(loss: object) -> None:
    logits = torch.zeros(0, 4, 4, requires_grad=True)
    value = loss(logits, torch.zeros(0, 4, 4))  # type: ignore[operator]
    assert value.item() == 0
    value.backward()
    assert logits.grad is not None


@pytest.mark.parametrize("loss", [bce_loss, dice_loss, boundary_loss, crisp_loss])
def test_losses_are_float32_whatever_comes_in(loss: object) -> None:
    logits = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(logits, torch.ones(2, 4, 4))  # type: ignore[operator]
    assert value.dtype == torch.float32


def test_bce_counts_valid_pixels_only() -> None:
    logits = torch.tensor([[[0.0, 9.0]]])
    valid = torch.tensor([[[True, False]]])
    assert bce_loss(logits, torch.zeros(1, 1, 2), valid).item() == pytest.approx(math.log(2))
    assert bce_loss(logits, torch.zeros(1, 1, 2), ~valid & valid).item() == 0


def test_boundary_loss_is_bce_plus_dice() -> None:
    logits = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = dice_loss(logits, ring()) + 0.5 * bce_loss(logits, ring())
    torch.testing.assert_close(boundary_loss(logits, ring(), bce_weight=0.5), expected)


def test_crisp_loss_is_one_when_perfect_and_finite_without_positives() -> None:
    y = ring()
    assert crisp_loss((2 * y - 1) * BIG, y).item() == pytest.approx(1, abs=1e-4)
    assert torch.isfinite(crisp_loss(torch.zeros_like(y), torch.zeros_like(y)))


def test_distance_of_equal_points_has_a_finite_gradient() -> None:
    point = torch.ones(1, 3, requires_grad=True)
    pairwise_distance(point, torch.ones(1, 3)).sum().backward()
    assert point.grad is not None
    assert torch.isfinite(point.grad).all()


def equal_features(positives: int, negatives: int) -> torch.Tensor:
    return contrastive_loss(
        torch.ones(1, 5, 8),
        torch.ones(1, positives, 8),
        torch.ones(1, negatives, 8),
        torch.ones(1, 5, positives, dtype=torch.bool),
        torch.ones(1, negatives, dtype=torch.bool),
    )


@pytest.mark.parametrize(("positives", "negatives"), [(4, 32), (16, 128)])
def test_equal_features_cost_log_9(positives: int, negatives: int) -> None:
    torch.testing.assert_close(equal_features(positives, negatives), torch.full((1, 5), math.log(9)))


def one_query(query: torch.Tensor, **options: float) -> torch.Tensor:
    positive, negative = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    yes = torch.ones(1, 1, dtype=torch.bool)
    return contrastive_loss(query, positive, negative, yes, yes[0], **options)  # type: ignore[arg-type]


def test_gradient_pulls_to_the_positive_and_away_from_the_negative() -> None:
    query = torch.zeros(1, 2, requires_grad=True)
    one_query(query).sum().backward()
    assert query.grad is not None
    step = -query.grad[0]
    assert step[0] > 0
    assert step[1] < 0


def test_the_literal_formula_would_do_the_opposite() -> None:
    """Equation 3 with the opposite side in the numerator: why the numerator holds the same side here."""
    query = torch.zeros(1, 2, requires_grad=True)
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    distance = pairwise_distance(query, keys)[0]
    literal = torch.logsumexp(-distance, 0) + distance[1]
    literal.backward()
    assert query.grad is not None
    assert -query.grad[0, 0] < 0


def test_unit_features_have_a_floor_of_0_734_at_tau_1() -> None:
    same, opposite = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    loss = contrastive_loss(
        same * 3,
        same.expand(4, 2),
        opposite.expand(32, 2),
        torch.ones(1, 4, dtype=torch.bool),
        torch.ones(32, dtype=torch.bool),
        normalize=True,
    )
    assert loss.item() == pytest.approx(math.log(1 + 8 * math.exp(-2)), abs=1e-4)


def test_keys_that_are_not_valid_do_not_count() -> None:
    query = torch.zeros(1, 2)
    positives, negatives = torch.tensor([[1.0, 0.0], [9.0, 9.0]]), torch.tensor([[0.0, 1.0], [0.1, 0.1]])
    loss = contrastive_loss(query, positives, negatives, torch.tensor([[True, False]]), torch.tensor([True, False]))
    torch.testing.assert_close(loss, one_query(query))


def test_a_query_without_positives_costs_nothing() -> None:
    query = torch.zeros(1, 2, requires_grad=True)
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    loss = contrastive_loss(query, torch.ones(3, 2), torch.ones(2, 2), nothing, torch.ones(2, dtype=torch.bool))
    loss.sum().backward()
    assert loss.item() == 0
    assert query.grad is not None
    assert torch.isfinite(query.grad).all()
