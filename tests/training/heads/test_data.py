"""Training data of segmenters, and every input it must refuse or survive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bpr_service.config import build
from bpr_service.errors import ConfigError, FormatError
from refiner_training.segmenters.config import SegmenterConfig
from refiner_training.segmenters.data.sets import InstanceSet, LabelSet, open_data
from refiner_training.segmenters.data.synthetic import make_set, tiny_config


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


def labels(paths: dict[str, Path], augment: Any = False, **overrides: Any) -> LabelSet:
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
