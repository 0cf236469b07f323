"""``bpr-train export``: what it measures, quantises and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from bpr_service.errors import BprError
from bpr_service.network import candidates
from bpr_service.network.weights import WEIGHTS_FILE, load_model, read_card
from bpr_service.refine.refiner import Refiner
from refiner_training.cli import app
from refiner_training.config import load_config
from refiner_training.run.export import scales_of
from refiner_training.run.refiner import train

ROOT = Path(__file__).resolve().parents[2]

PATCH = {"patch_size_px": 32, "padding_px": 8, "network_size_px": 48}


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of six steps on drawn ellipses."""
    folder = tmp_path_factory.mktemp("export")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    for k in range(4):
        labels = np.zeros((120, 150), np.uint8)
        cv2.ellipse(labels, (75, 60), (40 + k, 30), 10.0 * k, 0, 360, 1, -1)
        image = np.where(labels[..., None] > 0, 190, 60) + rng.normal(0, 8, (120, 150, 3))
        cv2.imwrite(str(folder / "images" / f"{k}.png"), image.clip(0, 255).astype(np.uint8))
        cv2.imwrite(str(folder / "labels" / f"{k}.png"), labels)
    source = f"a=labels:{folder}/labels:{folder}/images"
    assert call("scenes", "--out", folder / "scenes", "--source", source).exit_code == 0
    sizes = ["--patch-size-px", 32, "--padding-px", 8]
    pictures = ["--images", folder / "images", "--truth", folder / "labels"]
    built = call("patches", "--format", "labels", *pictures, "--out", folder / "set", *sizes)
    assert built.exit_code == 0, built.output
    data = {"kind": "simulated", "scenes": str(folder / "scenes"), "sources": {"a": 1.0}}
    values = {
        "name": "tiny",
        "network": {"name": "light_unet_s", "arguments": {"widths": [8, 8, 8, 8], "depth": 1}},
        "patch": PATCH,
        "data": data,
        "run": {"steps": 6, "batch_size": 4, "precision": "32", "workers": 0, "threads": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    train(load_config(folder / "recipe.yaml"), folder / "run", progress="json")
    return folder / "run"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidates that open in no time, and few patches."""
    monkeypatch.setattr(candidates, "CANDIDATES", (("eager", "fp32"), ("eager", "bf16"), ("openvino", "int8")))
    monkeypatch.setattr(candidates, "ROUNDS", (1, 2))
    monkeypatch.setattr("refiner_training.run.export.MEASURED", 10)
    monkeypatch.setattr("bpr_service.network.int8.CALIBRATION", 14)


def test_a_card_says_the_scales_that_its_recipe_trains_at() -> None:
    config = load_config(ROOT / "refiner_training/configs/corpus_wide_balanced.yaml")
    assert scales_of(config) == (0.25, 4.0)
    once = config.data.model_copy(update={"scale_share": 0.0})
    assert scales_of(config.model_copy(update={"data": once})) == (1.0, 1.0)
    small = config.data.model_copy(update={"scales": (0.5, 4.0)})
    assert scales_of(config.model_copy(update={"data": small})) == (0.25, 2.0)


def test_a_training_does_not_measure_and_an_export_does(run: Path, tmp_path: Path) -> None:
    assert read_card(run / "model").runtime is None
    done = call("export", run, "--out", tmp_path / "a")
    assert done.exit_code == 0, done.output
    runtime = read_card(tmp_path / "a").runtime
    assert runtime is not None
    assert runtime.patches == "10 patches of the training data"
    assert [bool(c.patches_per_s) for c in runtime.candidates] == [True, True, False]
    assert "expected a quantised network" in runtime.candidates[2].missing
    assert done.stdout.startswith(f"exported {tmp_path / 'a'}\n")
    assert candidates.table(runtime) in done.stdout
    assert Refiner.load(tmp_path / "a").config.backend == "eager"


def test_no_measure(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "measure", None)
    done = call("export", run, "--out", tmp_path / "a", "--no-measure")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"exported {tmp_path / 'a'}\n"
    assert read_card(tmp_path / "a").runtime is None


def test_half_of_the_room(run: Path, tmp_path: Path) -> None:
    whole = (run / "model" / WEIGHTS_FILE).stat().st_size
    for source in ([run], ["--model", run / "model"]):
        out = tmp_path / str(len(source))
        done = call("export", *source, "--out", out, "--half")
        assert done.exit_code == 0, done.output
        assert (out / WEIGHTS_FILE).stat().st_size < 0.7 * whole
        exact, rounded = (load_model(folder).network.state_dict() for folder in (run / "model", out))
        for name, values in rounded.items():
            assert torch.equal(
                values, exact[name].half().to(values.dtype) if values.is_floating_point() else exact[name]
            )


def test_calibrated_on_the_recipe_s_own_data(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nncf")
    seen: list[Any] = []
    from bpr_service.network import int8

    measure, quantised_files = candidates.measure, int8.quantised_files

    def ranges_of(network: Any, size: int, crops: Any) -> Any:
        seen.append(crops)
        return quantised_files(network, size, crops)

    def measure_on(network: Any, crops: Any, *rest: Any, **named: Any) -> Any:
        seen.append(crops)
        return measure(network, crops, *rest, **named)

    monkeypatch.setattr(int8, "quantised_files", ranges_of)
    monkeypatch.setattr(candidates, "measure", measure_on)
    done = call("export", run, "--out", tmp_path / "a", "--calibrate", "data")
    assert done.exit_code == 0, done.output
    card = read_card(tmp_path / "a")
    assert card.runtime is not None
    assert card.int8 is not None
    assert card.int8.calibration == "14 patches of the training data"
    assert card.runtime.patches == "10 other patches of the training data"
    assert card.runtime.candidates[2].pixels_equal
    ranges, measured = seen
    assert (ranges.shape, measured.shape) == ((14, 48, 48, 4), (10, 48, 48, 4))
    assert not any((a == b).all() for a in ranges for b in measured)
    assert Refiner.load(tmp_path / "a", backend="openvino", precision="int8").runs_on == "cpu, openvino int8"


def test_a_version_is_measured_into_a_new_one(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    before = {p.name: p.read_bytes() for p in (run / "model").iterdir()}
    done = call("export", "--model", run / "model", "--out", tmp_path / "b", "--calibrate", run.parent / "set")
    assert done.exit_code == 0, done.output
    assert {p.name: p.read_bytes() for p in (run / "model").iterdir()} == before
    old, new = read_card(run / "model"), read_card(tmp_path / "b")
    assert new.version == f"{old.version}+int8"
    assert new.int8 is not None
    assert new.int8.calibration == "14 patches of set"
    kept = {"runtime", "int8", "version"}
    assert new.model_dump(exclude=kept) == old.model_dump(exclude=kept)
    done = call("export", "--model", tmp_path / "b", "--out", tmp_path / "c")  # on another machine, say
    assert done.exit_code == 0, done.output
    again = read_card(tmp_path / "c")
    assert (again.int8, again.version) == (new.int8, new.version)
    assert again.runtime is not None
    assert again.runtime.candidates[2].pixels_equal
    done = call("export", "--model", run / "model", "--out", tmp_path / "b")
    assert done.exit_code == 1
    assert "expected a new folder" in str(done.exception)


def test_the_recipe_s_validation_data_is_what_is_compared_on(run: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    other = tmp_path / "run"
    other.mkdir()
    (other / "config.yaml").write_text(yaml.safe_dump({**config, "validation": config["data"]}))
    (other / "last.ckpt").symlink_to(run / "last.ckpt")
    assert call("export", other).exit_code == 0
    runtime = read_card(other / "model").runtime
    assert runtime is not None
    assert runtime.patches == "10 patches of the validation data"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN", "--model", "fast"], "expected RUN_DIR or --model, got both"),
        ([], "expected RUN_DIR or --model, got neither"),
        (["RUN", "--calibrate", "data", "--no-measure"], "--calibrate: expected measuring"),
        (["--model", "fast"], "expected --out"),
        (["--model", "fast", "--out", "OUT", "--calibrate", "nowhere"], "nowhere: expected a patch set"),
        (["--model", "BARE", "--out", "OUT"], r"expected a card with the recipe.*--calibrate PATCHES"),
    ],
)
def test_wrong_calls(run: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in (run / "model").iterdir():
        (bare / path.name).write_bytes(path.read_bytes())
    card = json.loads((bare / "card.json").read_text())
    (bare / "card.json").write_text(json.dumps({**card, "recipe": {}}))
    places = {"RUN": run, "OUT": tmp_path / "out", "BARE": bare}
    done = call("export", *(places.get(a, a) for a in arguments))
    assert done.exit_code == 1
    assert isinstance(done.exception, BprError)
    assert re.search(words, str(done.exception))
    assert not (tmp_path / "out").exists()
