"""Patches of several sizes, mask by mask."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from bpr_service.config import PatchConfig
from bpr_service.errors import ConfigError
from bpr_service.masks.mask import as_mask
from bpr_service.network.model import Model
from bpr_service.network.weights import EstimateCard
from bpr_service.refine.estimate import FEATURES
from bpr_service.refine.refiner import Refiner
from bpr_service.refine.scale import OwnScale
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
    height, width = (160, 200) if scale == 0.5 else (300, 340)
    image, labels = photo(height, width), blob(height, width)
    by_hand = PatchConfig().at(scale)
    want = refiner(Smooth(), patch=by_hand).with_options(gate=False)
    got = refiner(Smooth(), scales=(0.25, 4.0), scale=scale).with_options(gate=False)
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
        refiner(Smooth(), scale=0.5)
    assert refiner(Smooth(), scale=1).config.scale == 1
    with pytest.raises(ConfigError, match=r"0\.25 to 4"):
        Refiner.load("balanced", scale=8)


def test_a_box_of_any_size_has_no_scale() -> None:
    with pytest.raises(ConfigError, match="scheme instance"):
        refiner(Smooth(), scales=(0.25, 4.0), scale=2.0, scheme="instance")


# ---- the scale of a picture's own detail ---------------------------------------------------------------------------


def street(height: int = 240, width: int = 260, grain: float = 4.0) -> np.ndarray[Any, Any]:
    """Boxes on a grey ground through a lens, under grain."""
    rng = np.random.default_rng(3)
    image = np.full((height, width, 3), 90.0)
    for _ in range(160):
        y, x, h, w = rng.integers(0, height), rng.integers(0, width), *rng.integers(6, 40, 2)
        image[y : y + h, x : x + w] = rng.uniform(0, 255, 3)
    image = cv2.GaussianBlur(image, None, 0.9)
    return np.clip(image + rng.normal(0, grain, image.shape), 0, 255).astype(np.uint8)


def enlarge(image: np.ndarray[Any, Any], factor: int, how: int) -> np.ndarray[Any, Any]:
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=how))


@pytest.mark.parametrize(
    ("factor", "how"),
    [(2, cv2.INTER_LINEAR), (2, cv2.INTER_CUBIC), (3, cv2.INTER_LINEAR), (3, cv2.INTER_CUBIC), (4, cv2.INTER_CUBIC)],
)
def test_an_enlarged_picture_is_known_and_about_how_much(factor: int, how: int) -> None:
    own = OwnScale(enlarge(street(), factor, how), 4)
    found = own(blob(240 * factor, 260 * factor))
    assert own(as_mask(blob(240 * factor, 260 * factor), 240 * factor, 260 * factor)) == found
    assert factor / 1.5 <= found <= factor * 1.5


def test_a_scale_that_the_model_does_not_know_is_not_considered() -> None:
    assert OwnScale(enlarge(street(), 4, cv2.INTER_CUBIC), 1)(blob(960, 1040)) == 1
    assert OwnScale(enlarge(street(), 4, cv2.INTER_CUBIC), 3)(blob(960, 1040)) in (2, 3)


@pytest.mark.parametrize("picture", ["as it is", "white", "noise", "gradient", "tiny"])
def test_other_pictures_keep_their_scale(picture: str) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 260)[None, :, None], (240, 260, 3)).astype(np.uint8)
    white = np.full((240, 260, 3), 255, np.uint8)
    pictures = {"as it is": street(), "white": white, "noise": photo(240, 260), "gradient": ramp, "tiny": white[:3, :4]}
    own = OwnScale(pictures[picture], 4)
    on_grid = np.kron(blob(80, 87), np.ones((3, 3), np.uint8))[:240, :260]
    assert own(on_grid) == own(blob(240, 260)) == 1


def test_a_mask_on_a_grid_decides_where_a_soft_picture_does_not() -> None:
    soft = enlarge(street(grain=0), 3, cv2.INTER_CUBIC)
    grained = np.clip(soft + np.random.default_rng(1).normal(0, 1.5, soft.shape), 0, 255).astype(np.uint8)
    own = OwnScale(grained, 4)
    assert own(blob(720, 780)) == 1
    grid = np.kron(blob(240, 260), np.ones((3, 3), np.uint8))
    assert own(grid) == own(as_mask(grid, 720, 780)) == 3
    shifted = np.roll(grid, (1, 2), (0, 1))
    assert own(as_mask(shifted, 720, 780)) == 3


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_a_refiner_takes_the_scale_of_the_picture(task: str) -> None:
    image, frame = enlarge(street(), 3, cv2.INTER_CUBIC), np.kron(blob(240, 260), np.ones((3, 3), np.uint8))
    auto, asked = refiner(Smooth(), scales=(0.25, 4.0)), refiner(Smooth(), scales=(0.25, 4.0), scale=3.0)
    if task == "instance":
        got, want = (engine.refine(image, [frame]) for engine in (auto, asked))
        assert got.reports[0].scale == 3
        np.testing.assert_array_equal(got.masks[0].to_array(), want.masks[0].to_array())
    else:
        a, b = (engine.refine_semantic(image, frame).label_map for engine in (auto, asked))
        np.testing.assert_array_equal(a, b)
    assert refiner(Smooth(), scales=(0.25, 4.0), scheme="instance").refine(image, [frame]).reports[0].scale == 1


# ---- several tries -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Model, Accelerator])
@pytest.mark.parametrize(("weight", "taken"), [(0.3, 1.0), (-0.3, 0.5)])
def test_of_several_tries_the_one_is_kept_that_is_expected_to_be_best(
    kind: type[Model], weight: float, taken: float
) -> None:
    image, frames = photo(200, 220), [blob(200, 220), np.zeros((200, 220), np.uint8), blob(200, 220, 5)]
    estimate = by_scale(weight)
    both = refiner(Smooth(), scales=(0.25, 4.0), estimate=estimate, kind=kind, tries=(1.0, 0.5), batch_size=7)
    each = [refiner(Smooth(), scales=(0.25, 4.0), estimate=estimate, kind=kind, scale=s) for s in (1.0, 0.5)]
    got, alone = both.refine(image, frames), [one.refine(image, frames) for one in each]
    assert [r.scale for r in got.reports] == [taken, None, taken]
    assert [r.index for r in got.reports] == [0, 1, 2]
    want = alone[0 if taken == 1 else 1]
    for a, b in zip(got.masks, want.masks, strict=True):
        np.testing.assert_array_equal(a.to_array(), b.to_array())
    assert [r.patches for r in got.reports] == [
        sum(pair) for pair in zip(*([r.patches for r in one.reports] for one in alone), strict=True)
    ]
    assert [r.confidence for r in got.reports] == [r.confidence for r in want.reports]


def test_equal_tries_keep_the_first_and_unknown_ones_are_left_out() -> None:
    image, frame = photo(200, 220), blob(200, 220)
    assert (
        refiner(Smooth(), scales=(0.25, 4.0), estimate=by_scale(0), tries=(1.0, 0.5))
        .refine(image, [frame])
        .reports[0]
        .scale
        == 1
    )
    image_sized: dict[str, Any] = {"scales": (0.25, 4.0), "estimate": by_scale(-1), "scheme": "instance"}
    boxes, once = (refiner(Smooth(), tries=t, **image_sized) for t in ((1.0, 0.5), (1.0,)))
    assert boxes.refine(image, [frame]).reports == once.refine(image, [frame]).reports  # boxes of any size: no scale
    narrow = refiner(Smooth(), scales=(1.0, 1.0), estimate=by_scale(-1), tries=(1.0, 0.5))
    without = refiner(Smooth(), scales=(0.25, 4.0), tries=(0.5, 1.0))
    for engine in (narrow, without):
        report = engine.refine(image, [frame]).reports[0]
        assert (report.scale, report.patches) == (1, refiner(Smooth()).refine(image, [frame]).reports[0].patches)


def by_scale(weight: float) -> EstimateCard:
    """An estimate whose expected boundary F is .5 and `weight` times tanh of the scale's logarithm."""
    hidden = np.zeros((len(FEATURES) + 1, 1))
    hidden[FEATURES.index("scale")] = 1
    out = [[0.0, 0.0, weight, 0.0], [0.0, 0.0, 0.5, 0.5]]
    mean, scale = [0.0] * len(FEATURES), [1.0] * len(FEATURES)
    return EstimateCard(features=list(FEATURES), mean=mean, scale=scale, hidden=hidden.tolist(), out=out, least_gain=-1)


@pytest.mark.parametrize("tries", [(), (0.0,), (1.0, -1.0), (1.0,) * 5, ("x",)])
def test_tries_that_are_no_scales_are_an_error(tries: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError, match="tries"):
        refiner(Smooth(), tries=tries)
