"""`dense`: the labels of a map without gaps, against numpy's unique."""

from __future__ import annotations

import numpy as np
import pytest

from bpr_service.masks.dense import dense
from tests.scenes import blob


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("labels", [[0], [255], [3, 0, 255, 7]])
def test_numbers_are_ranks(dtype: type, labels: list[int]) -> None:
    given = np.array(labels, dtype)[(blob(90, 120) + 2 * blob(90, 120, 1)) % len(labels)]
    found, numbers = dense(given)
    want, ranks = np.unique(given, return_inverse=True)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(numbers, ranks.reshape(given.shape))
    np.testing.assert_array_equal(found[numbers], given)


@pytest.mark.parametrize(("count", "dtype"), [(5_000, np.uint16), (65_536, np.uint16), (70_000, np.int32)])
def test_many_labels_that_fall_on_each_other(count: int, dtype: type) -> None:
    given = np.random.default_rng(0).permutation(np.arange(count) * 256).reshape(-1, 8)
    found, numbers = dense(given)
    np.testing.assert_array_equal(found, np.arange(count) * 256)
    np.testing.assert_array_equal(numbers, given // 256)
    assert numbers.dtype == dtype


def test_a_map_that_is_cut_out_of_another() -> None:
    given = np.arange(400, dtype=np.int32).reshape(20, 20)[3:17:2, ::-3] * 40_000
    found, numbers = dense(given)
    np.testing.assert_array_equal(found[numbers], given)
