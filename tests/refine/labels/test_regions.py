"""Regions of a label map, whole and in pieces."""

from __future__ import annotations

import numpy as np
import pytest

from bpr_service.refine.labels.regions import LabelRegions, by_block, windows
from tests.scenes import blob


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
