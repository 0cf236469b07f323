"""Regions of a label map, whole and in pieces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bpr_service.network.model import Model
from bpr_service.refine.labels.regions import LabelRegions, by_block, windows
from tests.scenes import Accelerator, Shift, blob, photo, refiner


def test_regions_can_be_cut() -> None:
    labels = np.where(blob(90, 80, 1, 0.35) > 0, 7, blob(90, 80)).astype(np.uint8)
    regions = LabelRegions(labels, None)
    boxes = np.array([[10, 20, 50, 60], [0, 0, 80, 90], [30, 0, 40, 90]], np.int32)
    pieces = regions.cut([2, 0, 2], boxes)
    for mask, label, (x0, y0, x1, y1) in zip(pieces, (7, 0, 7), boxes.tolist(), strict=True):
        want = np.zeros_like(labels)
        want[y0:y1, x0:x1] = labels[y0:y1, x0:x1] == label
        np.testing.assert_array_equal(mask.to_array(), want)
    np.testing.assert_array_equal(regions[2].to_array(), labels == 7)


def test_pieces_are_the_patches_of_a_label_in_a_block_in_their_order() -> None:
    rng = np.random.default_rng(1)
    boxes = [np.repeat(rng.integers(0, (2900, 4900), (n, 2)), 2, axis=0).reshape(n, 4) for n in (300, 0, 200)]
    placed = [(b + np.array([0, 0, 64, 64])).astype(np.int32) for b in boxes]
    owners, pieces = by_block(placed, 5000, 3000)
    for label, whole in enumerate(placed):
        own = [p for owner, p in zip(owners, pieces, strict=True) if owner == label]
        assert sorted(map(tuple, np.concatenate([*own, whole[:0]]).tolist())) == sorted(map(tuple, whole.tolist()))
        for piece in own:
            at = [whole.tolist().index(box) for box in piece.tolist()]
            assert at == sorted(at)
    lefts = np.array([p[:, :2].min(axis=0) for p in pieces])
    rights = np.array([p[:, :2].max(axis=0) for p in pieces])
    assert len(pieces) == 2 * 15
    assert (rights - lefts < 1100).all()
    assert lefts[:, 1].tolist() != sorted(lefts[:, 1].tolist())  # labels follow each other inside a block
    assert (np.diff([left[1] // 1024 for left in lefts]) >= 0).all()


@pytest.mark.parametrize("labels", [0, 2])
def test_no_patches_have_no_pieces(labels: int) -> None:
    assert by_block([np.empty((0, 4), np.int32)] * labels, 5000, 3000) == ([], [])


def test_a_window_is_what_the_patches_read() -> None:
    boxes = np.array([[0, 5, 64, 69], [100, 30, 164, 94]], np.int32)
    got = windows([boxes, boxes[:0]], 16, 100, 170)
    np.testing.assert_array_equal(got, [[0, 0, 170, 100], [0, 0, 0, 0]])


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
