"""Semantic and panoptic: one label a pixel, by confidence, against a loop over pixels."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bpr_service.errors import MaskError
from bpr_service.masks.mask import Mask
from bpr_service.refine.crops import crop_patches
from bpr_service.refine.labels.regions import LabelRegions
from bpr_service.refine.labels.soft_labels import SoftLabels
from bpr_service.refine.reassemble import Accumulator
from bpr_service.refine.refiner import Refiner
from tests.scenes import Keep, Paint, Shift, Smooth, blob, photo, refiner


def label_map(height: int, width: int, labels: list[int], seed: int = 0) -> NDArray[np.uint8]:
    """Regions of smooth outline; `labels` are drawn over each other in turn."""
    out = np.full((height, width), labels[0], np.uint8)
    for i, label in enumerate(labels[1:]):
        out[blob(height, width, seed + i, 0.35) > 0] = label
    return out


def of_labels(prepared: Any) -> list[NDArray[np.int32]]:
    """The patches of each label, of a map that is one block: label after label."""
    ledger = prepared.task.ledger
    return [ledger.boxes[ledger.owners == number] for number in prepared.task.regions.numbers]


def by_hand(labels: Any, void: int, engine: Refiner, logits: Any, boxes: Any) -> NDArray[Any]:
    """Confidence of every label at every pixel, then the best; ties: the coarse label, then the smallest."""
    values = [int(v) for v in np.unique(labels) if v != void]
    confidence = np.stack([(labels == v).astype(float) for v in values])
    start, (height, width) = 0, labels.shape
    for k, value in enumerate(values):
        n = boxes[k].shape[0]
        if n == 0:
            continue
        sums = Accumulator(boxes[k], height, width, 1, engine.config)
        sums.add(0, logits[start : start + n])
        said = sums.averaged(Mask.from_array(labels == value))
        window = np.s_[said.y : said.y + said.covered.shape[0], said.x : said.x + said.covered.shape[1]]
        confidence[k][window] = np.where(said.covered, said.probability, confidence[k][window])
        start += n
    out = labels.copy()
    for y, x in np.ndindex(labels.shape):
        if labels[y, x] != void:
            steps = np.floor(confidence[:, y, x] * 32767 + 0.5)
            own = values.index(labels[y, x])
            out[y, x] = labels[y, x] if steps[own] == steps.max() else values[int(steps.argmax())]
    return out


@pytest.mark.parametrize(
    ("dtype", "order", "average"),
    [
        (np.uint8, "forward", "probability"),
        (np.uint8, "backward", "logit"),
        (np.uint16, "backward", "probability"),
        (np.int64, "forward", "logit"),
    ],
)
def test_each_pixel_gets_the_label_of_highest_confidence(dtype: Any, order: str, average: str) -> None:
    labels = label_map(140, 160, [3, 0, 7, 255, 9]).astype(dtype)
    engine = refiner(average=average)
    prepared = engine.prepare_semantic(photo(140, 160), labels)
    # logits that depend on patch and place, so that labels disagree
    logits = np.random.default_rng(5).normal(0, 2, (prepared.n_patches, 1, 96, 96)).astype(np.float32)
    chunks = [(s, logits[s : s + 5]) for s in range(0, prepared.n_patches, 5)]
    for start, part in chunks if order == "forward" else chunks[::-1]:
        prepared.add(start, part)
    result = prepared.finish()
    want = by_hand(labels, 255, engine, logits, of_labels(prepared))
    assert result.label_map.dtype == dtype
    differ = result.label_map != want
    assert differ.mean() < 2e-4  # rounding of a probability to 1/32767 can tip a near tie
    assert (want != labels).mean() > 0.05
    np.testing.assert_array_equal(result.label_map == 255, labels == 255)
    for report in result.reports:
        gained = ((result.label_map == report.label) & (labels != report.label)).sum()
        lost = ((result.label_map != report.label) & (labels == report.label)).sum()
        assert (report.added_px, report.removed_px) == (gained, lost)


def probabilities(height: int, width: int, classes: int) -> NDArray[np.float32]:
    """(classes, height, width) float32 that sum to 1: smooth noise."""
    noise = cv2.GaussianBlur(np.random.default_rng(3).random((height, width, classes)), (0, 0), 6)
    powers = np.exp(60 * (noise - noise.mean())).transpose(2, 0, 1)
    return np.asarray(powers / powers.sum(0), np.float32)


def test_the_network_sees_the_probability_of_each_class() -> None:
    """Every crop is that of the class as a soft mask, whose crops have tests of their own."""
    given, image = probabilities(140, 160, 4), photo(140, 160)
    given[:, :20, :30] = 0  # of no class
    prepared: Any = refiner().prepare_semantic(image, SoftLabels.from_array(given, classes=(9, 0, 3, 7)))
    crops, ledger = prepared.crops(0, prepared.n_patches), prepared.task.ledger
    assert set(ledger.owners.tolist()) == {0, 3, 7, 9}
    for channel, label in enumerate((9, 0, 3, 7)):
        mine = ledger.owners == label
        want = crop_patches(image, Mask.from_array(given[channel]), ledger.boxes[mine], prepared.config.patch)
        np.testing.assert_array_equal(crops[mine], want)


def test_probabilities_give_the_map_of_their_argmax_where_the_network_changes_nothing() -> None:
    given, image = probabilities(140, 160, 4), photo(140, 160)
    given[:, :20, :30] = 0
    result = refiner().refine_semantic(image, given, 200)
    want = given.argmax(0)
    want[:20, :30] = 200
    surest = given.max(0) > 0.51  # elsewhere the network of this test knows no class
    np.testing.assert_array_equal(result.label_map[surest], want[surest])
    np.testing.assert_array_equal(result.label_map == 200, want == 200)


def test_probabilities_of_another_size_or_without_a_class_are_refused() -> None:
    given = probabilities(60, 70, 3)
    with pytest.raises(MaskError, match="another size than the image"):
        refiner().refine_semantic(photo(60, 71), given)
    with pytest.raises(MaskError, match="another size than the image"):
        refiner().refine_semantic(photo(60, 71), SoftLabels.from_array(given))
    given[:, :9] = 0
    soft = SoftLabels.from_array(given, ignore_label=255)
    with pytest.raises(MaskError, match="Take 255 as the ignore label"):
        refiner().refine_semantic(photo(60, 70), soft, 2)


def test_nothing_changes_when_the_network_changes_nothing() -> None:
    labels = label_map(140, 160, [3, 0, 7, 255, 9])
    result = refiner(Keep()).refine_semantic(photo(140, 160), labels)
    np.testing.assert_array_equal(result.label_map, labels)
    assert {r.status for r in result.reports} == {"unchanged"}
    assert [r.label for r in result.reports] == [0, 3, 7, 9]


@pytest.mark.parametrize("ignore", [255, 7, None])
def test_the_ignore_label_is_never_rewritten_and_never_spreads(ignore: int | None) -> None:
    labels = label_map(140, 160, [3, 0, 7, 255, 9])
    result = refiner(Shift()).refine_semantic(photo(140, 160), labels, ignore_label=ignore)
    assert ignore not in [r.label for r in result.reports]
    if ignore is not None:
        np.testing.assert_array_equal(result.label_map == ignore, labels == ignore)
    assert set(np.unique(result.label_map)) <= set(np.unique(labels))
    assert (result.label_map != labels).any()


def test_a_pixel_that_no_label_claims_goes_to_the_least_unlikely() -> None:
    labels = np.zeros((100, 100), np.uint8)
    labels[:, 50:] = 1
    prepared = refiner().prepare_semantic(photo(100, 100), labels)
    first = len(of_labels(prepared)[0])
    logits = np.full((prepared.n_patches, 1, 96, 96), -3.0, np.float32)
    logits[first:] = -1.0  # of label 1: below one half, and still above label 0
    prepared.add(0, logits)
    result = prepared.finish()
    assert (result.label_map != labels).sum() > 1000
    np.testing.assert_array_equal(result.label_map[labels == 1], 1)


def test_a_label_that_loses_every_pixel_is_reported() -> None:
    labels = np.zeros((100, 100), np.uint8)
    labels[50, 50] = 4
    result = refiner(Smooth()).refine_semantic(photo(100, 100), labels)
    assert result.vanished == [4]
    assert not (result.label_map == 4).any()
    assert [r.removed_px for r in result.reports if r.label == 4] == [1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (30, 30), (64, 64)])
@pytest.mark.parametrize("fill", [0, 255])
def test_tiny_and_uniform_maps(shape: tuple[int, int], fill: int) -> None:
    labels = np.full(shape, fill, np.uint8)
    result = refiner(Paint()).refine_semantic(photo(*shape), labels)
    np.testing.assert_array_equal(result.label_map, labels)
    assert [r.reason for r in result.reports] == ([] if fill == 255 else ["the mask fills the image"])


def segments() -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    ids = np.array([0, 5, 300, 70_000, 1_000_000], np.int32)[label_map(140, 160, [1, 0, 2, 3, 4])]
    infos = [
        {"id": int(i), "category_id": k, "area": -1, "bbox": [], "iscrowd": 0, "name": f"s{k}"}
        for k, i in enumerate(np.unique(ids)[1:][::-1])
    ]
    return ids, infos


def test_panoptic_infos_follow_the_map_and_void_stays() -> None:
    ids, infos = segments()
    before = [dict(info) for info in infos]
    result = refiner(Shift()).refine_panoptic(photo(140, 160), ids, infos)
    assert infos == before
    np.testing.assert_array_equal(result.segment_map == 0, ids == 0)
    assert (result.segment_map != ids).any()
    assert [i["id"] for i in result.segments_info] == [i["id"] for i in infos]
    for info in result.segments_info:
        mask = Mask.from_array(result.segment_map == info["id"])
        assert (info["area"], info["bbox"]) == (mask.area, mask.bbox)
        assert info["name"].startswith("s")
    assert result.vanished == []


def test_a_segment_that_vanishes_is_reported() -> None:
    ids = np.full((100, 100), 9, np.int32)
    ids[50, 50] = 4

    infos = [{"id": 9, "category_id": 1}, {"id": 4, "category_id": 2}]
    result = refiner(Smooth()).refine_panoptic(photo(100, 100), ids, infos)
    assert [i["id"] for i in result.vanished] == [4]
    assert [i["id"] for i in result.segments_info] == [9]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda infos: infos[1:], "in the map and not in segments_info"),
        (lambda infos: [*infos, {"id": 77}], "segment 77 in segments_info and not in the map"),
        (lambda infos: [*infos, infos[0]], "each id once"),
        (lambda infos: [{"id": "5"}], "integer id"),
        (lambda infos: [5], "integer id"),
    ],
)
def test_infos_that_disagree_with_the_map(change: Any, says: str) -> None:
    ids, infos = segments()
    with pytest.raises(MaskError, match=says):
        refiner().refine_panoptic(photo(140, 160), ids, change(infos))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.zeros((20, 30), np.uint8), "another size"),
        (np.zeros((30, 20), np.float32), "not a label map"),
        (np.full((30, 20), -1), "out of range"),
        (np.full((30, 20), 1 << 24), "out of range"),
    ],
)
def test_bad_label_maps(labels: Any, says: str) -> None:
    with pytest.raises(MaskError, match=says):
        refiner().refine_semantic(photo(30, 20), labels)


def test_regions_measure_labels() -> None:
    ids, _ = segments()
    regions = LabelRegions(ids, 0)
    assert regions.labels == np.unique(ids)[1:].tolist()
    for i, label in enumerate(regions.labels):
        mask = Mask.from_array(ids == label)
        assert tuple(regions.boxes[i]) == mask.box
        assert regions.areas[i] == mask.area
        np.testing.assert_array_equal(regions[i].to_array(), mask.to_array())


def test_a_gate_that_keeps_a_label_keeps_its_pixels_from_spreading() -> None:
    labels = label_map(140, 160, [3, 0, 7])
    result = refiner(Paint(), gate=lambda *_: "kept").refine_semantic(photo(140, 160), labels)
    np.testing.assert_array_equal(result.label_map, labels)
    assert {r.reason for r in result.reports} == {"kept"}
