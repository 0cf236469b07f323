"""Boundary pixels and scores against the formula, on the full frame."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bpr_service.masks.mask import Mask
from bpr_service.refine.boundary import boundary_pixels
from tests.scenes import blob, edge_cases


def by_hand(frame: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The definition: 3x3 sums with the border repeated, mixed where neither 0 nor 9, sorted stably."""
    padded = np.pad(frame.astype(int), 1, mode="edge")
    h, w = frame.shape
    sums = np.sum([padded[i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=0)
    ys, xs = np.nonzero((sums > 0) & (sums < 9))
    scores = np.minimum(sums, 9 - sums)[ys, xs] / 4.5
    order = np.argsort(-scores, kind="stable")
    return ys[order], xs[order], scores[order]


@pytest.mark.parametrize("name", sorted(edge_cases()))
def test_edge_cases(name: str) -> None:
    _equal(edge_cases()[name])


@pytest.mark.parametrize("seed", range(20))
def test_random_shapes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 200, 2)
    frame = blob(height, width, seed, rng.random())
    frame[: height // 4 * (seed % 2)] = 0
    frame[:, width - width // 4 * (seed % 3) :] = 0
    _equal(frame)
    _equal((rng.random((height, width)) < 0.5).astype(np.uint8))  # more boundary than the first guess has room for


def _equal(frame: NDArray[np.uint8]) -> None:
    boundary = boundary_pixels(Mask.from_array(frame))
    ys, xs, scores = by_hand(frame)
    np.testing.assert_array_equal(boundary.ys, ys)
    np.testing.assert_array_equal(boundary.xs, xs)
    np.testing.assert_allclose(boundary.scores, scores, rtol=1e-6)


def test_the_image_border_is_no_boundary() -> None:
    full, half = np.ones((40, 50), np.uint8), np.ones((40, 50), np.uint8)
    half[:, 25:] = 0
    assert len(boundary_pixels(Mask.from_array(full))) == 0
    assert set(boundary_pixels(Mask.from_array(half)).xs.tolist()) == {24, 25}


def test_a_crop_that_is_not_tight_gives_the_same() -> None:
    frame = np.zeros((60, 60), np.uint8)
    frame[20:40, 10:30] = blob(20, 20)
    loose = Mask(60, 60, 3, 5, np.ascontiguousarray(frame[5:50, 3:45]))
    a, b = boundary_pixels(loose), boundary_pixels(Mask.from_array(frame))
    np.testing.assert_array_equal(np.stack([a.ys, a.xs]), np.stack([b.ys, b.xs]))


@pytest.mark.parametrize("at", [0, 7, 40])
@pytest.mark.parametrize("width", [29, 30, 31, 32, 33, 62, 64, 65])
def test_rows_as_wide_as_what_is_ranked_at_once(width: int, at: int) -> None:
    frame = np.zeros((12, width + 2 * at), np.uint8)
    frame[:, at : at + width] = np.random.default_rng(width).random((12, width)) < 0.7
    frame[:, [at, at + width - 1]] = 1
    _equal(frame)
