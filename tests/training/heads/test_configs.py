"""The configurations of segmenters: each builds, its command parses, and it says what its paper does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer

from bpr_service.errors import ConfigError, FormatError, UnknownName
from refiner_training.cli import app
from refiner_training.segmenters.config import InstanceData, load_segmenter_config
from refiner_training.segmenters.registry import build_segmenter

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "refiner_training" / "configs" / "segmenter").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_configuration_builds_and_its_documented_command_parses(path: Path) -> None:
    """On the meta device: nothing is computed, all shapes are."""
    command = next(line[1:].split() for line in path.read_text().splitlines() if "bpr-train segmenter" in line)
    assert command[:2] == ["bpr-train", "segmenter"]
    given = typer.main.get_command(app).commands["segmenter"].make_context("segmenter", command[2:]).params  # type: ignore[attr-defined]
    assert (ROOT / given["config"]) == path, "the command names its own file"
    config = load_segmenter_config(path, {"model.backbone.pretrained": False})
    with torch.device("meta"):
        assert build_segmenter(given["arch"], given["head"], config).loss_names


def test_papers_schedules_are_configured() -> None:
    by_name = {path.stem: load_segmenter_config(path) for path in CONFIGS}
    coco = by_name["coco_mask_rcnn_1x"]
    assert (coco.optim.lr, coco.run.steps, coco.run.batch_size) == (0.02, 90_000, 16)
    assert coco.optim.milestones == (60_000, 80_000)
    assert by_name["coco_mask_rcnn_3x"].run.steps == 270_000
    assert by_name["coco_yolact"].optim.milestones == (280_000, 600_000, 700_000, 750_000)
    cityscapes = by_name["cityscapes_mask_rcnn"]
    assert (cityscapes.run.steps, cityscapes.run.batch_size, cityscapes.optim.milestones) == (24_000, 8, (18_000,))
    lvis = by_name["lvis_mask_rcnn"].data
    assert isinstance(lvis, InstanceData)
    assert (lvis.num_classes, lvis.repeat_threshold) == (1203, 0.001)
    assert by_name["coco_bmask_1x"].model.inputs.min_size == (800,)
    assert by_name["coco_bmask_1x"].optim == coco.optim
    for name in ("coco_blendmask_3x", "coco_blendmask_3x_r101"):
        long = by_name[name]
        assert round(long.run.steps * long.run.batch_size / 118_287) in (36, 37)
        assert long.optim.milestones == (210_000, 250_000)
    assert by_name["coco_blendmask_3x_r101"].model.backbone.name == "resnet101"
    yolact = [by_name[name].model.backbone.name for name in ("coco_yolact", "coco_yolact_r50")]
    assert yolact == ["resnet101", "resnet50"]
    assert isinstance(by_name["coco_yolact_r50"].data, InstanceData)
    assert by_name["coco_yolact_r50"].data.augmentation == "ssd"
    frozen = [name for name, config in by_name.items() if config.model.backbone.norm == "frozen"]
    assert len(frozen) == 9
    assert {by_name[name].model.backbone.frozen_stages for name in frozen} == {2}
    dense = by_name["cityscapes_deeplab"]
    assert dense.optim.schedule == "poly"
    assert dense.model.deeplabv3plus.test_crop_px == (832, 832)
    assert abs(dense.run.steps * dense.run.batch_size / 2975 - 100) < 1


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(CONFIGS[0].read_text() + "\nsteps: 5\n")
    with pytest.raises(UnknownName, match="'steps'"):
        load_segmenter_config(path)
    path.write_text(CONFIGS[0].read_text())
    with pytest.raises((ConfigError, UnknownName), match=r"heads\.beis\.cbld"):
        load_segmenter_config(path, {"heads.beis.cbld": False})


def test_a_late_milestone_is_refused() -> None:
    path = next(p for p in CONFIGS if p.stem == "coco_mask_rcnn_1x")
    with pytest.raises(ConfigError, match="milestone 60000"):
        load_segmenter_config(path, {"run.steps": 100})


@pytest.mark.parametrize("text", ["- a", "a: ["])
def test_no_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises((ConfigError, FormatError)):
        load_segmenter_config(path)
    with pytest.raises(FormatError, match="expected a YAML file"):
        load_segmenter_config(tmp_path / "none.yaml")


def test_a_configuration_lies_over_its_base(tmp_path: Path) -> None:
    top, base = tmp_path / "top.yaml", tmp_path / "base.yaml"
    base.write_text(CONFIGS[0].read_text())
    top.write_text("base: base.yaml\nrun: {steps: 7}\nheads: {bsm_dense: {window_px: 7}}\n")
    below, above = load_segmenter_config(base), load_segmenter_config(top)
    assert above.run == below.run.with_options(steps=7)
    assert above.heads.bsm_dense == below.heads.bsm_dense.with_options(window_px=7)
    assert load_segmenter_config(top, {"run.steps": 9}).run.steps == 9


@pytest.mark.parametrize(
    ("base", "error"), [("other.yaml", "expected a YAML file"), ("top.yaml", "got a circle"), ("[a]", "another file")]
)
def test_a_base_that_is_none(tmp_path: Path, base: str, error: str) -> None:
    path = tmp_path / "top.yaml"
    path.write_text(f"base: {base}\n")
    with pytest.raises((ConfigError, FormatError), match=error):
        load_segmenter_config(path)
