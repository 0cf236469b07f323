"""Predictions as files: whole or not at all, resumed, and never mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpr_service.errors import ConfigError, ConflictError, FormatError, ModelError
from bpr_service.masks.label_maps import read_label_map, read_panoptic_png
from refiner_training.predict import Options, predict
from refiner_training.prediction.segments import segments_of_labels
from refiner_training.segmenters.base import paste


def test_an_interrupted_prediction_goes_on(trained: dict[str, Path], paths: dict[str, Path], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    assert predict(trained["instance"], paths["images"], whole, dataset=paths["annotations"]) == 4

    class Stop(Exception):
        pass

    def stop_at_two(done: int, total: int) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        predict(trained["instance"], paths["images"], parts, dataset=paths["annotations"], progress=stop_at_two)
    assert not parts.exists()
    partial = parts.with_name("parts.json.partial.jsonl")
    with partial.open("a") as file:
        file.write('{"image_id": 3, "fou')  # a line that the interruption cut
    assert predict(trained["instance"], paths["images"], parts, dataset=paths["annotations"]) == 2
    assert json.loads(parts.read_text()) == json.loads(whole.read_text())
    assert not partial.exists()


def test_a_finished_file_is_not_overwritten(trained: dict[str, Path], paths: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    out.write_text("[]")
    with pytest.raises(ConflictError, match="not there yet"):
        predict(trained["instance"], paths["images"], out)
    predict(trained["instance"], paths["images"], out, options=Options(resume=False))
    assert json.loads(out.read_text())


def test_an_unfinished_part_of_another_checkpoint_is_refused(
    trained: dict[str, Path], paths: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "p.json"
    out.with_name("p.json.partial.jsonl").write_text(json.dumps({"checkpoint": "other", "min_score": 0.0}) + "\n")
    with pytest.raises(ConflictError, match="got other"):
        predict(trained["instance"], paths["images"], out)


def test_a_folder_alone_gives_ids_in_order_and_an_image_list(
    trained: dict[str, Path], paths: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "p.json"
    predict(trained["instance"], paths["images"], out)
    listed = json.loads((tmp_path / "p.images.json").read_text())
    assert [(i["id"], i["file_name"], i["width"]) for i in listed["images"]][:2] == [
        (1, "0000.png", 128),
        (2, "0001.png", 128),
    ]
    assert [c["name"] for c in listed["categories"]] == ["ellipse", "rectangle"]


def test_labels_come_with_scores_and_resume(trained: dict[str, Path], paths: dict[str, Path], tmp_path: Path) -> None:
    out, scores = tmp_path / "labels", tmp_path / "scores"
    assert predict(trained["semantic"], paths["images"], out, options=Options(scores=scores)) == 4
    assert read_label_map(scores / "0003.png").shape == read_label_map(out / "0003.png").shape == (96, 128)
    assert read_label_map(scores / "0003.png").max() <= 255
    (out / "0002.png").unlink()
    assert predict(trained["semantic"], paths["images"], out) == 1


@pytest.mark.parametrize("kind", ["instance", "semantic"])
def test_panoptic_files(kind: str, trained: dict[str, Path], paths: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "pan.json"
    predict(trained[kind], paths["images"], out, form="panoptic", options=Options(panoptic_score=0.0))
    content = json.loads(out.read_text())
    assert len(content["annotations"]) == len(content["images"]) == 4
    for annotation in content["annotations"]:
        ids = read_panoptic_png(tmp_path / "pan" / annotation["file_name"])
        assert sorted(set(np.unique(ids).tolist()) - {0}) == [s["id"] for s in annotation["segments_info"]]
        for segment in annotation["segments_info"]:
            assert (ids == segment["id"]).sum() == segment["area"]
            assert 0 <= segment["score"] <= 1
    known = {c["id"] for c in content["categories"]}
    assert {s["category_id"] for a in content["annotations"] for s in a["segments_info"]} <= known


def test_things_become_pieces_and_stuff_one_segment() -> None:
    probabilities = np.zeros((3, 6, 9), np.float32)
    probabilities[0] = 0.6
    probabilities[1, 1:3, 1:3] = probabilities[1, 4:6, 6:8] = 0.9
    probabilities[2, :, 8] = 0.8
    ids, segments = segments_of_labels(probabilities, things=(1,))
    assert [(s["category_id"], s["isthing"], s["area"]) for s in segments] == [
        (0, 0, 40),
        (1, 1, 4),
        (1, 1, 4),
        (2, 0, 6),
    ]
    assert segments[1]["score"] == pytest.approx(0.9)
    assert segments[1]["bbox"] == [1, 1, 2, 2]
    assert (ids > 0).all()


@pytest.mark.parametrize(("kind", "form"), [("instance", "labels"), ("semantic", "coco")])
def test_a_format_that_the_model_cannot_give(
    kind: str, form: Any, trained: dict[str, Path], paths: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="one that a"):
        predict(trained[kind], paths["images"], tmp_path / "out", form=form)


def test_a_listed_image_that_is_not_there(trained: dict[str, Path], paths: dict[str, Path], tmp_path: Path) -> None:
    dataset = tmp_path / "d.json"
    dataset.write_text(json.dumps({"images": [{"id": 9, "file_name": "gone.png"}]}))
    with pytest.raises(FormatError, match=r"image 9: expected gone\.png"):
        predict(trained["instance"], paths["images"], tmp_path / "o.json", dataset=dataset)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_no_checkpoint(content: bytes | None, paths: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "c.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError):
        predict(path, paths["images"], tmp_path / "o.json")


def test_paste_samples_at_pixel_centres() -> None:
    grid = torch.zeros(4, 4)
    grid[1:3, 1:3] = 1
    mask = paste(grid, (10, 20, 14, 24), (10, 20, 14, 24), 40, 40)
    assert (mask.box, mask.area) == ((11, 21, 13, 23), 4)
    cut = paste(torch.ones(4, 4), (-10, -10, 5, 5), (-10, -10, 5, 5), 40, 40)
    assert cut.box == (0, 0, 5, 5)
    assert paste(torch.ones(4, 4), (7, 7, 7, 7), (7, 7, 7, 7), 40, 40).is_empty
    window = paste(torch.ones(4, 4), (0, 0, 40, 40), (8, 9, 12, 15), 40, 40)
    assert window.box == (8, 9, 12, 15), "a mask never leaves its box"


def test_what_was_begun_with_other_options_is_not_gone_on_with(
    trained: dict[str, Path], paths: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "p.json"

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        predict(trained["instance"], paths["images"], out, progress=stop)
    for changed in ({"flip": True}, {"size_px": 64}, {"min_score": 0.5}, {"scales": (1.0, 2.0)}, {"batch": 2}):
        with pytest.raises(ConflictError, match=f"a part with {next(iter(changed))}"):
            predict(trained["instance"], paths["images"], out, options=Options(**changed))
    assert predict(trained["instance"], paths["images"], out, options=Options(devices=("cpu", "cpu"))) == 3


def test_label_maps_of_other_options_are_not_gone_on_with(
    trained: dict[str, Path], paths: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    predict(trained["semantic"], paths["images"], out)
    (out / "0001.png").unlink()
    with pytest.raises(ConflictError, match="a part with flip"):
        predict(trained["semantic"], paths["images"], out, options=Options(flip=True))
    assert predict(trained["semantic"], paths["images"], out) == 1
    (tmp_path / "labels.made_with.json").unlink()
    with pytest.raises(ConflictError, match="got none"):
        predict(trained["semantic"], paths["images"], out)
