"""The averaged mask against a plain float64 loop."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bpr_service.config import RefineConfig, build
from bpr_service.errors import ConfigError
from bpr_service.masks.mask import Mask
from bpr_service.refine.patches import place_patches
from bpr_service.refine.reassemble import Accumulator, sigmoid, window_weights
from tests.scenes import blob, edge_cases


def plain(frame: Any, boxes: Any, logits: Any, config: RefineConfig) -> tuple[NDArray[Any], NDArray[Any]]:
    """(H, W) refined frame and average of channel 0 (NaN where no patch lies), a pixel at a time, in
    float64.
    """
    height, width = frame.shape
    padding = config.patch.padding_px
    sums, total = np.zeros((height, width)), np.zeros((height, width))
    for box, one in zip(boxes.tolist(), logits[:, 0], strict=True):
        x0, y0, x1, y1 = box
        h, w = y1 - y0 + 2 * padding, x1 - x0 + 2 * padding
        if one.shape != (h, w):
            method = cv2.INTER_AREA if h <= one.shape[0] and w <= one.shape[1] else cv2.INTER_LINEAR
            one = cv2.resize(one, (w, h), interpolation=method)
        value = 1 / (1 + np.exp(-one.astype(np.float64))) if config.average == "probability" else one
        weights = window_weights(config.window, y1 - y0, x1 - x0)
        for y in range(y0, min(y1, height)):
            for x in range(x0, min(x1, width)):
                sums[y, x] += weights[y - y0, x - x0] * value[y - y0 + padding, x - x0 + padding]
                total[y, x] += weights[y - y0, x - x0]
    with np.errstate(invalid="ignore"):
        average = sums / total
    cut = 0.5 if config.average == "probability" else 0.0
    return np.where(total > 0, average >= cut, frame), average


OPTIONS: list[dict[str, Any]] = [
    {},
    {"window": "flat", "average": "logit"},
    {"padding_px": 0, "network_size_px": 64},
    {"network_size_px": 64},
    {"network_size_px": 128},
    {"scheme": "grid", "padding_px": 0, "network_size_px": 64},
    {"scheme": "instance"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["1x90", "63x200", "all borders", "parts", "one pixel, corner"])
def test_equals_a_plain_float64_loop(name: str, options: dict[str, Any]) -> None:
    frame = edge_cases()[name]
    config = build(RefineConfig, {"specks_px": 0, **options})
    mask = Mask.from_array(frame)
    boxes = place_patches(mask, config.patch)
    side = config.patch.network_size_px
    logits = np.random.default_rng(0).normal(size=(boxes.shape[0], 2, side, side)).astype(np.float32)
    given = logits.copy()
    height, width = frame.shape
    sums = Accumulator(boxes, height, width, 2, config)
    for start in range(0, boxes.shape[0], 7):
        sums.add(start, logits[start : start + 7])
    assert sums.missing == 0
    np.testing.assert_array_equal(logits, given)
    want, average = plain(frame, boxes, logits, config)
    refined, change = sums.paste(mask)
    np.testing.assert_array_equal(refined.to_array(), want)
    assert change.added_px == ((want == 1) & (frame == 0)).sum()
    assert change.removed_px == ((want == 0) & (frame == 1)).sum()

    said = sums.averaged(mask)
    window = np.s_[said.y : said.y + said.covered.shape[0], said.x : said.x + said.covered.shape[1]]
    np.testing.assert_array_equal(said.covered, ~np.isnan(average)[window])
    probability = average if config.average == "probability" else 1 / (1 + np.exp(-average))
    want_probability = np.where(np.isnan(probability), frame, probability)[window]
    np.testing.assert_allclose(said.probability, want_probability, atol=1e-6)
    assert said.auxiliary is not None
    _, second = plain(frame, boxes, logits[:, 1:], build(RefineConfig, {**options, "average": "logit"}))
    np.testing.assert_allclose(said.auxiliary, np.nan_to_num(second)[window], atol=1e-5)


def test_the_order_of_adding_does_not_matter() -> None:
    config = RefineConfig()
    mask = Mask.from_array(blob(150, 150))
    boxes = place_patches(mask, config.patch)
    logits = np.random.default_rng(0).normal(size=(boxes.shape[0], 1, 96, 96)).astype(np.float32)
    results = []
    for order in (range(boxes.shape[0]), reversed(range(boxes.shape[0]))):
        sums = Accumulator(boxes, 150, 150, 1, config)
        for i in order:
            sums.add(i, logits[i : i + 1])
        results.append(sums.averaged(mask).probability)
    one, other = results
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_pixels_under_no_patch_keep_the_coarse_value() -> None:
    frame = np.zeros((300, 300), np.uint8)
    frame[50:250, 50:250] = 1
    mask = Mask.from_array(frame)
    config = RefineConfig()
    boxes = np.array([[20, 20, 84, 84]], np.int32)
    sums = Accumulator(boxes, 300, 300, 1, config)
    sums.add(0, np.full((1, 1, 96, 96), -9, np.float32))
    frame[20:84, 20:84] = 0
    np.testing.assert_array_equal(sums.paste(mask)[0].to_array(), frame)


def test_windows_have_no_zero_and_are_symmetric() -> None:
    hann = window_weights("hann", 64, 32)
    assert hann.min() > 0
    np.testing.assert_allclose(hann, hann[::-1, ::-1])
    assert hann[32, 16] > 0.99
    assert (window_weights("flat", 3, 4) == 1).all()


def test_sigmoid_of_large_values() -> None:
    x = np.array([-1e4, -3, 0, 3, 1e4], np.float32)
    np.testing.assert_allclose(sigmoid(x), 1 / (1 + np.exp(-np.clip(x.astype(float), -700, 700))), atol=1e-7)


def test_no_patches_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nothing to reassemble"):
        Accumulator(np.empty((0, 4), np.int32), 5, 5, 1, RefineConfig())
