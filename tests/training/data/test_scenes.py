"""The scene store: what a label map's ignored pixels become."""

from pathlib import Path

import cv2
import numpy as np

from refiner_training.data.patch_stream import PatchStream, StreamConfig
from refiner_training.data.scenes import (
    IGNORED,
    IGNORED_INSIDE,
    SceneStore,
    label_scenes,
    write_scenes,
)


def label_folder(folder: Path) -> Path:
    """One map of two labels side by side, an ignored fringe of 6 px between them, and an image of the same size."""
    labels = np.zeros((90, 120), np.uint8)
    labels[:, 60:] = 1
    labels[:, 57:63] = 255
    (folder / "labels").mkdir(parents=True)
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "labels" / "a.png"), labels)
    cv2.imwrite(str(folder / "images" / "a.png"), np.repeat(labels[..., None], 3, 2))
    return folder


def test_ignored_pixels_belong_to_the_nearest_label_but_are_no_truth(tmp_path: Path) -> None:
    folder = label_folder(tmp_path)
    (scene,) = label_scenes(folder / "labels", folder / "images", "a")
    assert len(scene.masks) == 2
    for x, y, crop in scene.masks:
        assert (y, crop.shape[0]) == (0, 90)
        row = np.full(120, 0)
        row[x : x + crop.shape[1]] = crop[40]
        known = [*range(57), *range(63, 120)]
        assert set(row[known].tolist()) == {0, 1}
        assert set(row[57:63].tolist()) == {IGNORED, IGNORED_INSIDE}
        inside = np.flatnonzero((row == 1) | (row == IGNORED_INSIDE))
        assert (inside[0], inside[-1]) in ((0, 59), (60, 119))
        assert np.array_equal(inside, np.arange(inside[0], inside[-1] + 1))


def test_exact_masks_cross_ignored_pixels_and_targets_leave_them_out(tmp_path: Path) -> None:
    folder = label_folder(tmp_path)
    write_scenes(tmp_path / "store", label_scenes(folder / "labels", folder / "images", "a"))
    config = StreamConfig(
        batch_size=8, sources={"a": 1.0}, mix={"exact": 1.0}, soft_share=0.0, scale_share=0.5, patches_a_mask=2
    )
    patches, targets = PatchStream(SceneStore(tmp_path / "store"), config).batch(0)
    masks = patches[..., 3].numpy() > 127
    ignored = targets.numpy() == 255
    assert set(np.unique(targets.numpy())) == {0, 1, 255}
    assert ignored.any()
    assert masks[ignored].any()
    assert not masks[ignored].all()
    assert np.array_equal(masks[~ignored], targets.numpy()[~ignored] == 1)


def test_a_map_without_labels_gives_no_mask(tmp_path: Path) -> None:
    folder = label_folder(tmp_path)
    cv2.imwrite(str(folder / "labels" / "a.png"), np.full((90, 120), 255, np.uint8))
    (scene,) = label_scenes(folder / "labels", folder / "images", "a")
    assert scene.masks == []


def test_a_source_has_its_own_mix(tmp_path: Path) -> None:
    folder = label_folder(tmp_path)
    store = tmp_path / "store"
    write_scenes(store, label_scenes(folder / "labels", folder / "images", "a"))
    settings = {"batch_size": 8, "sources": {"a": 1.0}, "soft_share": 0.0, "scale_share": 0.0}
    plain = PatchStream(SceneStore(store), StreamConfig(mix={"exact": 1.0}, **settings))
    other = StreamConfig(mix={"exact": 1.0}, source_mix={"a": {"morphology": 1.0}}, **settings)
    patches, targets = PatchStream(SceneStore(store), other).batch(0)
    wrong = ((patches[..., 3] > 127) != (targets == 1)) & (targets != 255)
    assert wrong.any()
    patches, targets = plain.batch(0)
    assert not (((patches[..., 3] > 127) != (targets == 1)) & (targets != 255)).any()
