"""Boundaries between labels that hardly move stay where they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bpr_service.refine.labels.contest import LEAST_SHIFT, Contest
from bpr_service.refine.labels.regions import LabelRegions


def contest(label_map: np.ndarray, winner: np.ndarray) -> Contest:
    """One whose pixels are decided as in `winner`."""
    found = Contest(LabelRegions(label_map, 255), logit=False)
    found.winner[:] = winner
    changed = label_map != winner
    size = found.added.size
    found.added += np.bincount(winner[changed].ravel(), minlength=size)
    found.removed += np.bincount(label_map[changed].ravel(), minlength=size)
    return found


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_a_boundary_that_hardly_moved_stays_and_another_keeps_its_change(dtype: type) -> None:
    """Three stripes of 100 rows: between 0 and 1 there are 100 edges, and as many between 1 and 2."""
    stripes: np.ndarray[Any, Any] = np.repeat(np.array([0, 1, 2], dtype), 20)[None].repeat(100, 0)
    winner = stripes.copy()
    winner[:9, 20] = 0  # 9 of 100 edges
    winner[:11, 40] = 1  # 11 of 100
    found = contest(stripes, winner)
    found.restrain()
    expected = stripes.copy()
    expected[:11, 40] = 1
    assert np.array_equal(found.result(), expected)
    assert found.result().dtype == dtype
    assert (found.added[:3].tolist(), found.removed[:3].tolist()) == ([0, 11, 0], [0, 0, 11])
    assert LEAST_SHIFT == 0.1


def test_labels_without_a_common_edge_and_edges_along_both_axes() -> None:
    label_map = np.zeros((40, 40), np.uint8)
    label_map[10:30, 10:30] = 7  # 80 edges with 0, and all of them count
    label_map[30:, 30:] = 255
    winner = label_map.copy()
    winner[10, 10:17] = 0
    found = contest(label_map, winner)
    found.restrain()
    assert np.array_equal(found.result(), label_map)
    winner[10, 10:18] = 0  # 8 of 80: no less than a tenth
    found = contest(label_map, winner)
    found.restrain()
    assert np.array_equal(found.result(), winner)
    winner = label_map.copy()
    winner[35, 35] = 7  # 7 and void touch nowhere
    found = contest(label_map, winner)
    found.restrain()
    assert np.array_equal(found.result(), winner)


def test_nothing_changed() -> None:
    label_map = np.arange(12, dtype=np.uint8).reshape(3, 4)
    found = contest(label_map, label_map)
    found.restrain()
    assert np.array_equal(found.result(), label_map)
