"""A set of pixels, a bit each, against a raster."""

from __future__ import annotations

import numpy as np
import pytest

from bpr_service.refine.bits import empty_set, has, put, put_one, square


@pytest.mark.parametrize("value", [True, False])
def test_shapes_are_put_in_and_taken_out_where_there_is_a_tile(value: bool) -> None:
    rng = np.random.default_rng(0)
    xs, ys = rng.integers(30, 300, (2, 40)).astype(np.int32)
    x0, y0, index, bits = empty_set(xs, ys)
    assert (x0, y0) == (xs.min(), ys.min())
    assert bits.shape == (np.unique(np.stack([(xs - x0) >> 6, (ys - y0) >> 6]), axis=1).shape[1], 64)
    raster = np.zeros((400, 400), bool)
    for x, y in [] if value else zip(xs - x0, ys - y0, strict=True):
        put_one(index, bits, x, y)
        raster[y, x] = True
    rows = np.array([[1, 0], [-4, 5], [-9, 10], [-4, 5], [0, 0]], np.int32)
    for shape in (rows, square(70), square(1)):
        for x, y in rng.integers(-40, 330, (6, 2)):
            put(index, bits, x, y, shape, value)
            for k, (first, last) in enumerate(shape):
                if first < last and y + k >= 0:
                    raster[y + k, max(x + first, 0) : max(x + last, 0)] = value
    got = [has(index, bits, x, y) for x, y in zip(xs - x0, ys - y0, strict=True)]
    assert got == raster[ys - y0, xs - x0].tolist()
    assert len(set(got)) == 2
