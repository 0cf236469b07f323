"""The kernels behind the averaged mask; the average itself is tested in test_reassemble.py."""

from __future__ import annotations

import numpy as np
import pytest

from bpr_service.config import RefineConfig
from bpr_service.masks.mask import Mask
from bpr_service.refine.patches import place_patches
from bpr_service.refine.reassemble import Accumulator
from bpr_service.refine.tiles import TILE_PX, _probabilities, lay_out, same_size
from tests.scenes import blob


def test_probabilities_are_the_sigmoid() -> None:
    x = np.concatenate([np.linspace(-120, 120, 100_001), [0.0, -0.0, 1e4, -1e4, np.inf, -np.inf]]).astype(np.float32)
    got = np.empty_like(x)
    _probabilities(x, got)
    want = 1 / (1 + np.exp(-np.clip(x.astype(np.float64), -700, 700)))
    np.testing.assert_allclose(got, want, atol=1e-7)
    np.testing.assert_allclose(got[x > -80], want[x > -80], rtol=2e-7)  # a small probability is right as well
    assert (got[x == 0] == 0.5).all(), "a logit of exactly 0 must stay on the threshold"
    assert (np.diff(got[:100_001]) >= 0).all()


def test_every_pixel_of_a_box_lies_in_a_tile_and_no_other_tile_is_there() -> None:
    boxes = np.array([[10, 20, 74, 84], [200, 20, 264, 84], [90, 150, 154, 214]], np.int32)
    x0, y0, x1, y1, index, n = lay_out(boxes, 200, 260)
    assert (x0, y0, x1, y1) == (10, 20, 260, 200)
    held = np.zeros((y1 - y0, x1 - x0), bool)
    for xa, ya, xb, yb in boxes:
        held[ya - y0 : yb - y0, xa - x0 : xb - x0] = True
    for (ty, tx), number in np.ndenumerate(index):
        tile = held[ty * TILE_PX : (ty + 1) * TILE_PX, tx * TILE_PX : (tx + 1) * TILE_PX]
        assert (number >= 0) == tile.any()
    assert sorted(index[index >= 0].tolist()) == list(range(n))


def test_same_size() -> None:
    boxes = np.array([[0, 0, 64, 64], [5, 6, 69, 70]], np.int32)
    assert same_size(boxes, 64)
    assert not same_size(boxes, 63)
    boxes[1, 3] += 1
    assert not same_size(boxes, 64)


@pytest.mark.parametrize("window", ["hann", "flat"])
def test_logits_in_any_memory_order_give_the_same_sums(window: str) -> None:
    config = RefineConfig(window=window)  # type: ignore[arg-type]
    mask = Mask.from_array(blob(150, 150))
    boxes = place_patches(mask, config.patch)
    logits = np.random.default_rng(0).normal(size=(boxes.shape[0], 2, 96, 96)).astype(np.float32)
    a, b = (Accumulator(boxes, 150, 150, 2, config) for _ in range(2))
    a.add(0, logits)
    b.add(0, np.ascontiguousarray(logits.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(a.sums, b.sums)
    np.testing.assert_array_equal(a.total, b.total)
