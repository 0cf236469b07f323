"""The stream of training patches: scales, restraint, what pictures are made to look like."""

from typing import Any

import cv2
import numpy as np
import pytest

from bpr_service.errors import ConfigError
from refiner_training.data.scenes.store import Scene, SceneStore, write_scenes
from refiner_training.data.scenes.stream import PatchStream, StreamConfig


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SceneStore:
    """A bright ellipse (source a), a bright square of 20 px (small), and an ellipse longer than a window (wide)."""
    folder = tmp_path_factory.mktemp("store")
    scenes = []
    for source, size, axes in (("a", (300, 260), (70, 50)), ("wide", (900, 1000), (480, 400))):
        mask = np.zeros(size, np.uint8)
        cv2.ellipse(mask, (size[1] // 2, size[0] // 2), axes, 0, 0, 360, 1, -1)
        scenes.append(Scene(source, source, picture(mask), [(0, 0, mask)]))
    square = np.zeros((200, 200), np.uint8)
    square[90:110, 90:110] = 1
    scenes.append(Scene("small", "small", picture(square), [(90, 90, np.ones((20, 20), np.uint8))]))
    write_scenes(folder, scenes)
    return SceneStore(folder)


def picture(mask: np.ndarray) -> np.ndarray:
    return np.repeat((40 + 160 * mask)[..., None], 3, 2).astype(np.uint8)


def batch(store: SceneStore, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Patches and targets of a stream that changes nothing but what is asked for."""
    settings: Any = {
        "batch_size": 24,
        "sources": {"a": 1.0},
        "mix": {"exact": 1.0},
        "soft_share": 0.0,
        "scale_share": 0.0,
    }
    patches, targets = PatchStream(store, StreamConfig(**(settings | options))).batch(0)
    return patches.numpy(), targets.numpy()


@pytest.mark.parametrize("source", ["a", "wide"])
@pytest.mark.parametrize("scales", [(0.25, 1.0), (1.0, 4.0)])
def test_masks_and_targets_agree_with_the_picture_at_every_scale(
    store: SceneStore, source: str, scales: tuple[float, float]
) -> None:
    patches, targets = batch(store, sources={source: 1.0}, scale_share=1.0, scales=scales)
    means = [(p[t == 1][:, :3].mean(), p[t == 0][:, :3].mean()) for p, t in zip(patches, targets, strict=True)]
    assert all(inside > outside + 25 for inside, outside in means)
    exact = (patches[..., 3] > 127) == (targets == 1)
    assert exact.mean() > 0.995


def test_patches_are_cut_at_other_scales(store: SceneStore) -> None:
    shares = {}
    for scales in ((0.25, 1.0), (1.0, 1.0), (1.0, 4.0)):
        _, targets = batch(store, sources={"small": 1.0}, scale_share=1.0, scales=scales)
        shares[scales] = targets.mean()
    assert shares[(0.25, 1.0)] < 0.7 * shares[(1.0, 1.0)] < 0.7 * 0.7 * shares[(1.0, 4.0)]


def test_a_network_may_see_a_picture_px_as_four(store: SceneStore) -> None:
    once, once_targets = batch(store)
    twice, twice_targets = batch(store, network_size_px=192)
    assert twice.shape == (24, 192, 192, 4)
    assert twice_targets.shape == (24, 192, 192)
    back = np.stack([cv2.resize(patch, (96, 96), interpolation=cv2.INTER_AREA) for patch in twice])
    assert np.abs(back[..., :3].astype(int) - once[..., :3]).mean() < 3
    halves = cv2.resize(twice_targets.transpose(1, 2, 0).astype(np.float32), (96, 96), interpolation=cv2.INTER_AREA)
    assert ((halves.transpose(2, 0, 1) > 0.5) == (once_targets == 1)).mean() > 0.99


def test_small_masks_are_exact_as_often_as_asked(store: SceneStore) -> None:
    mix = {"morphology": 1.0}
    patches, targets = batch(store, sources={"small": 1.0}, mix=mix, small_exact=1.0)
    assert np.array_equal(patches[..., 3] > 127, targets == 1)
    patches, targets = batch(store, sources={"small": 1.0}, mix=mix, small_exact=0.0)
    assert ((patches[..., 3] > 127) != (targets == 1)).any()


def test_what_is_right_within_the_fuzz_is_to_stay(store: SceneStore) -> None:
    mix = {"warp": 1.0}
    sharp, fuzzy = (batch(store, mix=mix, fuzz_px=fuzz) for fuzz in ({}, {"a": 3.0}))
    assert np.array_equal(sharp[0][..., 3], fuzzy[0][..., 3])
    wrong = [((patches[..., 3] > 127) != (targets == 1)).sum() for patches, targets in (sharp, fuzzy)]
    assert wrong[1] < 0.4 * wrong[0]
    assert batch(store, mix=mix, fuzz_px={"a": 200.0})[1].tolist() == (fuzzy[0][..., 3] > 127).astype(int).tolist()


def test_a_picture_that_shows_nothing_is_to_change_nothing(store: SceneStore) -> None:
    patches, targets = batch(store, mix={"morphology": 1.0}, blank_share=1.0)
    assert np.array_equal(patches[..., 3] > 127, targets == 1)
    inside, outside = (patches[targets == k][:, :3].mean() for k in (1, 0))
    assert abs(inside - outside) < 40  # the mask cannot be seen


def test_a_plain_background_keeps_the_object(store: SceneStore) -> None:
    def spread(share: float) -> tuple[float, float]:
        """How much the object's mean and the background's differ from patch to patch."""
        patches, targets = batch(store, plain_share=share)
        deep = [cv2.erode(t, np.ones((9, 9), np.uint8)) > 0 for t in targets]
        far = [cv2.dilate(t, np.ones((9, 9), np.uint8)) == 0 for t in targets]
        inside, outside = (
            float(np.std([p[m][:, :3].mean() for p, m in zip(patches, ms, strict=True)])) for ms in (deep, far)
        )
        return inside, outside

    (deep, far), (kept, changed) = spread(0.0), spread(1.0)
    assert changed > 3 * far
    assert kept < 2 * max(deep, far)


def test_appearance_leaves_mask_and_target_alone(store: SceneStore) -> None:
    before, after = batch(store), batch(store, appearance_share=1.0)
    assert before[0][..., 3].shape == after[0][..., 3].shape
    assert np.array_equal(after[0][..., 3] > 127, after[1] == 1)
    assert not np.array_equal(before[0][..., :3], after[0][..., :3])


def test_a_source_without_masks_is_named(store: SceneStore) -> None:
    with pytest.raises(ConfigError, match="source zebra"):
        PatchStream(store, StreamConfig(sources={"a": 1.0, "zebra": 0.1}))
