"""Patches: NMS against torchvision, coverage, the other schemes, and crops against a plain loop."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scenes import blob, edge_cases, photo
from torchvision.ops import nms

from bpr_service.config import PatchConfig
from bpr_service.core.boundary import boundary_pixels
from bpr_service.core.masks import Mask
from bpr_service.core.patches import (
    crop_patches,
    drop_full,
    left_out,
    place_patches,
    squares,
    suppress,
    window_positions,
)
from bpr_service.errors import ConfigError

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
    kept = drop_full(Mask.from_array(frame), boxes.astype(np.int32))
    assert kept.tolist() == [[30, 30, 60, 60], [30, 0, 60, 50], [61, 61, 91, 91]]


# ---- crops -------------------------------------------------------------------------------------------------


def plain_crop(image: Any, levels: Any, box: Any, padding: int) -> Any:
    """Pad the whole picture by repeating its border, then cut."""
    far = 400
    stack = np.pad(np.dstack([image, levels]), ((far, far), (far, far), (0, 0)), mode="edge")
    x0, y0, x1, y1 = (int(v) + far for v in box)
    return stack[y0 - padding : y1 + padding, x0 - padding : x1 + padding]


@pytest.mark.parametrize("padding", [0, 16])
@pytest.mark.parametrize("network_size", [0, 64, 128])
@pytest.mark.parametrize("name", sorted(edge_cases()))
def test_crops_equal_a_plain_loop(name: str, network_size: int, padding: int) -> None:
    frame = edge_cases()[name]
    image, mask = photo(*frame.shape), Mask.from_array(frame)
    side = network_size or 64 + 2 * padding
    config = PatchConfig(padding_px=padding, network_size_px=side)
    boxes = place_patches(mask, config)
    crops = crop_patches(image, mask, boxes, config)
    assert crops.shape == (boxes.shape[0], side, side, 4)
    for crop, box in zip(crops, boxes, strict=True):
        want = plain_crop(image, frame * np.uint8(255), box, padding)
        if want.shape[0] != side:
            method = cv2.INTER_AREA if side < want.shape[0] else cv2.INTER_LINEAR
            want = cv2.resize(want, (side, side), interpolation=method)
        np.testing.assert_array_equal(crop, want)


def test_crops_of_the_instance_scheme() -> None:
    frame = np.zeros((90, 70), np.uint8)
    frame[10:50, 30:60] = blob(40, 30)
    image, mask = photo(90, 70), Mask.from_array(frame)
    config = PatchConfig(scheme="instance", padding_px=7, network_size_px=64)
    boxes = place_patches(mask, config)
    want = cv2.resize(plain_crop(image, frame * np.uint8(255), boxes[0], 7), (64, 64), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(crop_patches(image, mask, boxes, config)[0], want)


def test_soft_masks_are_cut_as_probabilities() -> None:
    levels = (np.linspace(0, 1, 100 * 120).reshape(100, 120)).astype(np.float32)
    mask = Mask.from_array(levels)
    config = PatchConfig()
    boxes = place_patches(mask, config)
    crops = crop_patches(photo(100, 120), mask, boxes, config)
    want = plain_crop(photo(100, 120), np.rint(levels * 255).astype(np.uint8), boxes[0], 16)
    np.testing.assert_array_equal(crops[0], want)


def test_a_batch_to_write_to_is_checked() -> None:
    mask = Mask.from_array(blob(90, 90))
    boxes = place_patches(mask, PatchConfig())
    with pytest.raises(ConfigError, match="batch to write to"):
        crop_patches(photo(90, 90), mask, boxes, PatchConfig(), np.empty((1, 2, 2, 4), np.uint8))
