"""A checkpoint of another head, or with another number of classes: what is said of it, and where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bpr_service.errors import ConfigError, ModelError
from refiner_training.run.segmenter import load_segmenter, train_segmenter
from refiner_training.run.weights import load_weights
from refiner_training.segmenters.registry import build_segmenter


@pytest.fixture(scope="module")
def run(run_of: Callable[[str], Path]) -> Path:
    """A run of BMask R-CNN, of one step."""
    return run_of("bmask")


def changed(run: Path, folder: Path, **record: Any) -> Path:
    """The run's checkpoint, its record changed."""
    content = torch.load(run / "last.ckpt", weights_only=True)
    content["trained"] |= record
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


def test_a_run_of_another_head_is_not_gone_on_with(run: Path, configure: Any) -> None:
    with pytest.raises(ConfigError, match=r"belongs to another run: expected head plain.*got bmask"):
        train_segmenter("mask_rcnn", "plain", configure("mask_rcnn", **{"run.steps": 2}), run, progress="none")


def test_a_run_with_other_classes_is_not_gone_on_with(run: Path, configure: Any) -> None:
    one = configure("mask_rcnn", **{"run.steps": 2, "data.classes": "agnostic", "data.num_classes": 1})
    with pytest.raises(ConfigError, match=r"expected config\.data\.(classes agnostic|num_classes 1).*got"):
        train_segmenter("mask_rcnn", "bmask", one, run, progress="none")


def test_a_number_of_classes_that_the_data_has_not(paths: dict[str, Path], configure: Any, tmp_path: Path) -> None:
    count = len(json.loads(paths["annotations"].read_text())["categories"])
    with pytest.raises(ConfigError, match=rf"expected {count} .*got 80"):
        train_segmenter("mask_rcnn", "plain", configure("mask_rcnn", **{"data.num_classes": 80}), tmp_path)


def test_a_checkpoint_that_says_another_head_than_its_weights(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"last\.ckpt: expected the weights of its configuration"):
        load_segmenter(changed(run, tmp_path, head="plain"))


def test_a_checkpoint_with_another_number_of_classes_than_its_weights(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "last.ckpt", weights_only=True)["trained"]["config"]
    content["data"]["num_classes"] = 5
    with pytest.raises(ModelError, match=r"expected the weights of its configuration, got .*size mismatch"):
        load_segmenter(changed(run, tmp_path, config=content))


def test_another_heads_weights_start_what_they_fit(run: Path, configure: Any) -> None:
    """And the report says what of them is not used, and what is fresh."""
    model = build_segmenter("mask_rcnn", "beis", configure("mask_rcnn"))
    report = load_weights(model, run, "mask_rcnn")
    assert any(".rpn." in name for name in report.loaded)
    assert any("boundary" in name for name in report.unused)
    assert any("stages" in name for name in report.fresh)
    assert "not used" in str(report)
