"""What is wrong with a file is said with file and position; the other units go on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bpr_service import storage
from bpr_service.errors import ConfigError, FormatError, NotFoundError, UnknownName
from bpr_service.formats import InstancePrediction, Paths, open_predictions
from bpr_service.formats.images import ImageFolder
from bpr_service.masks.mask import Mask, write_panoptic_png
from tests.formats.drawing import H, W, disc, image
from tests.formats.samples import coco, panoptic, sample, semantic


def rewrite(paths: Paths, edit: Any) -> str:
    path = Path(paths.predictions)
    data = json.loads(path.read_text())
    path.write_text(json.dumps(edit(data) or data))
    return str(path)


def test_unknown_image(tmp_path: Path) -> None:
    paths = coco(tmp_path)
    rewrite(paths, lambda records: records[1].update(image_id=99))
    known, unknown, last = list(open_predictions("instance", "coco", paths).scan())
    assert (known.problem, last.problem) == (None, None)
    start = unknown.source[0][1]
    assert unknown.problem is not None
    assert f"pred.json: record 1 (byte {start}): image_id 99 is not in" in unknown.problem


def test_broken_json(tmp_path: Path) -> None:
    paths = coco(tmp_path)
    data = Path(paths.predictions).read_bytes()
    Path(paths.predictions).write_bytes(data[:-30])
    with pytest.raises(FormatError, match=r"pred\.json: broken JSON at byte \d+"):
        list(open_predictions("instance", "coco", paths).scan())


@pytest.mark.parametrize(
    ("task", "name"), [("panoptic", "coco"), ("instance", "cityscapes"), ("semantic", "png"), ("instance", "yolo")]
)
def test_a_file_of_another_format(task: str, name: str, tmp_path: Path) -> None:
    paths = coco(tmp_path)
    folder = paths.predictions if task == "panoptic" else str(tmp_path / "images")
    other = Paths(paths.images, folder, panoptic_dir=str(tmp_path))
    with pytest.raises(FormatError, match=r"another format|has no|no file_name"):
        list(open_predictions(task, name, other).scan())


def test_records_without_image_id(tmp_path: Path) -> None:
    paths = coco(tmp_path)
    rewrite(paths, lambda records: records[2].pop("image_id") and None)
    units = list(open_predictions("instance", "coco", paths).scan())
    (problem,) = [unit.problem for unit in units if unit.problem is not None]
    assert re.search(r"record 2 \(byte \d+\) has no image_id", problem)


def test_two_instances_with_one_id(tmp_path: Path) -> None:
    paths = coco(tmp_path)
    rewrite(paths, lambda records: records[2].update(id=11))
    file = open_predictions("instance", "coco", paths)
    first = next(iter(file.scan()))
    read = file.read(first)
    assert isinstance(read, InstancePrediction)
    good, bad = read.instances
    assert good.problem is None
    assert bad.mask is None
    assert "id 11 is there twice" in str(bad.problem)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [H, W], "counts": [5, 5]}, "do not add up"),
        ({"size": [W, H], "counts": [H * W]}, "another size"),
        ({"size": [H, W], "counts": " "}, "damaged"),
        ([[1, 2, 3]], "polygon 0"),
        ("x", "not a picture"),
    ],
)
def test_a_mask_that_cannot_be_read(segmentation: Any, message: str, tmp_path: Path) -> None:
    paths = coco(tmp_path)
    rewrite(paths, lambda records: records[0].update(segmentation=segmentation))
    file = open_predictions("instance", "coco", paths)
    unit = next(iter(file.scan()))
    read: Any = file.read(unit)
    assert message in str(read.instances[0].problem)
    assert "record 0 (byte 1)" in str(read.instances[0].problem)
    assert read.instances[1].mask is not None
    encoded = file.encode(unit, read.with_masks([Mask.from_array(disc(20, 20))]))
    assert json.loads(encoded.records[0])["segmentation"] == segmentation


@pytest.mark.parametrize("segmentation", [[], None, {}, ""])
def test_an_absent_mask_is_left_alone(segmentation: Any, tmp_path: Path) -> None:
    paths = coco(tmp_path)
    rewrite(paths, lambda records: records[0].update(segmentation=segmentation))
    file = open_predictions("instance", "coco", paths)
    unit = next(iter(file.scan()))
    read: Any = file.read(unit)
    assert (read.instances[0].problem, read.instances[0].skipped) == (None, "no segmentation")
    encoded = file.encode(unit, read.with_masks([Mask.from_array(disc(20, 20))]))
    assert json.loads(encoded.records[0])["segmentation"] == segmentation


def test_a_data_set_is_needed_where_no_name_tells_the_image(tmp_path: Path) -> None:
    paths = coco(tmp_path)
    rewrite(paths, lambda records: [record.update(image_id=90) for record in records] and None)
    with pytest.raises(ConfigError, match="--dataset"):
        list(open_predictions("instance", "coco", Paths(paths.images, paths.predictions)).scan())


def test_an_annotation_file_is_read_and_written_as_it_is(tmp_path: Path) -> None:
    paths = coco(tmp_path)
    data = {**json.loads(Path(str(paths.dataset)).read_text()), "tail": [1]}
    data["annotations"] = json.loads(Path(paths.predictions).read_text())
    (tmp_path / "both.json").write_text(json.dumps(data))
    file = open_predictions("instance", "coco", Paths(paths.images, str(tmp_path / "both.json")))
    records = {k: v for unit in file.scan() for k, v in file.encode(unit, file.read(unit)).records.items()}
    file.write(str(tmp_path / "out.json"), (records[i] for i in range(4)))
    assert json.loads((tmp_path / "out.json").read_text()) == data


def test_panoptic_ids_differ(tmp_path: Path) -> None:
    paths = panoptic(tmp_path)
    ids = np.zeros((H, W), np.int32)
    ids[3:9] = 300
    ids[10:12] = 4
    write_panoptic_png(tmp_path / "png" / "2.png", ids)
    file = open_predictions("panoptic", "coco", paths)
    bad, good = list(file.scan())
    with pytest.raises(FormatError, match=r"pan\.json: annotation 0 \(byte \d+\): .*id 4 in 2\.png but not"):
        file.read(bad)
    assert file.read(good)
    ids[10:12] = 0
    write_panoptic_png(tmp_path / "png" / "2.png", ids)
    with pytest.raises(FormatError, match=r"id 70002 in the JSON but not in 2\.png"):
        file.read(bad)


def test_panoptic_ids_twice_and_images_twice(tmp_path: Path) -> None:
    paths = panoptic(tmp_path)

    def twice(data: Any) -> None:
        data["annotations"][0]["segments_info"][0]["id"] = 70_002
        data["annotations"][1]["image_id"] = 2

    rewrite(paths, twice)
    file = open_predictions("panoptic", "coco", paths)
    first, second = list(file.scan())
    with pytest.raises(FormatError, match="segment id 70002 is there twice"):
        file.read(first)
    assert "image_id 2 is there twice" in str(second.problem)


def test_a_missing_panoptic_png(tmp_path: Path) -> None:
    paths = panoptic(tmp_path)
    (tmp_path / "png" / "2.png").unlink()
    file = open_predictions("panoptic", "coco", paths)
    unit = next(iter(file.scan()))
    with pytest.raises(FormatError, match=r"annotation 0 .*2\.png"):
        file.read(unit)
    assert list(file.untouched(unit).records) == [0]


def test_train_ids_are_not_label_ids(tmp_path: Path) -> None:
    file = open_predictions("semantic", "cityscapes-train-ids", semantic((7, 24, 255))(tmp_path))
    with pytest.raises(FormatError, match=r"a\.png: another kind of labels: .*got label 24.*train ids"):
        file.read(next(iter(file.scan())))


@pytest.mark.parametrize(
    "line", ["masks/a.png 24", "masks/a.png person 0.9", "a b.png 24 0.9", "masks/a.png 24 high", "masks/a.png 1.5 0.9"]
)
def test_cityscapes_lines(line: str, tmp_path: Path) -> None:
    file = sample(("instance", "cityscapes"), tmp_path)
    (unit,) = file.scan()
    (tmp_path / "pred" / unit.source).write_text(f"masks/a.png 24 0.9\n{line}\n")
    with pytest.raises(FormatError, match=r"aachen_000000_000019\.txt: line 2: expected 'path\.png labelId"):
        file.read(unit)


@pytest.mark.parametrize("line", ["x 0.1 0.2 0.3 0.4 0.5 0.6", "0 1 2 300 4 5 6", "0 nan 0 1 1 0 1"])
def test_yolo_lines(line: str, tmp_path: Path) -> None:
    file = sample(("instance", "yolo"), tmp_path)
    (unit,) = file.scan()
    text = tmp_path / "pred" / unit.source
    text.write_text(f"{line}\n{text.read_text()}")
    read: Any = file.read(unit)
    assert read.instances[0].mask is None
    assert "a.txt: line 1: expected 'class x1 y1" in str(read.instances[0].problem)
    assert [item.problem for item in read.instances[1:]] == [None, None]


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "a/../../b.png", "", "..\\x.png", "c:/x.png", "s3://x/y"]
)
def test_names_that_leave_their_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="leaves its folder"):
        storage.join_inside(str(tmp_path), name)


def test_names_in_a_file_may_not_leave_its_folder(tmp_path: Path) -> None:
    file = sample(("instance", "cityscapes"), tmp_path)
    (unit,) = file.scan()
    (tmp_path / "pred" / unit.source).write_text("../images/aachen/x.png 24 0.9\n")
    read: Any = file.read(unit)
    assert "leaves its folder" in read.instances[0].problem


def test_links_out_of_the_allowed_folder(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    assert storage.join_inside(str(tmp_path / "root"), "link")  # allowed where nothing confines
    with pytest.raises(FormatError, match="link leaves"):
        storage.join_inside(str(tmp_path / "root"), "link", within=(str(tmp_path / "root"),))


def test_images_are_found_by_path_stem_and_frame(tmp_path: Path) -> None:
    for name in ("a/x.jpg", "b/x.jpg", "y.png", "city_000000_000001_leftImg8bit.png"):
        image(tmp_path / name)
    folder = ImageFolder(str(tmp_path))
    assert folder.find("a/x.png") == "a/x.jpg"
    assert folder.find("deep/y.txt") == "y.png"
    assert folder.find("city_000000_000001_gtFine_labelIds.png") == "city_000000_000001_leftImg8bit.png"
    with pytest.raises(FormatError, match="several images match"):
        folder.find("x.png")
    with pytest.raises(FormatError, match="no image"):
        folder.find("z.png")


def test_a_missing_folder_and_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        list(open_predictions("semantic", None, Paths("x", str(tmp_path / "none"))).scan())
    with pytest.raises(NotFoundError):
        list(open_predictions("instance", None, Paths("x", str(tmp_path / "none.json"))).scan())


def test_unknown_names() -> None:
    with pytest.raises(UnknownName, match="instance format"):
        open_predictions("instance", "voc", Paths("a", "b"))
    with pytest.raises(UnknownName, match="task"):
        open_predictions("depth", None, Paths("a", "b"))


def test_a_label_map_in_colour(tmp_path: Path) -> None:
    paths = semantic((0, 1, 255))(tmp_path)
    Image.new("RGB", (W, H)).save(tmp_path / "pred" / "a.png")
    file = open_predictions("semantic", "png", paths)
    bad, good = file.scan()
    with pytest.raises(FormatError, match=r"a\.png: not a label map"):
        file.read(bad)
    assert file.read(good)
