"""Training data of segmenters, and every input it must refuse or survive."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from bpr_service.config import build
from bpr_service.errors import ConfigError, FormatError, UnknownName
from refiner_training.segmenters.config import SegmenterConfig, load_segmenter_config
from refiner_training.segmenters.data import InstanceSet, LabelSet, StreamSampler, flip_instances, open_data
from refiner_training.segmenters.synthetic import make_set, tiny_config

CONFIGS = sorted((Path(__file__).parents[3] / "refiner_training" / "configs" / "segmenter").glob("*.yaml"))


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Path]:
    """Two pictures of this test's own."""
    return make_set(tmp_path, 2)


def change(path: Path, edit: Any) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def instances(paths: dict[str, Path], **overrides: Any) -> InstanceSet:
    config = build(SegmenterConfig, tiny_config("instance", paths, **overrides))
    dataset = open_data(config.data, "train", augment=False)
    assert isinstance(dataset, InstanceSet)
    return dataset


def labels(paths: dict[str, Path], augment: bool = False, **overrides: Any) -> LabelSet:
    config = build(SegmenterConfig, tiny_config("semantic", paths, **overrides))
    dataset = open_data(config.data, "train", augment=augment)
    assert isinstance(dataset, LabelSet)
    return dataset


# ---- instances ---------------------------------------------------------------------------------------------------


def test_targets_are_the_annotations(own: dict[str, Path]) -> None:
    content = json.loads(own["annotations"].read_text())
    dataset = instances(own)
    image, target = dataset[0, 0]
    mine = [a for a in content["annotations"] if a["image_id"] == 1]
    assert image.shape == (3, 96, 128)
    assert target["labels"].tolist() == [a["category_id"] for a in mine]
    assert target["masks"].flatten(1).sum(1).tolist() == [a["area"] for a in mine]
    x, y, w, h = mine[0]["bbox"]
    assert target["boxes"][0].tolist() == [x, y, x + w, y + h]


def test_an_image_without_annotations_has_no_instances(own: dict[str, Path]) -> None:
    change(own["annotations"], lambda c: c.update(annotations=[]))
    dataset = instances(own)
    assert len(dataset) == 2
    target = dataset[1, 0][1]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 96, 128)


def test_crowds_and_empty_masks_are_left_out(own: dict[str, Path]) -> None:
    count = len(instances(own)[0, 0][1]["labels"])
    empty = {"size": [96, 128], "counts": [96 * 128]}

    def edit(content: dict[str, Any]) -> None:
        first = content["annotations"][0]
        content["annotations"] += [
            {**first, "id": 900, "iscrowd": 1},
            {**first, "id": 901, "segmentation": empty, "bbox": [5, 5, 0, 0], "area": 0},
        ]

    change(own["annotations"], edit)
    assert len(instances(own)[0, 0][1]["labels"]) == count


def test_a_missing_category_is_named(own: dict[str, Path]) -> None:
    change(own["annotations"], lambda c: c["annotations"][0].update(category_id=77))
    with pytest.raises(FormatError, match=r"annotation 0 .*category_id among 1, 2.*got 77"):
        instances(own)


def test_an_annotation_of_no_image_is_named(own: dict[str, Path]) -> None:
    change(own["annotations"], lambda c: c["annotations"][0].update(image_id=77))
    with pytest.raises(FormatError, match=r"image_id of a listed image, got 77"):
        instances(own)


@pytest.mark.parametrize("edit", [lambda a: a.pop("segmentation"), lambda a: a.update(segmentation=None)])
def test_an_annotation_without_a_mask_is_named(own: dict[str, Path], edit: Any) -> None:
    change(own["annotations"], lambda c: edit(c["annotations"][0]))
    with pytest.raises(FormatError, match=r"annotation 0 .*expected a segmentation.*got none"):
        instances(own)


def test_a_class_count_that_differs_is_refused(own: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"expected 2 .*got 3"):
        instances(own, **{"data.num_classes": 3})


def test_a_class_name_that_is_not_there_is_refused(own: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="'circle'"):
        instances(own, **{"data.classes": ["circle"], "data.num_classes": 1})


def test_chosen_classes_and_agnostic(own: dict[str, Path]) -> None:
    content = json.loads(own["annotations"].read_text())
    some = instances(own, **{"data.classes": ["rectangle"], "data.num_classes": 1})
    assert some.classes.ids == (2,)
    found = sum(len(some[i, 0][1]["labels"]) for i in range(2))
    assert found == sum(a["category_id"] == 2 for a in content["annotations"])
    every = instances(own, **{"data.classes": "agnostic", "data.num_classes": 1})
    assert sum(len(every[i, 0][1]["labels"]) for i in range(2)) == len(content["annotations"])
    assert every[0, 0][1]["labels"].unique().tolist() == [1]


def test_an_image_of_another_size_is_named(own: dict[str, Path]) -> None:
    cv2.imwrite(str(own["images"] / "0000.png"), np.zeros((50, 60, 3), np.uint8))
    with pytest.raises(FormatError, match=r"expected 96 x 128, got 50 x 60"):
        instances(own)[0, 0]


@pytest.mark.parametrize("text", ["[]", "{", '{"images": []}'])
def test_no_coco_file(own: dict[str, Path], text: str) -> None:
    own["annotations"].write_text(text)
    with pytest.raises(FormatError):
        instances(own)


def test_lvis_names_come_from_the_url(own: dict[str, Path]) -> None:
    def edit(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/images/{image.pop('file_name')}"

    change(own["annotations"], edit)
    dataset = instances(own, **{"data.train_images": str(own["images"].parent)})
    assert dataset[0, 0][0].shape == (3, 96, 128)


def test_flip_mirrors_boxes_and_masks(own: dict[str, Path]) -> None:
    image, target = instances(own)[0, 0]
    flipped, mirrored = flip_instances(image, target)
    torch.testing.assert_close(flipped.flip(-1), image)
    columns = mirrored["masks"][0].any(0).nonzero().flatten()
    assert mirrored["boxes"][0, [0, 2]].tolist() == [columns.min(), columns.max() + 1]


# ---- label maps --------------------------------------------------------------------------------------------------


def test_label_crops_have_their_size_and_ignore_what_is_missing(own: dict[str, Path]) -> None:
    dataset = labels(own, augment=True, **{"data.crop_px": [200, 150], "data.scale": [0.5, 0.5]})
    image, target = dataset[0, 0]
    assert image.shape == (3, 200, 150)
    assert target["labels"].shape == (200, 150)
    assert (target["labels"][60:] == 255).all()


def test_a_label_over_the_classes_is_refused(own: dict[str, Path]) -> None:
    with pytest.raises(FormatError, match=r"labels from 0 to 0, or 255, got"):
        labels(own, **{"data.num_classes": 1})[0, 0]


def test_an_image_without_labels_is_named(own: dict[str, Path]) -> None:
    (own["labels"] / "0001.png").unlink()
    with pytest.raises(FormatError, match=r"0001\.png: expected labels 0001\.png"):
        labels(own)


def test_labels_of_another_size_are_named(own: dict[str, Path]) -> None:
    cv2.imwrite(str(own["labels"] / "0000.png"), np.zeros((50, 60), np.uint8))
    with pytest.raises(FormatError, match="50 x 60"):
        labels(own)[0, 0]


def test_no_images(own: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FormatError, match="one image or more"):
        labels(own, **{"data.train_images": str(tmp_path / "nothing")})


# ---- the stream --------------------------------------------------------------------------------------------------


def test_the_stream_is_a_permutation_an_epoch_and_resumes_anywhere() -> None:
    whole = list(islice(StreamSampler(7, seed=3), 21))
    for epoch in range(3):
        assert sorted(index for index, _ in whole[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert [index for index, _ in whole[:7]] != [index for index, _ in whole[7:14]]
    assert list(islice(StreamSampler(7, seed=3, first=10), 11)) == whole[10:]
    ranks = [list(islice(StreamSampler(7, seed=3, rank=r, world=2), 10)) for r in range(2)]
    assert sorted(ranks[0] + ranks[1], key=lambda item: item[1]) == whole[:20]


def test_an_item_depends_on_its_position_alone(own: dict[str, Path]) -> None:
    dataset = labels(own, augment=True)
    torch.testing.assert_close(dataset[0, 5], dataset[0, 5])
    assert any(not torch.equal(dataset[0, 5][0], dataset[0, p][0]) for p in range(6, 9))


# ---- configurations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configurations_are_valid(path: Path) -> None:
    assert load_segmenter_config(path).name


def test_papers_schedules_are_configured() -> None:
    by_name = {path.stem: load_segmenter_config(path) for path in CONFIGS}
    coco = by_name["coco_mask_rcnn_1x"]
    assert (coco.optim.lr, coco.run.steps, coco.run.batch_size) == (0.02, 90_000, 16)
    assert coco.optim.milestones == (60_000, 80_000)
    assert by_name["coco_mask_rcnn_3x"].run.steps == 270_000
    assert by_name["coco_yolact"].optim.milestones == (280_000, 600_000, 700_000, 750_000)
    cityscapes = by_name["cityscapes_mask_rcnn"]
    assert (cityscapes.run.steps, cityscapes.run.batch_size, cityscapes.optim.milestones) == (24_000, 8, (18_000,))
    assert by_name["lvis_mask_rcnn"].data.num_classes == 1203
    dense = by_name["cityscapes_deeplab"]
    assert dense.optim.schedule == "poly"
    assert abs(dense.run.steps * dense.run.batch_size / 2975 - 100) < 1


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(CONFIGS[0].read_text() + "\nsteps: 5\n")
    with pytest.raises(UnknownName, match="'steps'"):
        load_segmenter_config(path)
    path.write_text(CONFIGS[0].read_text())
    with pytest.raises((ConfigError, UnknownName), match=r"heads\.beis\.cbld"):
        load_segmenter_config(path, {"heads.beis.cbld": False})


def test_a_late_milestone_is_refused() -> None:
    path = next(p for p in CONFIGS if p.stem == "coco_mask_rcnn_1x")
    with pytest.raises(ConfigError, match="milestone 60000"):
        load_segmenter_config(path, {"run.steps": 100})


@pytest.mark.parametrize("text", ["- a", "a: ["])
def test_no_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises((ConfigError, FormatError)):
        load_segmenter_config(path)
    with pytest.raises(FormatError, match="expected a YAML file"):
        load_segmenter_config(tmp_path / "none.yaml")
