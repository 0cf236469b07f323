"""The truth in a band along the predicted boundary, against a loop over pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bpr_service.errors import ConfigError
from bpr_service.masks.mask import Mask
from refiner_training.commands.evaluate import instance
from refiner_training.evaluate import evaluate_instances
from refiner_training.metrics.upper_bound import with_true_band
from tests.training.synthetic import blob, write_coco


def by_hand(mask: np.ndarray, truth: np.ndarray, distance_px: int) -> np.ndarray:
    out = mask.copy()
    for y, x in np.ndindex(mask.shape):
        ys, xs = np.nonzero(mask != mask[y, x])
        if len(ys) and ((ys - y) ** 2 + (xs - x) ** 2).min() <= distance_px**2:
            out[y, x] = truth[y, x]
    return out


@pytest.mark.parametrize("distance_px", [1, 2, 3])
def test_it_is_the_truth_so_near_the_boundary_and_the_prediction_elsewhere(distance_px: int) -> None:
    rng = np.random.default_rng(distance_px)
    mask, truth = blob(rng, 40, 50), blob(rng, 40, 50)
    found = with_true_band(Mask.from_array(mask), Mask.from_array(truth), distance_px)
    assert (found.to_array() == by_hand(mask, truth, distance_px)).all()


def test_a_mask_without_a_boundary_stays() -> None:
    truth = Mask.from_array(np.eye(8, dtype=np.uint8))
    for frame in (np.zeros((8, 8), np.uint8), np.ones((8, 8), np.uint8)):
        assert (with_true_band(Mask.from_array(frame), truth, 2).to_array() == frame).all()


def test_measures_rise_with_the_band_that_is_true(tmp_path: Path) -> None:
    files = write_coco(tmp_path, images=3)
    got = evaluate_instances(files["gt"], files["before"], upper_bounds=[1, 3]).summary
    for name in ("AP", "AF"):
        assert got[name] < got[f"{name}_upper_bound_1px"] < got[f"{name}_upper_bound_3px"] <= 1


def test_a_distance_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="distances in px"):
        instance(tmp_path / "none.json", tmp_path / "none.json", upper_bound="1;3")
