"""Patches of several sizes, mask by mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bpr_service.config import PatchConfig
from bpr_service.errors import ConfigError
from bpr_service.refine.refiner import Refiner
from tests.scenes import Accelerator, Paint, Smooth, blob, photo, refiner


@pytest.mark.parametrize(("scale", "sizes"), [(0.25, (16, 4, 96)), (1.0, (64, 16, 96)), (4.0, (256, 64, 96))])
def test_patch_and_padding_grow_and_what_the_network_sees_does_not(scale: float, sizes: tuple[int, ...]) -> None:
    patch = PatchConfig().at(scale)
    assert (patch.patch_size_px, patch.padding_px, patch.network_size_px) == sizes
    assert PatchConfig().padding_of(sizes[0]) == sizes[1]


def test_a_size_out_of_bounds_is_an_error() -> None:
    with pytest.raises(ConfigError, match="patch_size_px"):
        PatchConfig(patch_size_px=16).at(0.25)


@pytest.mark.parametrize("scale", [0.25, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("task", ["instance", "semantic", "panoptic"])
def test_a_scale_is_what_patches_of_that_size_are(scale: float, task: str) -> None:
    """Scaled patches give what is given where the sizes are set by hand."""
    image, labels = photo(300, 340), blob(300, 340)
    by_hand = PatchConfig().at(scale)
    want = refiner(Smooth(), patch=by_hand)
    got = refiner(Smooth(), scales=(0.25, 4.0), scale=scale)
    if task == "instance":
        a, b = (one.refine(image, [labels]).masks[0].to_array() for one in (want, got))
    elif task == "semantic":
        a, b = (one.refine_semantic(image, labels).label_map for one in (want, got))
    else:
        labels = labels + 1  # 0 is void, and stays
        a, b = (one.refine_panoptic(image, labels, [{"id": 1}, {"id": 2}]).segment_map for one in (want, got))
    np.testing.assert_array_equal(a, b)
    assert (a != labels).any()


def test_the_scale_is_reported_where_there_were_patches() -> None:
    frames = [blob(200, 200), np.zeros((200, 200), np.uint8)]
    engine = refiner(Smooth(), scales=(0.25, 4.0), scale=0.5)
    assert [r.scale for r in engine.refine(photo(200, 200), frames).reports] == [0.5, None]
    assert engine.with_options(scale=1).refine(photo(200, 200), frames).reports[0].scale == 1.0


SCALES = [0.5, 1.0, 2.0]


def mixed() -> list[np.ndarray[Any, Any]]:
    """A small, a middling and a large mask."""
    frames = [np.zeros((260, 300), np.uint8) for _ in SCALES]
    frames[0][20:60, 20:61:2] = 1
    frames[1][100:200, 100:220:3] = 1
    frames[2][20:240, 20:280:4] = 1
    return frames


@pytest.mark.parametrize("options", [{}, {"average": "logit", "batch_size": 3}, {"scheme": "sparse", "outputs": 2}])
def test_masks_of_several_scales_share_batches_and_a_canvas(options: dict[str, Any]) -> None:
    frames, image = mixed(), photo(260, 300)
    outputs = options.get("outputs", 1)
    plain = refiner(Paint(outputs), scales=(0.25, 4.0), **options)
    device = refiner(Paint(outputs), scales=(0.25, 4.0), kind=Accelerator, **options)
    want = plain.refine(image, frames, SCALES)
    assert [r.scale for r in want.reports] == SCALES
    for frame, mask, scale in zip(frames, want.masks, SCALES, strict=True):
        alone = plain.with_options(scale=scale).refine(image, [frame]).masks[0]
        np.testing.assert_array_equal(mask.to_array(), alone.to_array())
    for a, b in zip(device.refine(image, frames, SCALES).masks, want.masks, strict=True):
        assert (a.to_array() != b.to_array()).mean() < 2e-3  # resized logits: OpenCV rounds on its own
    crops = [np.asarray(one.prepare(image, frames, SCALES).crops(0, 999)).astype(int) for one in (plain, device)]
    assert crops[0].shape == crops[1].shape
    assert np.abs(crops[0] - crops[1]).max() <= 1


def test_on_a_device_the_batches_change_nothing() -> None:
    frames, image = mixed(), photo(260, 300)
    device = refiner(Paint(), scales=(0.25, 4.0), kind=Accelerator)
    want = device.refine(image, frames, SCALES)
    got = device.with_options(batch_size=5).refine(image, frames, SCALES)
    for a, b in zip(got.masks, want.masks, strict=True):
        np.testing.assert_array_equal(a.to_array(), b.to_array())


def test_scales_are_one_a_mask_and_such_as_the_model_knows() -> None:
    engine, frames = refiner(Smooth(), scales=(0.5, 2.0)), mixed()
    with pytest.raises(ConfigError, match="one a mask"):
        engine.refine(photo(260, 300), frames, [1.0])
    with pytest.raises(ConfigError, match=r"0\.5 to 2"):
        engine.refine(photo(260, 300), frames, [1.0, 1.0, 3.0])


@pytest.mark.parametrize("scale", [0.2, 4.1, 0.0, -1.0, float("nan")])
def test_a_scale_that_no_model_was_trained_for_is_an_error(scale: float) -> None:
    with pytest.raises(ConfigError, match="scale"):
        Refiner.load("balanced", scale=scale)


def test_the_error_says_what_the_model_was_trained_at() -> None:
    with pytest.raises(ConfigError, match="its only one"):
        Refiner.load("fast", scale=0.5)
    assert Refiner.load("fast", scale=1).config.scale == 1
    with pytest.raises(ConfigError, match=r"0\.25 to 4"):
        Refiner.load("balanced", scale=8)


def test_a_box_of_any_size_has_no_scale() -> None:
    with pytest.raises(ConfigError, match="scheme instance"):
        refiner(Smooth(), scales=(0.25, 4.0), scale=2.0, scheme="instance")
