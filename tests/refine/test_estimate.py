"""What is measured of a change, and the estimate of a card."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bpr_service.errors import ModelError
from bpr_service.network.weights import EstimateCard
from bpr_service.refine.estimate import FEATURES, Estimator, features

SIDE = 48
AT = {name: place for place, name in enumerate(FEATURES)}


def square(low: int, high: int) -> NDArray[np.uint8]:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[low:high, low:high] = 1
    return mask


def picture(mask: NDArray[np.uint8], inside: int = 200, outside: int = 60) -> NDArray[np.uint8]:
    gray = np.where(mask > 0, inside, outside).astype(np.uint8)
    return np.repeat(gray[..., None], 3, 2)


def measured(coarse: NDArray[np.uint8], refined: NDArray[np.uint8], image: NDArray[np.uint8], **more: Any) -> Any:
    probability = np.where(refined > 0, 0.9, 0.1).astype(np.float32)
    covered = np.ones(coarse.shape, np.bool_)
    return features(coarse, covered, probability, image, area=int(coarse.sum()), scale=1.0, **more)


def test_the_vector_has_a_value_for_every_feature() -> None:
    coarse, refined = square(10, 36), square(12, 36)
    values = measured(coarse, refined, picture(refined))
    assert values.shape == (len(FEATURES),)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()


def test_a_boundary_on_an_edge_has_more_contrast_than_one_beside_it() -> None:
    truth, beside = square(12, 36), square(6, 42)
    values = measured(beside, truth, picture(truth))
    assert values[AT["contrast at the refined boundary"]] == pytest.approx(np.log(140 + 1e-3), abs=0.05)
    assert values[AT["contrast gained"]] > 1
    away = measured(truth, beside, picture(truth))
    assert away[AT["contrast gained"]] < -1


def test_what_changes_is_counted() -> None:
    coarse, refined = square(12, 36), square(12, 40)
    values = measured(coarse, refined, picture(refined))
    added = 28**2 - 24**2
    assert values[AT["share added"]] == 1
    assert values[AT["certainty of the change"]] == pytest.approx(0.8)
    assert values[AT["disagreement with the coarse mask"]] == pytest.approx(np.log(added / 28**2 + 1e-3), abs=1e-4)


def test_pixels_taken_from_another_mask_are_seen() -> None:
    coarse, refined = square(12, 36), square(12, 40)
    values = measured(coarse, refined, picture(refined), others=square(36, 48))
    assert values[AT["added on other masks"]] == pytest.approx(4**2 / (28**2 - 24**2))


def test_an_unchanged_mask_is_measured_too() -> None:
    coarse = square(12, 36)
    values = measured(coarse, coarse, picture(coarse))
    assert values[AT["share added"]] == 0
    assert values[AT["contrast gained"]] == pytest.approx(0)


def test_stairs_have_longer_straight_runs_than_a_disc() -> None:
    ys, xs = np.mgrid[:SIDE, :SIDE]
    disc = ((ys - 24) ** 2 + (xs - 24) ** 2 < 15**2).astype(np.uint8)
    stairs = np.repeat(np.repeat(disc[3::6, 3::6], 6, 0), 6, 1)
    runs = AT["straight runs of the coarse boundary"]
    assert measured(stairs, disc, picture(disc))[runs] > 2 * measured(disc, stairs, picture(disc))[runs]


def card(**changes: Any) -> EstimateCard:
    n = len(FEATURES)
    hidden = np.zeros((n + 1, 1))
    hidden[AT["certainty of the change"], 0] = 1
    out = np.array([[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 2.0, 0.25]])
    values = {
        "features": list(FEATURES),
        "mean": [0.0] * n,
        "scale": [1.0] * n,
        "hidden": hidden.tolist(),
        "out": out.tolist(),
        "least_gain": 0.0,
    }
    return EstimateCard.model_validate({**values, **changes})


def test_the_estimate_is_the_perceptron_of_the_card() -> None:
    values = np.zeros(len(FEATURES), np.float32)
    values[AT["certainty of the change"]] = 0.5
    estimate = Estimator(card())(values)
    assert estimate.gain == pytest.approx(np.tanh(0.5))
    assert estimate.boundary_gain == pytest.approx(0.5 * np.tanh(0.5))
    assert estimate.boundary_f == 1  # 2, which no share can be
    assert estimate.coarse_boundary_f == pytest.approx(0.25)


def test_a_card_of_other_features_is_refused() -> None:
    with pytest.raises(ModelError, match="Fit it again"):
        Estimator(card(features=["certainty of the change"]))
