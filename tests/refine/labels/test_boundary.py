"""Boundary pixels and patches of all labels at once, against those of each label as a mask."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bpr_service.config import PatchConfig
from bpr_service.refine.boundary import boundary_pixels
from bpr_service.refine.labels.boundary import LabelBoundaries
from bpr_service.refine.labels.regions import LabelRegions
from bpr_service.refine.patches import drop_full, place_along, place_patches
from tests.scenes import blob


def regions_of_blobs(height: int, width: int) -> NDArray[np.uint8]:
    out = np.full((height, width), 3, np.uint8)
    for i, label in enumerate((0, 7, 255, 9)):
        out[blob(height, width, i, 0.35) > 0] = label
    return out


MAPS: dict[str, NDArray[Any]] = {
    "blobs": regions_of_blobs(140, 460),
    "noise": np.random.default_rng(0).integers(0, 4, (40, 37)).astype(np.uint16),
    "large ids": regions_of_blobs(90, 80).astype(np.int64) * 60_000,
    "one": np.zeros((1, 1), np.uint8),
    "row": np.arange(90)[None] // 30,
    "column": np.arange(90)[:, None] // 30,
    "all differ": np.arange(12).reshape(3, 4),
    "uniform": np.full((70, 90), 5, np.uint8),
    "only void": np.full((7, 9), 255, np.uint8),
}


@pytest.mark.parametrize("void", [None, 0, 255])
@pytest.mark.parametrize("name", MAPS)
def test_the_boundary_of_each_label_is_that_of_its_mask(name: str, void: int | None) -> None:
    regions = LabelRegions(MAPS[name], void)
    found = LabelBoundaries(regions)
    assert len(found) == len(regions)
    for got, mask in zip(found, regions, strict=True):
        want = boundary_pixels(mask)
        for field in ("ys", "xs", "scores"):
            a, b = getattr(got, field), getattr(want, field)
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("scheme", ["dense", "sparse", "grid", "instance"])
@pytest.mark.parametrize(("size", "threshold", "cover"), [(64, 0.25, True), (64, 0.15, False), (16, 0.55, True)])
@pytest.mark.parametrize("name", MAPS)
def test_the_patches_of_each_label_are_those_of_its_mask(
    name: str, size: int, threshold: float, cover: bool, scheme: Any
) -> None:
    regions, (height, width) = LabelRegions(MAPS[name], 255), MAPS[name].shape
    config = PatchConfig(patch_size_px=size, nms_threshold=threshold, cover=cover, scheme=scheme)
    for i, (boundary, mask) in enumerate(zip(LabelBoundaries(regions), regions, strict=True)):
        want = place_patches(mask, config)
        got = place_along(boundary, mask.box, height, width, config)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, want)
        of_map, of_mask = (drop_full(got, height, width, w) for w in (partial(regions.window, i), mask.window))
        np.testing.assert_array_equal(of_map, of_mask)
