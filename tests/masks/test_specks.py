"""What is a speck, and what is a small part of an object."""

from __future__ import annotations

import numpy as np
import pytest

from bpr_service.masks.specks import take_back_specks


@pytest.fixture
def coarse() -> np.ndarray:
    mask = np.zeros((60, 80), np.uint8)
    mask[10:50, 10:50] = 1
    mask[20:24, 20:24] = 0  # a hole of its own
    mask[5:8, 70:73] = 1  # a small part of its own
    return mask


def tidied(refined: np.ndarray, coarse: np.ndarray, specks_px: int = 20) -> np.ndarray:
    out = refined.copy()
    take_back_specks(out, coarse, specks_px)
    return out


def test_new_islands_and_holes_go(coarse: np.ndarray) -> None:
    refined = coarse.copy()
    refined[10:50, 50:53] = 1  # the boundary moved
    right = refined.copy()
    refined[30:33, 60:64] = 1
    refined[40:43, 30:34] = 0
    refined[0:2, 0:2] = 1  # an island at the edge
    np.testing.assert_array_equal(tidied(refined, coarse), right)
    np.testing.assert_array_equal(tidied(refined, coarse, 0), refined)
    np.testing.assert_array_equal(tidied(refined, coarse, 12), _but_the_corner(refined))


def _but_the_corner(refined: np.ndarray) -> np.ndarray:
    """Islands and holes of 12 px stay where specks are smaller than that."""
    out = refined.copy()
    out[0:2, 0:2] = 0
    return out


def test_what_the_coarse_mask_had_stays(coarse: np.ndarray) -> None:
    np.testing.assert_array_equal(tidied(coarse, coarse), coarse)
    shrunk = coarse.copy()
    shrunk[5:8, 72] = 0
    shrunk[23, 20:24] = 1
    np.testing.assert_array_equal(tidied(shrunk, coarse), shrunk)


def test_large_and_open_ones_stay(coarse: np.ndarray) -> None:
    refined = coarse.copy()
    refined[52:58, 60:66] = 1  # 36 px
    refined[30:35, 30:36] = 0  # 30 px
    np.testing.assert_array_equal(tidied(refined, coarse), refined)
    full = np.ones((20, 20), np.uint8)
    notch = full.copy()
    notch[0:3, 5:8] = 0  # open to the outside of the window
    np.testing.assert_array_equal(tidied(notch, full), notch)


def test_an_island_joined_by_a_corner_is_none(coarse: np.ndarray) -> None:
    refined = coarse.copy()
    refined[50, 50] = 1
    np.testing.assert_array_equal(tidied(refined, coarse), refined)


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (1, 9)])
def test_any_window(shape: tuple[int, int]) -> None:
    take_back_specks(np.zeros(shape, np.uint8), np.ones(shape, np.uint8), 20)
