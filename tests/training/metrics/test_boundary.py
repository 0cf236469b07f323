"""The pair primitives against full-frame versions written from their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from bpr_service.masks.mask import Mask
from refiner_training.metrics import boundary as measures
from tests.training import oracles


def frames(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two masks of one random size: alike, unlike, or one of them empty; often cut by the image border."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 60, 2))

    def one() -> NDArray[np.uint8]:
        field = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.5, 5))
        mask: NDArray[np.uint8] = (field > rng.normal() * 0.05).astype(np.uint8)
        return mask * np.uint8(rng.random() > 0.1)

    first = one()
    return first, one() if seed % 2 else (first ^ (rng.random(shape) < 0.03)).astype(np.uint8)


@pytest.mark.parametrize("seed", range(60))
def test_primitives_equal_their_definitions(seed: int) -> None:
    a, b = frames(seed)
    first, second = Mask.from_array(a), Mask.from_array(b)
    reach = 1 + seed % 6
    assert measures.mask_iou(first, second) == pytest.approx(oracles.iou(a, b), abs=1e-12)
    assert measures.boundary_iou(first, second, reach) == pytest.approx(oracles.boundary_iou(a, b, reach), abs=1e-12)
    assert measures.boundary_f(first, second, reach) == pytest.approx(oracles.boundary_f(a, b, reach), abs=1e-12)
    assert measures.boundary_f(first, second) == pytest.approx(oracles.boundary_f(a, b, 1), abs=1e-12)
    assert measures.band_error(first, second, reach) == oracles.band_error(a, b, reach)


@pytest.mark.parametrize(
    ("size", "ratio", "distance"), [((480, 640), 0.02, 16), ((1024, 2048), 0.005, 11), ((4, 4), 0.02, 1)]
)
def test_boundary_distance(size: tuple[int, int], ratio: float, distance: int) -> None:
    assert measures.boundary_distance_px(*size, ratio) == distance


@pytest.mark.parametrize(("size", "tolerance"), [((1024, 2048), 3), ((360, 480), 1)])
def test_f_tolerance_is_that_of_segfix(size: tuple[int, int], tolerance: int) -> None:
    assert measures.f_tolerance_px(*size) == tolerance


def test_boundary_region_counts_the_image_border_and_the_edge_map_does_not() -> None:
    full = Mask.from_array(np.ones((20, 20), np.uint8))
    assert measures.boundary_region(full, 3).sum() == 400 - 14 * 14
    assert measures.boundary_f(full, Mask.from_array(np.zeros((20, 20), np.uint8))) == 1.0  # neither has an edge


def test_a_shift_within_the_tolerance_costs_nothing() -> None:
    frame = np.zeros((40, 40), np.uint8)
    frame[10:30, 10:30] = 1
    mask, shifted = Mask.from_array(frame), Mask.from_array(np.roll(frame, 1, axis=1))
    assert measures.boundary_f(mask, shifted, 1) == 1.0
    assert measures.boundary_f(mask, shifted, 0) < 0.6
