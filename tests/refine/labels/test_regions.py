"""Regions of a label map."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bpr_service.network.model import Model
from bpr_service.refine.labels.regions import LabelRegions
from tests.scenes import Accelerator, Shift, blob, photo, refiner


def big(labels: NDArray[Any]) -> NDArray[np.int32]:
    """The same regions with ids up to 2**24 - 1, in the same order; 0 stays 0."""
    ids = np.zeros(256, np.int32)
    ids[1:] = (1 << 24) - 256 + np.arange(1, 256)
    return ids[labels]


@pytest.mark.parametrize("void", [None, 0, 9])
def test_large_ids_need_no_table_up_to_the_highest(void: int | None) -> None:
    labels = (blob(90, 80, 1, 0.35) * 9 + blob(90, 80) * 100).astype(np.uint8)
    name = None if void is None else int(big(np.array([void]))[0])
    small, large = LabelRegions(labels, void), LabelRegions(big(labels), name)
    assert large.labels == big(np.array(small.labels)).tolist()
    assert large.top < 4
    np.testing.assert_array_equal(large.boxes, small.boxes)
    np.testing.assert_array_equal(large.areas, small.areas)
    for a, b in zip(large, small, strict=True):
        np.testing.assert_array_equal(a.to_array(), b.to_array())
    np.testing.assert_array_equal(large.named(large.map), big(labels))
    assert large.named(large.map).dtype == np.int32


@pytest.mark.parametrize("kind", [Model, Accelerator])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32])
def test_large_ids_are_refined_as_small_ones(kind: type[Model], dtype: Any) -> None:
    labels = (blob(140, 160, 1, 0.35) * 9 + blob(140, 160) * 100).astype(np.uint8)
    image, engine = photo(140, 160), refiner(Shift(), kind=kind)
    want, got = (engine.refine_semantic(image, m, 0) for m in (labels, big(labels).astype(dtype)))
    assert (want.label_map != labels).any()
    np.testing.assert_array_equal(got.label_map, big(want.label_map))
    assert got.label_map.dtype == dtype
    assert [replace(r, label=int(big(np.array([r.label]))[0])) for r in want.reports] == got.reports


def test_an_ignore_label_that_the_map_does_not_have_changes_nothing() -> None:
    labels = big((blob(100, 100) * 9 + 1).astype(np.uint8))
    results = [refiner(Shift()).refine_semantic(photo(100, 100), labels, ignore) for ignore in (None, 255, 1)]
    for result in results[1:]:
        np.testing.assert_array_equal(result.label_map, results[0].label_map)
        assert result.reports == results[0].reports
