"""Crops against a plain loop."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from bpr_service.config import PatchConfig
from bpr_service.errors import ConfigError
from bpr_service.masks.mask import Mask
from bpr_service.refine.crops import crop_patches
from bpr_service.refine.patches import place_patches
from tests.scenes import blob, edge_cases, photo


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


@pytest.mark.parametrize("box", [(-200, -150), (-80, 70), (-10, 90), (119, -3), (150, 120), (30, 99)], ids=str)
def test_what_leaves_the_image_repeats_its_border_image_and_mask(box: tuple[int, int]) -> None:
    frame = np.ones((100, 120), np.uint8)
    frame[30:60, 20:70] = 0
    x, y = box
    boxes = np.array([[x, y, x + 64, y + 64]], np.int32)
    crops = crop_patches(photo(100, 120), Mask.from_array(frame), boxes, PatchConfig())
    np.testing.assert_array_equal(crops[0], plain_crop(photo(100, 120), frame * np.uint8(255), boxes[0], 16))


def test_an_image_that_is_not_contiguous_is_cut_the_same() -> None:
    image, mask = photo(90, 110), Mask.from_array(blob(90, 110))
    boxes = place_patches(mask, PatchConfig())
    turned = np.ascontiguousarray(image[:, :, ::-1])[:, :, ::-1]
    want = crop_patches(image, mask, boxes, PatchConfig())
    np.testing.assert_array_equal(crop_patches(turned, mask, boxes, PatchConfig()), want)
