"""Polygons with few corners: the promised distance, shared edges, holes; against shapely's own measures."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import shapely

from bpr_service.masks.encoding import Parts, parts_of
from bpr_service.masks.mask import Mask
from bpr_service.masks.simplify import boundary_agreement, corners_of, drawn, simplify_label_map, simplify_masks

H, W = 80, 96


def blobs(seed: int, labels: int = 4) -> np.ndarray:
    """A label map of smooth regions, with islands and holes; 0 is background."""
    noise = np.random.default_rng(seed).standard_normal((labels, H, W)).astype(np.float32)
    return np.stack([cv2.GaussianBlur(plane, (0, 0), 6) for plane in noise]).argmax(axis=0).astype(np.uint8)


def speckled(seed: int) -> np.ndarray:
    """The worst of maps: regions of a pixel or two, diagonal neighbours, strips."""
    return np.random.default_rng(seed).integers(0, 3, (24, 24)).astype(np.uint8)


def shape_of(parts: Parts) -> shapely.MultiPolygon:
    return shapely.MultiPolygon([(rings[0], rings[1:]) for rings in parts])


def outline(mask: Mask) -> shapely.MultiLineString:
    return shapely.MultiLineString([[*ring, ring[0]] for rings in parts_of(mask) for ring in rings])


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("labels", [blobs(1), blobs(2), speckled(3)], ids=["blobs", "more", "speckles"])
def test_no_point_is_farther_than_promised_and_no_gap_opens(labels: np.ndarray, tolerance: float) -> None:
    found = simplify_label_map(labels, tolerance)
    assert sorted(found) == [label for label in np.unique(labels) if label]
    shapes = {label: shape_of(parts) for label, parts in found.items()}
    for label, shape in shapes.items():
        old, new = outline(Mask.from_array(labels == label)), shapely.boundary(shape)
        assert shapely.hausdorff_distance(old, new, densify=0.05) <= tolerance + 1e-9
    every = np.array(list(shapes.values()), dtype=object)
    assert shapely.coverage_is_valid(every)


def test_neighbours_share_every_corner_of_their_edge() -> None:
    labels = np.zeros((H, W), np.uint8)
    ys, xs = np.mgrid[:H, :W]
    labels[8:72, 8:88] = np.where(xs + 9 * np.sin(ys / 7) < 48, 1, 2)[8:72, 8:88]
    left, right = (shape_of(simplify_label_map(labels, 1.0)[label]) for label in (1, 2))
    assert left.intersection(right).area == 0
    assert left.union(right).area == pytest.approx(64 * 80, abs=1e-6)
    assert shapely.length(left.intersection(right)) > 64


def test_nothing_is_changed_at_no_distance() -> None:
    for labels in (blobs(4), speckled(5)):
        masks = [Mask.from_array(labels == label) for label in np.unique(labels) if label]
        for mask, parts in zip(masks, simplify_masks(masks, 0.0), strict=True):
            np.testing.assert_array_equal(drawn(parts, mask.height, mask.width).to_array(), mask.to_array())


def test_masks_that_overlap_are_simplified_each_by_itself() -> None:
    ys, xs = np.mgrid[:H, :W]
    arrays = [(ys - 40) ** 2 + (xs - x) ** 2 < r**2 for x, r in ((40, 25), (55, 25), (80, 8))]
    arrays[0][35:45, 30:40] = False
    masks = [Mask.from_array(array) for array in arrays] + [Mask.from_array(np.zeros((H, W), bool))]
    found = simplify_masks(masks, 1.0)
    assert found[3] == []
    assert [len(found[0]), len(found[0][0])] == [1, 2], "one part, with its hole"
    for mask, parts in zip(masks[:3], found, strict=False):
        again = drawn(parts, H, W)
        assert corners_of(parts) < corners_of(parts_of(mask)) / 3
        assert boundary_agreement(mask, again) > 0.99


def test_agreement_is_the_share_of_near_boundary_pixels() -> None:
    square = np.zeros((H, W), bool)
    square[20:40, 20:40] = True
    one, moved = Mask.from_array(square), Mask.from_array(np.roll(square, 1, axis=1))
    far, empty = Mask.from_array(np.roll(square, 30, axis=1)), Mask.from_array(np.zeros((H, W), bool))
    assert boundary_agreement(one, one) == boundary_agreement(one, moved) == boundary_agreement(empty, empty) == 1.0
    assert boundary_agreement(one, far) == boundary_agreement(one, empty) == 0.0
