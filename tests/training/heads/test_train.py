"""Training, exact resuming and the smoke run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bpr_service.config import parse_settings
from bpr_service.errors import ConfigError
from bpr_service.masks.label_maps import read_label_map
from bpr_service.masks.mask import Mask
from refiner_training.commands.smoke import run_smoke
from refiner_training.run.module import learning_rate_factor
from refiner_training.run.segmenter import load_segmenter, train_segmenter
from refiner_training.segmenters.config import SegmenterOptim
from refiner_training.segmenters.data.synthetic import make_set, tiny_config
from refiner_training.segmenters.registry import HEADS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("arch", "head"), HEADS, ids=[f"{a}-{h}" for a, h in HEADS])
def test_smoke(arch: str, head: str, tmp_path: Path) -> None:
    assert run_smoke(arch, head, tmp_path) == f"{arch}, {head}: 2 steps trained, 1 image predicted"
    if arch == "deeplabv3plus":
        assert read_label_map(tmp_path / "predictions" / "0000.png").shape == (96, 128)
    else:
        for result in json.loads((tmp_path / "predictions.json").read_text()):
            assert {"image_id", "category_id", "bbox", "score", "segmentation"} <= set(result)
            assert Mask.from_rle(result["segmentation"]).bbox == result["bbox"]


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_segmenter(checkpoint)[0].state_dict()


@pytest.mark.parametrize(("arch", "head"), [("mask_rcnn", "beis"), ("deeplabv3plus", "bsm")])
def test_a_resumed_run_is_the_undisturbed_one(arch: str, head: str, configure: Any, tmp_path: Path) -> None:
    small = {"run.steps": 4, "optim.schedule": "cosine", "heads.beis.channels": [8, 8]}
    four = configure(arch, **small)
    whole = weights_of(train_segmenter(arch, head, four, tmp_path / "whole", progress="none"))
    two = configure(arch, **small, **{"run.checkpoint_every": 2})
    folder = tmp_path / "parts"

    class Stop(Exception):
        pass

    stopped = {"now": True}

    def stop_after_two(self: Any, *args: Any) -> None:
        if stopped["now"] and self.global_step == 3:
            raise Stop
        self.network.after_step()

    from refiner_training.run.segmenter import SegmenterModule

    kept = SegmenterModule.on_train_batch_end
    try:
        SegmenterModule.on_train_batch_end = stop_after_two  # type: ignore
        with pytest.raises(Stop):
            train_segmenter(arch, head, two, folder, progress="none")
        stopped["now"] = False
        resumed = weights_of(train_segmenter(arch, head, two, folder, progress="none"))
    finally:
        SegmenterModule.on_train_batch_end = kept  # type: ignore[method-assign]
    torch.testing.assert_close(resumed, whole, rtol=1e-5, atol=1e-6)


def test_a_finished_run_is_not_trained_again(configure: Any, tmp_path: Path) -> None:
    config = configure("deeplabv3plus")
    checkpoint = train_segmenter("deeplabv3plus", "plain", config, tmp_path, progress="none")
    before = checkpoint.stat().st_mtime_ns
    assert train_segmenter("deeplabv3plus", "plain", config, tmp_path, progress="none") == checkpoint
    assert checkpoint.stat().st_mtime_ns == before


def test_resuming_with_another_head_or_configuration_is_refused(configure: Any, tmp_path: Path) -> None:
    train_segmenter("deeplabv3plus", "plain", configure("deeplabv3plus"), tmp_path, progress="none")
    with pytest.raises(ConfigError, match="belongs to another run"):
        train_segmenter("deeplabv3plus", "bsm", configure("deeplabv3plus"), tmp_path, progress="none")
    with pytest.raises(ConfigError, match="belongs to another run"):
        train_segmenter(
            "deeplabv3plus", "plain", configure("deeplabv3plus", **{"optim.lr": 0.1}), tmp_path, progress="none"
        )


def test_validation_keeps_the_best_checkpoint_and_stops_early(configure: Any, tmp_path: Path) -> None:
    options = {
        "run.steps": 8,
        "run.validate_every": 1,
        "run.patience": 1,
        "optim.lr": 1e-12,
        "run.validation_batches": 2,
    }
    last = train_segmenter("deeplabv3plus", "plain", configure("deeplabv3plus", **options), tmp_path, progress="none")
    assert (tmp_path / "best.ckpt").is_file()
    step = torch.load(last, weights_only=True)["global_step"]
    assert 2 <= step < 8, "nothing is gained at this rate, so patience ends the run"


def test_a_loss_that_is_not_a_number_stops_the_run(configure: Any, tmp_path: Path) -> None:
    config = configure("deeplabv3plus", **{"optim.name": "sgd", "optim.lr": 1e30, "run.steps": 6})
    with pytest.raises(ConfigError, match=r"the loss at step .*lower optim\.lr|Lower optim\.lr"):
        train_segmenter("deeplabv3plus", "plain", config, tmp_path, progress="none")


def test_a_batch_that_does_not_divide_is_refused(
    configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="a multiple of 3 processes"):
        train_segmenter("deeplabv3plus", "plain", configure("deeplabv3plus"), tmp_path, progress="none")


def test_learning_rate() -> None:
    steps = SegmenterOptim(milestones=(60, 80), warmup_steps=10, warmup_factor=0.1)
    factors = [learning_rate_factor(steps, step, 100) for step in (0, 5, 10, 59, 60, 80)]
    assert factors == pytest.approx([0.1, 0.55, 1, 1, 0.1, 0.01])
    poly = SegmenterOptim(schedule="poly", milestones=(), warmup_steps=0)
    assert learning_rate_factor(poly, 50, 100) == pytest.approx(0.5**0.9)
    cosine = SegmenterOptim(schedule="cosine", milestones=(), warmup_steps=0)
    assert learning_rate_factor(cosine, 100, 100) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "head"), [("mask_rcnn", "plain"), ("deeplabv3plus", "plain")])
def test_overfits_two_pictures(arch: str, head: str, configure: Any) -> None:
    """The whole path learns: a tiny model fits its own training pictures far better than it began."""
    from refiner_training.run.validation import mean_iou
    from refiner_training.segmenters.data.sets import open_data
    from refiner_training.segmenters.data.stream import collate
    from refiner_training.segmenters.registry import build_segmenter

    config = configure(arch)
    dataset: Any = open_data(config.data, "train", augment=False)
    model = build_segmenter(arch, head, config).train()
    batch = collate([dataset[0, 0], dataset[1, 1]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.0)
    before = mean_iou(model, dataset, 2)
    for step in range(40):
        torch.manual_seed(step)
        loss = torch.stack(list(model(*batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    assert mean_iou(model, dataset, 2) > max(0.5, before + 0.1)


def test_settings_of_the_command_line() -> None:
    assert parse_settings(["run.steps=5", "data.classes=[a, b]"]) == {"run.steps": 5, "data.classes": ["a", "b"]}
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        parse_settings(["run.steps"])


def test_commands(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from refiner_training.cli import app

    runner = CliRunner()
    done = runner.invoke(app, ["segmenter", "--arch", "deeplabv3plus", "--head", "plain", "--smoke"])
    assert done.exit_code == 0, done.output
    assert "2 steps trained, 1 image predicted" in done.output
    assert "predict" in runner.invoke(app, ["--help"]).output


def test_two_processes_train_together(tmp_path: Path) -> None:
    """What torchrun does: two processes, one gradient. Marked by its own time limit, not by luck."""
    import subprocess
    import sys

    import yaml

    paths = make_set(tmp_path / "data", 4)
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(tiny_config("instance", paths, **{"run.devices": 2, "run.steps": 2})))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "refiner_training.cli"]
    command += ["segmenter", str(file), "--arch", "mask_rcnn", "--head", "bmask", "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=220, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("arch", ["mask_rcnn", "blendmask", "yolact", "deeplabv3plus"])
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_the_detectors_own_rate(arch: str, rate: float, configure: Any, tmp_path: Path) -> None:
    """At rate 0 nothing but the mask branch changes, running statistics included; at 0.1 all do."""
    from refiner_training.segmenters.registry import build_segmenter

    head = "bsm" if arch == "deeplabv3plus" else "b2inst" if arch in ("blendmask", "yolact") else "bmask"
    config = configure(arch, **{"optim.detector_rate": rate, "optim.lr": 0.01})
    fresh = build_segmenter(arch, head, config)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    after = weights_of(train_segmenter(arch, head, config, tmp_path, progress="none"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith(fresh.head_names) for name in changed)
    others = {name for name in changed if not name.startswith(fresh.head_names)}
    assert bool(others) == (rate > 0), sorted(others)[:5]
