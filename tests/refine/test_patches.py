"""Patches: NMS against torchvision, coverage, and the other schemes."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.ops import nms

from bpr_service.config import PatchConfig
from bpr_service.masks.mask import Mask
from bpr_service.refine.boundary import boundary_pixels
from bpr_service.refine.patches import (
    drop_full,
    left_out,
    place_patches,
    squares,
    suppress,
    window_positions,
)
from tests.scenes import blob, edge_cases

THRESHOLDS = (0.0, 0.15, 0.25, 0.55, 0.65)


def oracle(mask: Mask, size: int, threshold: float) -> tuple[Any, NDArray[np.int64]]:
    boundary = boundary_pixels(mask)
    xs, ys = window_positions(boundary, mask.height, mask.width, size)
    falling = torch.linspace(1.0, 0.5, len(boundary), dtype=torch.float64)
    kept = nms(torch.from_numpy(squares(xs, ys, size)).double(), falling, threshold).numpy()
    return (xs, ys), kept


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("size", [64, 33, 8])
@pytest.mark.parametrize("shape", [(300, 240), (64, 500), (70, 30), (200, 65)])
def test_kept_squares_equal_torchvision(shape: tuple[int, int], size: int, threshold: float) -> None:
    mask = Mask.from_array(blob(*shape, seed=size))
    (xs, ys), kept = oracle(mask, size, threshold)
    np.testing.assert_array_equal(suppress(xs, ys, size, threshold), kept)
    boxes = place_patches(mask, PatchConfig(patch_size_px=size, nms_threshold=threshold, cover=False))
    np.testing.assert_array_equal(boxes, squares(xs, ys, size)[kept])


def test_a_square_exactly_on_the_threshold_is_kept() -> None:
    # side 30, moved by 10: inter 600 of 1200, an IoU of exactly 1/2
    xs, ys = np.array([0, 10, 11], np.int32), np.zeros(3, np.int32)
    assert suppress(xs, ys, 30, 0.5).tolist() == [0, 1]
    assert nms(torch.from_numpy(squares(xs, ys, 30)).float(), torch.tensor([3.0, 2, 1]), 0.5).tolist() == [0, 1]


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("name", sorted(edge_cases()))
def test_every_boundary_pixel_is_covered(name: str, threshold: float) -> None:
    mask = Mask.from_array(edge_cases()[name])
    boundary = boundary_pixels(mask)
    boxes = place_patches(mask, PatchConfig(nms_threshold=threshold))
    inside = np.zeros(len(boundary), bool)
    for x0, y0, x1, y1 in boxes:
        inside |= (boundary.xs >= x0) & (boundary.xs < x1) & (boundary.ys >= y0) & (boundary.ys < y1)
    assert inside.all()
    np.testing.assert_array_equal(left_out(boundary, boxes[:1]), _outside(boundary, boxes[:1]))
    assert boxes.shape == (0, 4) if name in ("empty", "full", "full 1x1") else True


def _outside(boundary: Any, boxes: Any) -> Any:
    out = np.ones(len(boundary), bool)
    for x0, y0, x1, y1 in boxes:
        out &= ~((boundary.xs >= x0) & (boundary.xs < x1) & (boundary.ys >= y0) & (boundary.ys < y1))
    return out


def test_covering_adds_what_nms_left_out_and_nothing_else() -> None:
    frame = np.zeros((400, 400), np.uint8)
    cv2.circle(frame, (200, 200), 150, 1, -1)
    mask = Mask.from_array(frame)
    plain = place_patches(mask, PatchConfig(nms_threshold=0.0, cover=False))
    covered = place_patches(mask, PatchConfig(nms_threshold=0.0))
    assert left_out(boundary_pixels(mask), plain).any()
    assert covered.shape[0] > plain.shape[0]
    np.testing.assert_array_equal(covered[: plain.shape[0]], plain)


@pytest.mark.parametrize("scheme", ["dense", "sparse", "grid", "instance"])
@pytest.mark.parametrize("name", sorted(edge_cases()))
def test_patches_lie_inside_the_image(name: str, scheme: Any) -> None:
    frame = edge_cases()[name]
    height, width = frame.shape
    boxes = place_patches(Mask.from_array(frame), PatchConfig(scheme=scheme))
    x0, y0, x1, y1 = boxes.T
    assert (x0 >= 0).all()
    assert (y0 >= 0).all()
    if scheme != "instance":
        assert (x1 - x0 == 64).all()
        assert (y1 - y0 == 64).all()
    assert (x1 <= max(width, 64)).all()
    assert (y1 <= max(height, 64)).all()


@pytest.mark.parametrize("size", [9, 32, 64])
@pytest.mark.parametrize("name", sorted(edge_cases()))
def test_sparse_leaves_no_boundary_pixel_out_and_takes_fewer(name: str, size: int) -> None:
    mask = Mask.from_array(edge_cases()[name])
    boundary = boundary_pixels(mask)
    boxes = place_patches(mask, PatchConfig(scheme="sparse", patch_size_px=size))
    assert boxes.shape[0] <= place_patches(mask, PatchConfig(patch_size_px=size, nms_threshold=0.55)).shape[0]
    if boxes.shape[0]:
        assert not left_out(boundary, boxes).any()
        last = left_out(boundary, boxes[:-1])
        assert last.any(), "each square is placed for a pixel that the ones before it leave out"


def test_sparse_follows_a_straight_edge_end_to_end() -> None:
    frame = np.zeros((400, 800), np.uint8)
    frame[200:] = 1
    mask = Mask.from_array(frame)
    boxes = place_patches(mask, PatchConfig(scheme="sparse", patch_size_px=64))
    dense = place_patches(mask, PatchConfig(patch_size_px=64))
    assert 800 / 64 <= boxes.shape[0] < dense.shape[0]


def test_grid_holds_the_boundary_once() -> None:
    frame = blob(150, 200)
    mask = Mask.from_array(frame)
    boxes = place_patches(mask, PatchConfig(scheme="grid", patch_size_px=32))
    boundary = boundary_pixels(mask)
    assert not left_out(boundary, boxes).any()
    cells = {(int(y) // 32, int(x) // 32) for y, x in zip(boundary.ys, boundary.xs, strict=True)}
    want = sorted((min(r * 32, 150 - 32), min(c * 32, 200 - 32)) for r, c in cells)
    assert sorted((int(b[1]), int(b[0])) for b in boxes) == want


def test_instance_is_the_box_and_half_a_patch() -> None:
    frame = np.zeros((100, 200), np.uint8)
    frame[10:50, 90:150] = 1
    boxes = place_patches(Mask.from_array(frame), PatchConfig(scheme="instance"))
    assert boxes.tolist() == [[58, 0, 182, 82]]


def test_full_patches_at_the_border_are_dropped() -> None:
    frame = np.ones((100, 100), np.uint8)
    frame[40:60, 40:60] = 0
    boxes = np.array([[0, 0, 30, 30], [30, 30, 60, 60], [70, 70, 100, 100], [30, 0, 60, 50], [61, 61, 91, 91]])
    kept = drop_full(boxes.astype(np.int32), 100, 100, Mask.from_array(frame).window)
    assert kept.tolist() == [[30, 30, 60, 60], [30, 0, 60, 50], [61, 61, 91, 91]]
