from __future__ import annotations

import cv2
import numpy as np
import pytest

from bpr_service.audit.measures import INPUTS, Neighbours, measure, offsets, shift_of
from bpr_service.audit.shapes import SHAPE, shape
from bpr_service.audit.where import where_off
from bpr_service.masks.mask import Mask
from bpr_service.refine.estimate import FEATURES


def disc(radius: float, y: float = 80, x: float = 90) -> np.ndarray:
    ys, xs = np.mgrid[:160, :180]
    return ((ys - y) ** 2 + (xs - x) ** 2 <= radius**2).astype(np.uint8)


def test_offsets_are_distances_along_the_normal() -> None:
    found = offsets(Mask.from_array(disc(40)), Mask.from_array(disc(46)))
    assert found.outward == pytest.approx(np.full(len(found.outward), 6.0), abs=0.9)
    away = np.stack([found.x - 90.0, found.y - 80.0], 1)
    away /= np.hypot(*away.T)[:, None]
    assert (away * found.normal).sum(1).min() > 0.95
    inward = offsets(Mask.from_array(disc(46)), Mask.from_array(disc(40))).outward
    assert inward == pytest.approx(np.full(len(inward), -6.0), abs=1.3)


def test_a_mask_like_its_refined_one_is_off_nowhere() -> None:
    mask = Mask.from_array(disc(40))
    found = offsets(mask, mask)
    assert np.abs(found.outward).max() < 0.5
    assert where_off(mask, found) == []


def test_shift_and_fatness_are_told_apart() -> None:
    dx, dy, fat, explained, left = shift_of(offsets(Mask.from_array(disc(40)), Mask.from_array(disc(40, 85, 82))))
    assert (dx, dy) == pytest.approx((-8, 5), abs=1.5)
    assert abs(fat) < 1
    assert explained > 0.9
    dx, dy, fat, explained, left = shift_of(offsets(Mask.from_array(disc(45)), Mask.from_array(disc(40))))
    assert fat == pytest.approx(5, abs=0.8)
    assert np.hypot(dx, dy) < 0.5
    assert left < 1


def test_where_names_the_one_place_that_is_off() -> None:
    right = disc(40)
    wrong = right.copy()
    cv2.circle(wrong, (130, 80), 9, 1, -1)  # a lump at the right
    mask = Mask.from_array(wrong)
    (place,) = where_off(mask, offsets(mask, Mask.from_array(right)))
    x, y, width, height = place["box"]
    assert x >= 118
    assert x + width <= 141
    assert y >= 66
    assert y + height <= 96
    assert place["px"] == pytest.approx(-9, abs=2)
    assert all(x <= px < x + width and y <= py < y + height for px, py in place["line"])


def test_places_come_worst_first_and_a_run_over_the_contours_start_is_one() -> None:
    right = disc(40)
    wrong = right.copy()
    for centre, radius in (((130, 80), 6), ((90, 40), 12)):  # the contour begins at the top
        cv2.circle(wrong, centre, radius, 1, -1)
    mask = Mask.from_array(wrong)
    places = where_off(mask, offsets(mask, Mask.from_array(right)))
    assert len(places) == 2
    assert places[0]["box"][1] < 40 <= places[1]["box"][1]
    assert places[0]["length_px"] > 25


def test_shapes_tell_stairs_and_polygons_from_a_disc() -> None:
    names = dict(zip(SHAPE, range(len(SHAPE)), strict=True))
    smooth = shape(disc(50))
    small = cv2.resize(disc(50), (15, 13), interpolation=cv2.INTER_AREA)
    stairs = shape(np.repeat(np.repeat(small, 12, 0), 12, 1))
    octagon = np.zeros((160, 180), np.uint8)
    angles = np.arange(8) * np.pi / 4
    cv2.fillPoly(octagon, [np.stack([90 + 50 * np.cos(angles), 80 + 50 * np.sin(angles)], 1).astype(np.int32)], 1)
    assert stairs[names["steps"]] > 0.9 > 0.2 > smooth[names["steps"]]
    assert shape(octagon)[names["longest straight run"]] > 2 * smooth[names["longest straight run"]]
    holed = disc(50) - disc(20)
    assert shape(holed)[names["holes"]] == pytest.approx(np.log(2))
    assert shape(holed)[names["share of the holes"]] == pytest.approx(20**2 / (50**2 - 20**2), rel=0.1)


def test_neighbours_find_doubles_and_what_is_covered() -> None:
    masks = [Mask.from_array(array) for array in (disc(40), disc(40, 80, 91), disc(12, 80, 90), disc(5, 10, 10))]
    nearby = Neighbours(masks)
    iou, like, _, covers = nearby.overlap(0)
    assert like == 1
    assert iou > 0.9
    assert covers == 1.0  # the small one
    assert nearby.overlap(2)[2] == 1.0
    assert nearby.overlap(3) == (0.0, -1, 0.0, 0.0)


def test_every_measure_is_there_and_finite_for_odd_masks() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (160, 180, 3)).astype(np.uint8)
    point, line, full = (np.zeros((160, 180), np.uint8) for _ in range(3))
    point[5, 5] = 1
    line[7, 2:170] = 1
    full[:, :179] = 1
    for array in (point, line, full, disc(30)):
        for refined in (np.zeros_like(array), array, disc(20)):
            coarse = Mask.from_array(array)
            overlap = Neighbours([coarse]).overlap(0)
            values, _ = measure(image, coarse, Mask.from_array(refined), np.zeros(len(FEATURES), np.float32), overlap)
            assert values.shape == (len(INPUTS),)
            assert np.isfinite(values).all()
