"""The order of training images, how often each is shown, and what augmentation makes of it."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refiner_training.segmenters.data.augment import augmented, flip_instances
from refiner_training.segmenters.data.sets import InstanceSet
from refiner_training.segmenters.data.stream import StreamSampler
from refiner_training.segmenters.data.synthetic import make_set
from tests.training.heads.test_data import instances, labels


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Path]:
    """Two pictures of this test's own."""
    return make_set(tmp_path, 2)


def test_the_stream_is_a_permutation_an_epoch_and_resumes_anywhere() -> None:
    whole = list(islice(StreamSampler(np.ones(7), seed=3), 21))
    for epoch in range(3):
        assert sorted(index for index, _ in whole[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert [index for index, _ in whole[:7]] != [index for index, _ in whole[7:14]]
    assert list(islice(StreamSampler(np.ones(7), seed=3, first=10), 11)) == whole[10:]
    ranks = [list(islice(StreamSampler(np.ones(7), seed=3, rank=r, world=2), 10)) for r in range(2)]
    assert sorted(ranks[0] + ranks[1], key=lambda item: item[1]) == whole[:20]


def test_an_item_depends_on_its_position_alone(own: dict[str, Path]) -> None:
    dataset = labels(own, augment=True)
    torch.testing.assert_close(dataset[0, 5], dataset[0, 5])
    assert any(not torch.equal(dataset[0, 5][0], dataset[0, p][0]) for p in range(6, 9))


def test_repeats_are_how_often_an_image_comes_and_resume_anywhere() -> None:
    repeats = np.array([1.0, 2.5, 1.25, 1.0, 3.0, 1.25])
    whole = list(islice(StreamSampler(repeats, seed=3), 10 * 400))
    epochs = np.array([index for index, _ in whole]).reshape(400, 10)
    counts = np.array([np.bincount(epoch, minlength=6) for epoch in epochs])
    assert (counts >= np.floor(repeats)).all()
    assert (counts <= np.ceil(repeats)).all()
    assert np.abs(counts.mean(0) - repeats).max() < 0.05
    assert not (epochs[0] == np.sort(epochs[0])).all()
    assert list(islice(StreamSampler(repeats, seed=3, first=37), 20)) == whole[37:57]


def rare(paths: dict[str, Path], images: list[set[int]], **data: Any) -> InstanceSet:
    """Images with these categories."""
    content = json.loads(paths["annotations"].read_text())
    record, mark = content["images"][0], content["annotations"][0]
    content["images"] = [{**record, "id": number} for number in range(len(images))]
    pairs = [(number, category) for number, own in enumerate(images) for category in sorted(own)]
    content["annotations"] = [{**mark, "id": i, "image_id": n, "category_id": c} for i, (n, c) in enumerate(pairs)]
    paths["annotations"].write_text(json.dumps(content))
    return instances(paths, **{f"data.{name}": value for name, value in data.items()})


def test_repeat_factors_are_those_of_lvis(own: dict[str, Path]) -> None:
    """By hand: category 1 in 8 of 10 images, category 2 in 1; t = 0.4 gives sqrt(0.4 / 0.1) = 2 where 2 is."""
    images = [{1}] * 7 + [{1, 2}, set(), set()]
    found = rare(own, images, repeat_threshold=0.4).repeats()
    assert found.tolist() == pytest.approx([1.0] * 7 + [2.0, 1.0, 1.0])
    assert rare(own, images, repeat_threshold=0.0).repeats().tolist() == [1.0] * 10


def test_flip_mirrors_boxes_and_masks(own: dict[str, Path]) -> None:
    image, target = instances(own)[0, 0]
    flipped, mirrored = flip_instances(image, target)
    torch.testing.assert_close(flipped.flip(-1), image)
    columns = mirrored["masks"][0].any(0).nonzero().flatten()
    assert mirrored["boxes"][0, [0, 2]].tolist() == [columns.min(), columns.max() + 1]


def test_ssd_keeps_boxes_on_their_masks(own: dict[str, Path]) -> None:
    dataset = instances(own, **{"data.augmentation": "ssd", "data.flip": 0.0})
    image, target = dataset[0, 0]
    sizes = set()
    for seed in range(12):
        changed, found = augmented(image, target, dataset.data, np.random.default_rng(seed))
        sizes.add(tuple(changed.shape[-2:]))
        assert tuple(found["masks"].shape[-2:]) == tuple(changed.shape[-2:])
        assert len(found["boxes"]) == len(found["labels"]) == len(found["masks"])
        assert float(changed.min()) >= 0
        assert float(changed.max()) <= 1
        for box, mask in zip(found["boxes"].round().int().tolist(), found["masks"], strict=True):
            outside = mask.clone()
            outside[box[1] : box[3], box[0] : box[2]] = 0
            assert not outside.any()
    assert len(sizes) > 3, "zoomed out and cropped"


def test_ssd_depends_on_its_seed_alone_and_leaves_the_random_numbers(own: dict[str, Path]) -> None:
    dataset = instances(own, **{"data.augmentation": "ssd"})
    image, target = dataset[0, 0]
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = augmented(image, target, dataset.data, np.random.default_rng(1))
    assert torch.equal(torch.rand(1), expected)
    torch.testing.assert_close(first, augmented(image, target, dataset.data, np.random.default_rng(1)))
    assert type(first[0]) is type(first[1]["boxes"]) is torch.Tensor


def test_ssd_without_instances(own: dict[str, Path]) -> None:
    dataset = instances(own, **{"data.augmentation": "ssd"})
    image, target = dataset[0, 0]
    nothing = {name: value[:0] for name, value in target.items()}
    for seed in range(6):
        _, found = augmented(image, nothing, dataset.data, np.random.default_rng(seed))
        assert len(found["boxes"]) == 0
