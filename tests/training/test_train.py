"""The trainer from end to end: scenes or patches in, a model version out; resumed runs; wrong settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from bpr_service.errors import BprError
from bpr_service.network.weights import load_model
from bpr_service.recipe import LossConfig
from refiner_training.cli import app
from refiner_training.config import SimulatedData, load_config
from refiner_training.run.loss import boundary_loss
from refiner_training.run.progress import ProgressLines
from refiner_training.run.refiner import RefinerModule, train

CONFIGS = sorted((Path(__file__).parents[2] / "refiner_training/configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of an ellipse each, as label PNGs."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("images", "labels", "coarse"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    for k in range(4):
        labels = np.zeros((120, 150), np.uint8)
        cv2.ellipse(labels, (75, 60), (40 + k, 30), 10.0 * k, 0, 360, 1, -1)
        image = np.where(labels[..., None] > 0, 190, 60) + rng.normal(0, 8, (120, 150, 3))
        cv2.imwrite(str(folder / "images" / f"{k}.png"), image.clip(0, 255).astype(np.uint8))
        cv2.imwrite(str(folder / "labels" / f"{k}.png"), labels)
        small = cv2.resize(labels.astype(np.float32), (15, 12), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / "coarse" / f"{k}.png"), (cv2.resize(small, (150, 120)) > 0.5).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def recipe(data: Path) -> Path:
    arguments = ["scenes", "--out", str(data / "scenes"), "--source", f"a=labels:{data}/labels:{data}/images"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    values = {
        "name": "tiny",
        "network": {"name": "light_unet_s", "arguments": {"widths": [8, 8, 8, 8]}},
        "patch": {"patch_size_px": 32, "padding_px": 8, "network_size_px": 48},
        "data": {"kind": "simulated", "scenes": str(data / "scenes"), "sources": {"a": 1.0}},
        "optim": {"warmup_steps": 2},
        "run": {"steps": 6, "batch_size": 4, "precision": "32", "workers": 0, "checkpoint_every": 3},
    }
    path = data / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def weights(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    return state


def test_a_resumed_run_equals_an_undisturbed_one(recipe: Path, tmp_path: Path) -> None:
    whole = load_config(recipe)
    model = train(whole, tmp_path / "whole", progress="json")
    assert load_model(model).card.network.name == "light_unet_s"

    class Killed(Exception):
        pass

    from refiner_training.run.refiner import RefinerModule

    def stop(self: RefinerModule, *arguments: Any) -> None:
        if self.global_step == 5:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RefinerModule, "on_train_batch_end", stop)
        with pytest.raises(Killed):
            train(whole, tmp_path / "parts", progress="json")
    assert torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)["global_step"] == 3
    begun_at: list[int] = []
    real = ProgressLines.on_train_batch_end

    def counting(self: ProgressLines, *arguments: Any) -> None:
        begun_at.append(self._last[1])
        real(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressLines, "on_train_batch_end", counting)
        train(whole, tmp_path / "parts", progress="json")
    assert begun_at[0] == 3  # else the steps of the checkpoint count as done in the first seconds
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_from_predictions_to_a_model_by_command(data: Path, recipe: Path, tmp_path: Path) -> None:
    patches = tmp_path / "patches"
    arguments = ["patches", "--format", "labels", "--images", data / "images", "--truth", data / "labels"]
    arguments += ["--predictions", data / "coarse", "--out", patches, "--patch-size-px", 32, "--padding-px", 8]
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    assert json.loads((patches / "manifest.json").read_text())["patches"] > 0
    values = {**yaml.safe_load(recipe.read_text()), "data": {"kind": "patches", "patches": str(patches)}}
    other = tmp_path / "patches.yaml"
    other.write_text(yaml.safe_dump(values))
    done = CliRunner().invoke(app, ["refiner", str(other), "--out", str(tmp_path / "run"), "--json-progress"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "exported"
    assert load_model(tmp_path / "run" / "model").card.data


def test_patches_are_cut_as_the_recipe_wants_them(data: Path, recipe: Path, tmp_path: Path) -> None:
    """What a recipe trains on is what ``bpr-train patches --recipe`` cuts; other sizes are refused before any work."""
    patches, paper = tmp_path / "patches", tmp_path / "paper.yaml"
    values = {**yaml.safe_load(recipe.read_text()), "data": {"kind": "patches", "patches": str(patches)}}
    values |= {"patch": {"patch_size_px": 32, "padding_px": 0, "network_size_px": 64, "cover": False}}
    paper.write_text(yaml.safe_dump(values))
    arguments = ["patches", "--format", "labels", "--images", data / "images", "--truth", data / "labels"]
    arguments += ["--out", patches, "--recipe", paper]
    refused = CliRunner().invoke(app, [str(a) for a in [*arguments, "--padding-px", 16]])
    assert "--padding-px: expected 0, as" in str(refused.exception)
    assert not patches.exists()
    assert CliRunner().invoke(app, [str(a) for a in arguments]).exit_code == 0
    assert train(load_config(paper), tmp_path / "run", progress="none").is_dir()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_recipe_is_valid(path: Path) -> None:
    assert load_config(path).name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"run.stepz": 3}, "stepz"),
        ({"run.steps": "many"}, "steps"),
        ({"data.scenes": "nowhere"}, "nowhere"),
        ({"data.sources": {"other": 1.0}}, "other"),
        ({"data.sources": {"a": 1.0, "other": 0.1}}, "other"),
        ({"data.leave_out": ["a"]}, "all left out"),
        ({"data.leave_out": ["b"]}, "leave_out names 'b'"),
        ({"data.stated_terms_only": True}, "all left out"),
        ({"data.scales": [2.0, 4.0]}, "scales"),
        ({"data.mix": {"odd": 1.0}}, "odd"),
        ({"patch.network_size_px": 100}, "multiples of 16 px"),
        ({"patch.scheme": "instance"}, "scheme instance"),
        ({"network.encoder_weights": "none.pth"}, "light_unet_s, which has none"),
        ({"network.name": "unet_lite0", "network.arguments": {}, "network.encoder_weights": "none.pth"}, "no file"),
        ({"network.start_from": "fast", "network.encoder_weights": "none.pth"}, "encoder_weights out"),
        ({"network.name": "light_unet_x"}, "light_unet_s"),
        ({"run.devices": 2}, "torchrun"),
    ],
)
def test_a_wrong_setting_is_named_before_any_work(
    recipe: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(BprError, match=words):
        train(load_config(recipe, change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_network_is_refused(recipe: Path, tmp_path: Path) -> None:
    train(load_config(recipe, {"run.steps": 3}), tmp_path / "run", progress="json")
    with pytest.raises(BprError, match=r"another run: expected config\.network\.arguments\.widths"):
        train(load_config(recipe, {"network.arguments": {"widths": [8, 8, 8, 16]}}), tmp_path / "run")


def test_a_source_is_left_out_by_name_or_for_its_terms() -> None:
    path = next(p for p in CONFIGS if p.stem == "corpus_wide_balanced")
    config = load_config(path)
    assert isinstance(config.data, SimulatedData)
    used = config.data.used(config.notes)
    assert set(used) == set(config.data.sources) == {n.removeprefix("terms.") for n in config.notes}
    free = config.data.with_options(stated_terms_only=True, leave_out=("davis",)).used(config.notes)
    assert set(used) - set(free) == {"davis", "penn", "penn_deeplab", "penn_selfie", "carparts", "rock_ct"}


def test_a_second_output_joins_a_trained_network_and_learns_where_it_errs(recipe: Path, tmp_path: Path) -> None:
    first = train(load_config(recipe, {"run.steps": 60, "run.checkpoint_every": 60}), tmp_path / "one")
    widths = {"widths": [8, 8, 8, 8], "outputs": 2}
    change = {"network.arguments": widths, "network.start_from": str(first)}
    module = RefinerModule(load_config(recipe, change))
    patches = torch.rand(2, 4, 48, 48)
    with torch.no_grad():
        before, after = load_model(first).network.eval()(patches), module.network.eval()(patches)
    assert after.shape == (2, 2, 48, 48)
    assert torch.equal(before[:, 0], after[:, 0])
    card = load_model(train(load_config(recipe, change), tmp_path / "two")).card
    assert card.outputs == 2
    with pytest.raises(BprError, match="start_from"):
        RefinerModule(load_config(recipe, {"network.start_from": str(tmp_path / "two" / "model")}))


def test_the_second_output_alone_pays_for_a_wrong_confidence() -> None:
    patches, targets = torch.zeros(1, 16, 16, 4, dtype=torch.uint8), torch.zeros(1, 16, 16, dtype=torch.uint8)
    patches[:, 4:12, 4:12, 3] = 255
    targets[:, 4:12, 4:12] = 1
    logits = torch.full((1, 2, 16, 16), -3.0)  # all background: wrong inside the square
    logits[:, 1] = 0
    logits.requires_grad_()
    boundary_loss(logits, patches, targets, 0, LossConfig()).backward()
    gradient = logits.grad
    assert gradient is not None
    assert (gradient[0, 1][targets[0] == 1] < 0).all()
    assert (gradient[0, 1][targets[0] == 0] > 0).all()
    alone = logits.detach()[:, :1].clone().requires_grad_()
    boundary_loss(alone, patches, targets, 0, LossConfig()).backward()
    assert alone.grad is not None
    assert torch.allclose(alone.grad[:, 0], gradient[:, 0])
