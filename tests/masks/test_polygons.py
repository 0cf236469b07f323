"""Polygons against pycocotools, and what the worst of them may take."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from pycocotools import mask as coco

from bpr_service.errors import LimitError
from bpr_service.masks.mask import Mask


def wild_parts(r: np.random.Generator) -> list[list[float]]:
    """Up to three outlines: off the frame, on whole, half and tenth pixels, with points that come twice."""
    parts = []
    for _ in range(int(r.integers(1, 4))):
        k = int(r.integers(3, 12))
        points = (
            r.uniform(-30, 90, (k, 2)),
            r.integers(-5, 65, (k, 2)).astype(float),
            r.integers(-10, 130, (k, 2)) / 2,
            r.integers(-50, 600, (k, 2)) / 10,
            np.repeat(r.uniform(0, 50, (k, 2)), 2, 0),
        )[int(r.integers(5))]
        parts.append(points.reshape(-1).tolist())
    return parts


@pytest.mark.parametrize("seed", range(4))
def test_the_pixels_are_pycocotools(seed: int) -> None:
    r = np.random.default_rng(seed)
    for _ in range(300):
        height, width = (int(side) for side in r.integers(1, 60, 2))
        parts = wild_parts(r)
        wanted = coco.decode(coco.merge(coco.frPyObjects(parts, height, width)))
        assert np.array_equal(Mask.from_polygons(parts, height, width).to_array(), wanted), (height, width, parts)


def zigzag(n: int) -> list[float]:
    """An outline of ``n`` points that crosses an 8192 x 1000 picture at every step."""
    xs, ys = np.where(np.arange(n) % 2, 8192, 0), np.linspace(0, 1000, n)
    points: list[float] = np.stack([xs, ys], 1).reshape(-1).tolist()
    return points


def test_a_zigzag_takes_the_memory_of_its_box() -> None:
    outline = zigzag(4000)
    tracemalloc.start()
    try:
        mask = Mask.from_polygons([outline], 1000, 8192)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert mask.area > 0
    assert peak < 5 * 1000 * 8192, "pycocotools takes 1.3 GB for it"


@pytest.mark.parametrize(
    "parts", [[zigzag(40_000)], [[0, 0, 9000, 0, 9000, 9000, 0, 9000]] * 4], ids=["edges", "boxes"]
)
def test_what_would_take_too_long_is_refused_before_it_is_drawn(parts: list[list[float]]) -> None:
    with pytest.raises(LimitError, match="too ragged"):
        Mask.from_polygons(parts, 9000, 9000)
