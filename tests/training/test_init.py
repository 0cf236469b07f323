"""`bpr-train init`: what it sees in a data set, and that the trainer takes what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from bpr_service.errors import BprError, ConfigError, ConflictError, FormatError
from bpr_service.network.weights import find_model, load_model, read_card
from refiner_training.cli import app
from refiner_training.commands.init import form_of
from refiner_training.config import load_config
from refiner_training.look import Look, look, patch_side
from refiner_training.run.checkpoint import add_record, resume_step
from tests.training.data.test_readers import KINDS, make

TRUTHS = {"coco": "gt", "cityscapes": "gtFine", "panoptic": "gt", "labels": "labels", "regions": "regions"}
COARSE = {"coco": "before", "cityscapes": "pred", "panoptic": "before", "labels": "before"}
IMAGES = {"cityscapes": "leftImg8bit"}


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["init", *map(str, arguments)])


@pytest.mark.parametrize("coarse", [True, False], ids=["predicted", "simulated"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_that_the_trainer_reads(kind: str, coarse: bool, tmp_path: Path) -> None:
    paths, _ = make(kind, tmp_path / "data")
    arguments = ["--images", paths[IMAGES.get(kind, "images")], "--truth", paths[TRUTHS[kind]]]
    if coarse and kind in COARSE:
        arguments += ["--predictions", paths[COARSE[kind]]]
    if kind == "panoptic":
        arguments += [
            "--panoptic-dir",
            paths["gt_dir"],
            *(["--predictions-dir", paths["before_dir"]] if coarse else []),
        ]
    if kind == "regions":
        arguments += ["--format", "regions"]
    done = call(*arguments, "--out", tmp_path / "recipe.yaml", "--preset", "fast", "--name", "ours")
    assert done.exit_code == 0, done.output
    config = load_config(tmp_path / "recipe.yaml")
    assert (config.name, str(config.network.start_from), config.network.name) == ("ours", "fast", "light_unet_s")
    simulated = kind in ("coco", "labels", "regions") and "--predictions" not in arguments
    assert config.data.kind == ("simulated" if simulated else "patches")
    assert ("bpr-train scenes" in done.output) == simulated
    text = (tmp_path / "recipe.yaml").read_text()
    assert all(any(line.startswith("#") for line in part.split("\n")) for part in text.split("\n\n"))
    assert "3 images, 3 of them opened" in " ".join(text.replace("#", "").split())
    assert call(*arguments, "--out", tmp_path / "recipe.yaml").exception.__class__ is ConflictError
    assert (tmp_path / "recipe.yaml").read_text() == text, "what a person may have changed stays"


def test_what_it_says_next_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, _ = make("labels", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    done = call("--images", paths["images"], "--truth", paths["labels"], "--preset", "fast", "--predictions",
                paths["before"])  # fmt: skip
    cut, train = [line.split()[1:] for line in done.output.splitlines() if line.startswith("  bpr-train")]
    for words in (cut, [*train, *(f"--set=run.{value}" for value in ("steps=1", "batch_size=2", "precision=32",
                                                                    "workers=0"))]):  # fmt: skip
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, (done.output, done.exception)
    assert load_model(tmp_path / "runs/mine/model").card.network.name == "light_unet_s"


def test_patches_are_as_large_as_the_errors_need() -> None:
    card = read_card(find_model("balanced"))
    sides = [patch_side(Look(1, reach_px=[reach] * 10), card) for reach in (0.0, 20.0, 30.0, 60.0, 900.0)]
    assert sides == [64, 64, 128, 256, 256]
    assert patch_side(Look(1), card) == 64


def test_how_far_errors_lie_is_measured(tmp_path: Path) -> None:
    _paths, reader = make("labels", tmp_path)
    found = look(reader())
    assert found.seen == found.images == 3
    assert len(found.reach_px) == len(found.ious) == found.masks
    assert 0 < float(np.max(found.reach_px)) < 64
    assert 0.5 < float(np.mean(found.ious)) < 1


@pytest.mark.parametrize(
    ("content", "error"),
    [(None, ConfigError), ("{}", ConfigError), ("[{", FormatError), ('{"images": []}', ConfigError)],
)
def test_what_is_no_truth(tmp_path: Path, content: str | None, error: type[BprError]) -> None:
    path = tmp_path / "truth.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error):
        form_of(path)
    with pytest.raises(ConfigError):
        form_of(tmp_path / "nowhere")


def test_data_that_cannot_be_read_writes_nothing(tmp_path: Path) -> None:
    paths, _ = make("labels", tmp_path / "data")
    for picture in paths["images"].iterdir():
        picture.write_bytes(b"")
    done = call("--images", paths["images"], "--truth", paths["labels"], "--out", tmp_path / "recipe.yaml")
    assert done.exit_code != 0
    assert not (tmp_path / "recipe.yaml").exists()
    assert call("--images", paths["images"], "--truth", paths["labels"], "--preset", "fst").exception is not None


def test_a_resumed_run_that_differs_names_the_setting(tmp_path: Path) -> None:
    import torch

    path, theirs = tmp_path / "last.ckpt", {"config": {"patch": {"padding_px": 16, "cover": True}, "seed": 0}}
    checkpoint: dict[str, Any] = {"state_dict": {}, "global_step": 7}
    add_record(checkpoint, "refiner", theirs)
    torch.save(checkpoint, path)
    assert resume_step(path, "refiner", theirs, ["config.patch"]) == 7
    ours = yaml.safe_load("config: {patch: {padding_px: 8, cover: false}, seed: 0}")
    with pytest.raises(ConfigError) as caught:
        resume_step(path, "refiner", ours, ["config.patch"])
    assert "expected config.patch.padding_px 8" in str(caught.value)
    assert "got 16 (and 1 more: config.patch.cover)" in str(caught.value)
