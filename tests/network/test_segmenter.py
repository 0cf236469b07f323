"""A served segmenter: what it finds, and what is no segmenter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpr_service.errors import BprError, ConfigError, DeadlineError, FormatError, ModelError
from bpr_service.network.segmenter import Segmenter, paste
from tests.segmenters import write_segmenter


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segmenter(tmp_path_factory.mktemp("segmenter"))


def picture(height: int = 100, width: int = 150) -> np.ndarray:
    """A bright block on black."""
    image = np.zeros((height, width, 3), np.uint8)
    image[20:60, 30:90] = 250
    return image


def test_what_is_found(export: Path) -> None:
    segmenter = Segmenter(export)
    best, other = segmenter.segment(picture())
    assert (best.category_id, best.category, best.score) == (3, "bright thing", pytest.approx(0.9))
    frame = best.mask.to_array().astype(bool)
    truth = picture()[:, :, 0] > 0
    assert (frame & truth).sum() / (frame | truth).sum() > 0.9
    assert other.mask.area == 100 * 150
    assert [f.score for f in segmenter.segment(picture(), min_score=0.5)] == [best.score]
    assert Segmenter(export).card.version == segmenter.card.version


def test_paste_is_the_trainers() -> None:
    from refiner_training.segmenters.base import paste as pasted

    rng = np.random.default_rng(0)
    for _ in range(20):
        grid = rng.random((28, 20)).astype(np.float32)
        x, y = rng.uniform(-10, 60, 2)
        box = [x, y, x + rng.uniform(1, 60), y + rng.uniform(1, 60)]
        rect = box if rng.random() < 0.5 else [0.0, 0.0, 90.0, 70.0]
        ours, theirs = paste(grid, rect, box, 70, 90), pasted(torch.from_numpy(grid), rect, box, 70, 90)
        assert (ours.to_array() != theirs.to_array()).mean() < 1e-3


def test_a_deadline_ends_the_wait_for_another_picture(export: Path) -> None:
    segmenter = Segmenter(export)

    def late() -> None:
        raise DeadlineError("late", expected="in time", got="late")

    with segmenter._lock, pytest.raises(DeadlineError):
        segmenter.segment(picture(), check=late)
    assert len(segmenter.segment(picture())) == 2, "the lock is free again"


def card(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "card.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def without_outputs(folder: Path) -> None:
    import hashlib

    data = (folder / "segmenter.onnx").read_bytes().replace(b"grids", b"grids"[::-1])
    (folder / "segmenter.onnx").write_bytes(data)
    card(sha256=hashlib.sha256(data).hexdigest())(folder)


def not_onnx(folder: Path) -> None:
    import hashlib

    (folder / "segmenter.onnx").write_bytes(b"no network")
    card(sha256=hashlib.sha256(b"no network").hexdigest())(folder)


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (lambda folder: (folder / "card.json").unlink(), FormatError, "card.json.*export-segmenter"),
        (lambda folder: (folder / "segmenter.onnx").unlink(), FormatError, "segmenter.onnx"),
        (lambda folder: (folder / "card.json").write_text("{"), ModelError, "expected JSON"),
        (card(kind="refiner"), ModelError, "card of a segmenter, got refiner"),
        (card(sha256="0" * 64), ModelError, "the file that its card names"),
        (card(class_ids=[1, 2]), ModelError, "2 ids, 1 names"),
        (card(task="semantic"), ConfigError, "bpr batch semantic"),
        (card(more=1), BprError, "more"),
        (not_onnx, ModelError, "a network that onnxruntime .* holds"),
        (without_outputs, ModelError, "expected outputs boxes"),
    ],
)
def test_what_is_no_segmenter(export: Path, tmp_path: Path, damage: Any, kind: Any, message: str) -> None:
    folder = tmp_path / "segmenter"
    shutil.copytree(export, folder)
    damage(folder)
    with pytest.raises(kind, match=message):
        Segmenter(tmp_path if "card.json" not in message else folder)
