"""The scene store: what each format's masks become, whose coarse masks it holds, how often a mask is drawn."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from bpr_service.errors import FormatError
from refiner_training.data.scenes.sources import coco_scenes, id_scenes, label_scenes
from refiner_training.data.scenes.store import IGNORED, IGNORED_INSIDE, Scene, SceneStore, write_scenes
from refiner_training.data.scenes.stream import PatchStream, StreamConfig


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
    settings: Any = {"batch_size": 8, "sources": {"a": 1.0}, "soft_share": 0.0, "scale_share": 0.0}
    plain = PatchStream(SceneStore(store), StreamConfig(mix={"exact": 1.0}, **settings))
    other = StreamConfig(mix={"exact": 1.0}, source_mix={"a": {"warp": 1.0}}, **settings)
    patches, targets = PatchStream(SceneStore(store), other).batch(0)
    wrong = ((patches[..., 3] > 127) != (targets == 1)) & (targets != 255)
    assert wrong.any()
    patches, targets = plain.batch(0)
    assert not (((patches[..., 3] > 127) != (targets == 1)) & (targets != 255)).any()


def id_folder(folder: Path, names: tuple[str, ...] = ("cow_0", "cow_1", "dog_0")) -> Path:
    """Object 1 in two pieces and object 2 beside it, a picture a name; a soft coarse mask of all of them."""
    ids = np.zeros((90, 120), np.uint8)
    ids[10:40, 10:40] = ids[60:80, 10:40] = 1
    ids[10:40, 40:70] = 2
    levels = cv2.GaussianBlur((ids > 0) * np.uint8(255), (0, 0), 3)
    levels[70:90, 90:120] = 255  # nothing true lies there
    for part in ("masks", "images", "coarse"):
        (folder / part).mkdir(parents=True)
    for name in names:
        cv2.imwrite(str(folder / "masks" / f"{name}.png"), ids)
        cv2.imwrite(str(folder / "images" / f"{name}.jpg"), np.repeat(ids[..., None] * 90, 3, 2))
        cv2.imwrite(str(folder / "coarse" / f"{name}.png"), levels)
    return folder


def test_every_object_and_every_larger_piece_is_a_mask(tmp_path: Path) -> None:
    folder = id_folder(tmp_path, ("a",))
    (scene,) = id_scenes(folder / "masks", folder / "images", "s")
    boxes = sorted((x, y, crop.shape[1], crop.shape[0]) for x, y, crop in scene.masks)
    assert boxes == [(10, 10, 30, 30), (10, 10, 30, 70), (10, 60, 30, 20), (40, 10, 30, 30)]


def test_a_real_mask_goes_with_the_whole_truth_and_what_lies_off_it_is_ignored(tmp_path: Path) -> None:
    folder = id_folder(tmp_path, ("a",))
    write_scenes(tmp_path / "store", id_scenes(folder / "masks", folder / "images", "s", folder / "coarse"))
    store = SceneStore(tmp_path / "store")
    assert store.manifest["real_coarse_masks"] == 1
    given = store.coarse(0)
    assert given is not None
    x, y, levels = given
    frame = np.zeros((90, 120), np.uint8)
    frame[y : y + levels.shape[0], x : x + levels.shape[1]] = levels
    assert np.array_equal(frame, cv2.imread(str(folder / "coarse" / "a.png"), cv2.IMREAD_UNCHANGED))
    _, x, y, crop = store.mask(0)
    truth = np.zeros((90, 120), np.uint8)
    truth[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    assert np.array_equal(truth == 1, cv2.imread(str(folder / "masks" / "a.png"), cv2.IMREAD_UNCHANGED) > 0)
    assert (truth[72:88, 92:118] == IGNORED).all()
    config = StreamConfig(batch_size=16, sources={"s": 1.0}, real_share=1.0, scale_share=0.0)
    patches, _ = PatchStream(store, config).batch(0)
    assert len(np.unique(patches[..., 3])) > 20  # probabilities, as they came


def test_videos_are_drawn_alike_however_many_frames_they_have(tmp_path: Path) -> None:
    folder = id_folder(tmp_path)
    manifest = write_scenes(tmp_path / "store", id_scenes(folder / "masks", folder / "images", "s", videos=True))
    assert manifest["groups"] == {"s": 2}
    assert manifest["sources"] == {"s": 3}
    store = SceneStore(tmp_path / "store")
    masks = store.masks_of("s")
    shares = store.shares(masks)
    of_dog = store.names[store.masks[masks, 0]] == "dog_0"
    assert shares.sum() == pytest.approx(1.0)
    assert shares[of_dog].sum() == pytest.approx(0.5)


def test_results_of_a_network_are_matched_by_their_key_gt(tmp_path: Path) -> None:
    folder = id_folder(tmp_path, ("a",))
    ids = cv2.imread(str(folder / "masks" / "a.png"), cv2.IMREAD_UNCHANGED)
    entries = []
    for k in (1, 2):
        encoded = rle.encode(np.asfortranarray(ids == k))
        entries.append({"id": k, "image_id": 5, "segmentation": {**encoded, "counts": encoded["counts"].decode()}})
    truth = {"images": [{"id": 5, "file_name": "a.jpg", "height": 90, "width": 120}], "annotations": entries}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps([{**entries[1], "gt": 2}]))
    (scene,) = coco_scenes(tmp_path / "gt.json", folder / "images", "s", tmp_path / "results.json")
    assert len(scene.masks) == 1
    x, y, levels = scene.coarse[0]
    assert (x, y, levels.shape, set(np.unique(levels))) == (40, 10, (30, 30), {255})


def test_masks_of_another_size_than_the_image_are_refused(tmp_path: Path) -> None:
    folder = id_folder(tmp_path, ("a",))
    cv2.imwrite(str(folder / "images" / "a.jpg"), np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(FormatError, match="as the image"):
        list(id_scenes(folder / "masks", folder / "images", "s"))


def test_a_store_of_an_older_format_is_refused(tmp_path: Path) -> None:
    write_scenes(tmp_path, [Scene("a", "s", np.zeros((9, 9, 3), np.uint8), [(0, 0, np.ones((9, 9), np.uint8))])])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(FormatError, match="bpr-train scenes"):
        SceneStore(tmp_path)
