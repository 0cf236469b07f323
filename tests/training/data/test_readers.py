"""The readers of coarse and true masks: right pairs, early refusal, broken images skipped."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bpr_service.errors import FormatError
from bpr_service.masks.mask import Mask
from refiner_training.data.instance_readers import CityscapesPairs, CocoPairs, RegionPairs
from refiner_training.data.map_readers import LabelPairs, PanopticPairs
from refiner_training.data.readers import Broken, PairReader, Sample, stream
from tests.training import oracles
from tests.training.synthetic import SIZE, blob, disturb, write_coco, write_image, write_labels, write_panoptic


def write_cityscapes(folder: Path, images: int = 3) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    paths = {name: folder / name for name in ("leftImg8bit", "gtFine", "pred")}
    for i in range(images):
        stem = f"city/city_{i:06d}_000019"
        write_image(paths["leftImg8bit"] / f"{stem}_leftImg8bit.png", rng)
        ids = np.full(SIZE, 7, np.uint16)  # road
        (paths["gtFine"] / "city").mkdir(parents=True, exist_ok=True)
        (paths["pred"] / "masks").mkdir(parents=True, exist_ok=True)
        lines = []
        for n, label in enumerate((24, 26)):
            mask = blob(rng)
            ids[mask > 0] = label * 1000 + n
            name = f"masks/{i}_{n}.png"
            Image.fromarray(disturb(rng, (ids == label * 1000 + n).astype(np.uint8), 0.06) * 255).save(
                paths["pred"] / name
            )
            lines.append(f"{name} {label} 0.9")
        ids[:4] = 26  # a group of cars
        Image.fromarray(ids).save(paths["gtFine"] / f"{stem}_gtFine_instanceIds.png")
        (paths["pred"] / f"city_{i:06d}_000019_pred.txt").write_text("\n".join(lines) + "\n")
    return paths


def write_regions(folder: Path, images: int = 3) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    for i in range(images):
        write_image(folder / "images" / f"im_{i}.jpg", rng)
        for k in range(2):
            regions = np.full(SIZE, 300, np.uint16)
            regions[10:30, 10:40], regions[40:44, 50:60] = 1, 2  # 600 px, and 40 px: too small
            (folder / "regions").mkdir(exist_ok=True)
            Image.fromarray(regions + np.uint16(k)).save(folder / "regions" / f"im_{i}_{k}.png")
    return {name: folder / name for name in ("images", "regions")}


def make(kind: str, folder: Path, coarse: bool = True) -> tuple[dict[str, Path], Callable[[], PairReader]]:
    """Write a small data set of one kind; give its paths and a function that opens it."""
    if kind == "coco":
        p = write_coco(folder, images=3)
        return p, lambda: CocoPairs(p["images"], p["gt"], p["before"] if coarse else None)
    if kind == "cityscapes":
        p = write_cityscapes(folder)
        return p, lambda: CityscapesPairs(p["leftImg8bit"], p["gtFine"], p["pred"] if coarse else None)
    if kind == "panoptic":
        p = write_panoptic(folder, images=3)
        more = (p["before"], p["before_dir"]) if coarse else ()
        return p, lambda: PanopticPairs(p["images"], p["gt"], p["gt_dir"], *more)
    if kind == "labels":
        p = write_labels(folder, images=3)
        return p, lambda: LabelPairs(p["images"], p["labels"], p["before"] if coarse else None)
    folder.mkdir(exist_ok=True)
    p = write_regions(folder)
    return p, lambda: RegionPairs(p["images"], p["regions"])


KINDS = ["coco", "cityscapes", "panoptic", "labels", "regions"]


@pytest.mark.parametrize("coarse", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_contract_of_all_readers(tmp_path: Path, kind: str, coarse: bool) -> None:
    _, open_reader = make(kind, tmp_path, coarse)
    reader = pickle.loads(pickle.dumps(open_reader()))
    samples = list(stream(reader))
    assert len(samples) == len(reader) == 3
    assert [s.name for s in samples] == reader.names
    assert len(set(reader.names)) == 3
    for index, sample in enumerate(samples):
        assert isinstance(sample, Sample)
        assert sample.index == index
        assert sample.image.shape == (*SIZE, 3)
        assert sample.pairs
        for pair in sample.pairs:
            assert not pair.truth.is_empty
            assert (pair.truth.height, pair.truth.width) == SIZE
            if coarse and kind != "regions":
                assert pair.coarse is not None
                assert pair.iou == pytest.approx(oracles.iou(pair.coarse.to_array(), pair.truth.to_array()))
            else:
                assert pair.coarse is None
                assert pair.iou is None
    assert [s.name for s in stream(reader, [2, 0])] == [samples[2].name, samples[0].name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_image_in_the_middle_is_reported_and_skipped(tmp_path: Path, kind: str) -> None:
    _, open_reader = make(kind, tmp_path)
    reader = open_reader()
    path = reader.images[1]
    path.write_bytes(path.read_bytes()[:200])
    outcome = list(stream(open_reader()))
    assert [type(o) for o in outcome] == [Sample, Broken, Sample]
    assert outcome[1].name == reader.names[1]
    assert path.name in outcome[1].error


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_image_stops_before_any_reading(tmp_path: Path, kind: str) -> None:
    _, open_reader = make(kind, tmp_path)
    path = open_reader().images[1]
    path.unlink()
    with pytest.raises(FormatError, match=path.stem):
        open_reader()


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_another_size_stops_before_any_reading(tmp_path: Path, kind: str) -> None:
    _, open_reader = make(kind, tmp_path)
    path = open_reader().images[1]
    write_image(path, np.random.default_rng(0), (33, 44))
    with pytest.raises(FormatError, match=r"70 x 90.*33 x 44"):
        open_reader()


def test_coco_matches_by_key_then_by_iou_within_the_category(tmp_path: Path) -> None:
    p, open_reader = make("coco", tmp_path)
    annotations = {a["id"]: a for a in json.loads(p["gt"].read_text())["annotations"]}
    results = json.loads(p["before"].read_text())
    named = [pair for s in stream(open_reader()) if isinstance(s, Sample) for pair in s.pairs]
    assert {int(pair.key) for pair in named} >= {i for i, r in enumerate(results) if "gt" in r}
    for pair in named:
        if "gt" in results[int(pair.key)]:
            truth = annotations[results[int(pair.key)]["gt"]]
            assert pair.truth.area == truth["area"]
            assert pair.category == truth["category_id"]
    for result in results:
        result.pop("gt", None)
    p["before"].write_text(json.dumps(results))
    matched = [pair for s in stream(open_reader()) if isinstance(s, Sample) for pair in s.pairs]
    assert 0 < len(matched) <= len(named) + 3
    assert all(pair.iou is not None and pair.iou > 0.5 for pair in matched)
    for result in results:
        result["category_id"] = {1: 2, 2: 5, 5: 1}[result["category_id"]]
    p["before"].write_text(json.dumps(results))
    others = [pair for s in stream(open_reader()) if isinstance(s, Sample) for pair in s.pairs]
    assert len(others) < len(matched) / 2


def test_coco_leaves_crowds_out(tmp_path: Path) -> None:
    p, open_reader = make("coco", tmp_path, coarse=False)
    annotations = json.loads(p["gt"].read_text())["annotations"]
    crowds = {str(a["id"]) for a in annotations if a["iscrowd"]}
    keys = {pair.key for s in stream(open_reader()) if isinstance(s, Sample) for pair in s.pairs}
    assert crowds
    assert keys == {str(a["id"]) for a in annotations} - crowds


def test_cityscapes_groups_and_stuff_are_no_instances(tmp_path: Path) -> None:
    p, open_reader = make("cityscapes", tmp_path, coarse=False)
    sample = open_reader().read(0)
    ids = np.array(Image.open(next(p["gtFine"].rglob("*000000_*.png"))))
    assert {pair.key for pair in sample.pairs} == {str(i) for i in np.unique(ids) if i >= 1000}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.write_text("masks/0_0.png 24\n"), r"_pred\.txt: line 1.*labelId"),
        (lambda t: t.write_text("masks/0_0.png 11 0.5\n"), r"line 1.*label id.*11"),
        (lambda t: t.write_text("masks/none.png 24 0.5\n"), r"none\.png"),
        (lambda t: t.unlink(), r"expected city_000000_000019_pred\.txt"),
        (lambda t: Image.fromarray(np.ones((5, 6), np.uint8)).save(t.parent / "masks/0_0.png"), r"70 x 90.*5 x 6"),
    ],
)
def test_bad_cityscapes_predictions(tmp_path: Path, change: Callable[[Path], Any], message: str) -> None:
    p, open_reader = make("cityscapes", tmp_path)
    change(p["pred"] / "city_000000_000019_pred.txt")
    with pytest.raises(FormatError, match=message):
        open_reader()


def test_regions_are_chosen_by_area_and_annotator(tmp_path: Path) -> None:
    p, open_reader = make("regions", tmp_path)
    assert [pair.key for pair in open_reader().read(0).pairs] == ["im_0_0:1"]
    both = RegionPairs(p["images"], p["regions"], annotators="all", min_area_px=30, max_share=1.0)
    assert len(both.read(0).pairs) == 6


def test_ignored_labels_are_void(tmp_path: Path) -> None:
    p, open_reader = make("labels", tmp_path)
    sample = open_reader().read(0)
    labels = np.array(Image.open(p["labels"] / "000.png"))
    assert sample.void is not None
    np.testing.assert_array_equal(sample.void.to_array(), labels == 255)
    for pair in sample.pairs:
        np.testing.assert_array_equal(pair.truth.to_array(), labels == pair.category)


def test_empty_folders_and_files_are_refused(tmp_path: Path) -> None:
    p = write_coco(tmp_path / "coco", images=2)
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(FormatError, match=r"empty\.json.*at least one result"):
        CocoPairs(p["images"], p["gt"], tmp_path / "empty.json")
    (tmp_path / "nothing").mkdir()
    for open_reader in (
        lambda: CityscapesPairs(tmp_path, tmp_path / "nothing"),
        lambda: RegionPairs(tmp_path, tmp_path / "nothing"),
        lambda: LabelPairs(tmp_path, tmp_path / "nothing"),
    ):
        with pytest.raises(FormatError, match=r"nothing.*none"):
            open_reader()


def test_a_mask_that_cannot_be_decoded_breaks_its_image_only(tmp_path: Path) -> None:
    p, open_reader = make("coco", tmp_path)
    results = json.loads(p["before"].read_text())
    results[0]["segmentation"]["counts"] = [3, 4]
    p["before"].write_text(json.dumps(results))
    assert [type(o) for o in stream(open_reader())] == [Broken, Sample, Sample]
    assert isinstance(Mask.from_rle(results[1]["segmentation"]), Mask)
