"""The options of a prediction: each changes what it says, and what several views saw becomes one."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpr_service.errors import ConfigError, DeviceError
from refiner_training.predict import Options, predict
from refiner_training.prediction.images import list_images
from refiner_training.prediction.options import Options as AllOptions
from refiner_training.prediction.predictor import Predictor
from refiner_training.prediction.views import merged_instances, mirrored_back, resampled
from refiner_training.segmenters.base import Detections
from refiner_training.segmenters.deeplab import _starts
from refiner_training.segmenters.registry import build_segmenter


def found(boxes: list[list[float]], scores: list[float], grids: torch.Tensor | None = None) -> Detections:
    place, ranks = torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores)
    grids = torch.ones(len(boxes), 4, 4) if grids is None else grids
    return Detections(place, torch.ones(len(boxes), dtype=torch.int64), ranks, ranks, grids, place)


def results(trained: Path, paths: dict[str, Path], out: Path, **options: Any) -> list[dict[str, Any]]:
    predict(trained, paths["images"], out, dataset=paths["annotations"], options=AllOptions(**options))
    content: list[dict[str, Any]] = json.loads(out.read_text())
    return content


def test_limits(trained: dict[str, Path], paths: dict[str, Path], tmp_path: Path) -> None:
    every = results(trained["instance"], paths, tmp_path / "all.json", score_threshold=0.0)
    assert max(sum(r["image_id"] == i for r in every) for i in range(1, 5)) > 2
    two = results(trained["instance"], paths, tmp_path / "two.json", score_threshold=0.0, detections=2)
    assert max(sum(r["image_id"] == i for r in two) for i in range(1, 5)) == 2
    middle = sorted(r["box_score"] for r in every)[len(every) // 2]
    best = results(trained["instance"], paths, tmp_path / "best.json", score_threshold=0.0, min_score=middle)
    assert [r["box_score"] for r in best] == [r["box_score"] for r in every if r["box_score"] >= middle]
    strict = results(trained["instance"], paths, tmp_path / "strict.json", score_threshold=0.99)
    assert strict == []


@pytest.mark.parametrize("changed", [{"size_px": 160, "max_size_px": 320}, {"flip": True}, {"scales": (1.5,)}])
def test_what_changes_a_prediction(
    changed: dict[str, Any], trained: dict[str, Path], paths: dict[str, Path], tmp_path: Path
) -> None:
    for kind in ("instance", "semantic"):
        own = {n: v for n, v in changed.items() if kind == "instance" or n != "max_size_px"}
        records = list_images(paths["images"], None)[:1]
        plain, other = (
            next(Predictor(trained[kind], options).run(records))[2] for options in (Options(), AllOptions(**own))
        )
        if kind == "instance":
            assert not torch.equal(plain.scores[:3], other.scores[:3])
        else:
            assert plain.shape == other.shape
            assert not torch.equal(plain, other)


def test_batches_and_devices_keep_the_order(trained: dict[str, Path], paths: dict[str, Path], tmp_path: Path) -> None:
    one = results(trained["instance"], paths, tmp_path / "one.json")
    assert results(trained["instance"], paths, tmp_path / "b.json", devices=("cpu", "cpu")) == one
    three = results(trained["instance"], paths, tmp_path / "three.json", batch=3)
    assert [r["image_id"] for r in three] == [r["image_id"] for r in one]
    np.testing.assert_allclose([r["score"] for r in three], [r["score"] for r in one], atol=1e-3)


def test_half_precision_is_near(trained: dict[str, Path], paths: dict[str, Path]) -> None:
    records = list_images(paths["images"], None)[:1]
    full, half = (next(Predictor(trained["semantic"], AllOptions(precision=p)).run(records))[2] for p in ("32", "bf16"))
    assert not torch.equal(full, half)
    torch.testing.assert_close(full, half, atol=0.05, rtol=0)


def test_options_that_an_architecture_lacks(trained: dict[str, Path]) -> None:
    for changed in ({"detections": 5}, {"score_threshold": 0.5}, {"max_size_px": 100}):
        with pytest.raises(ConfigError, match="an option that deeplabv3plus has"):
            Predictor(trained["semantic"], AllOptions(**changed))


def test_a_device_that_is_not_there(trained: dict[str, Path]) -> None:
    with pytest.raises(DeviceError, match="cuda:99"):
        Predictor(trained["semantic"], AllOptions(devices=("cuda:99",)))


# ---- views


def test_a_mirrored_view_is_turned_back() -> None:
    grid = torch.arange(4.0).expand(1, 4, 4)
    back = mirrored_back(found([[10.0, 5.0, 30.0, 20.0]], [0.9], grid), 100)
    assert isinstance(back, Detections)
    assert back.boxes.tolist() == back.rects.tolist() == [[70.0, 5.0, 90.0, 20.0]]
    assert torch.equal(back.grids[0, 0], torch.tensor([3.0, 2.0, 1.0, 0.0]))


def test_a_flip_of_a_mirrored_picture_predicts_the_same(configure: Any) -> None:
    """Both views together are blind to which side is left."""
    model = build_segmenter("deeplabv3plus", "plain", configure("deeplabv3plus")).eval()
    image = torch.rand(3, 64, 96)
    with torch.no_grad():
        seen = [torch.stack([model([i])[0], mirrored_back(model([i.flip(-1)])[0], 96)]).mean(0)  # type: ignore[list-item]
                for i in (image, image.flip(-1))]  # fmt: skip
    torch.testing.assert_close(seen[0], seen[1].flip(-1), atol=1e-5, rtol=1e-4)


def test_views_become_one() -> None:
    left = torch.zeros(1, 4, 4)
    left[..., :2] = 1
    first, second = found([[0.0, 0.0, 8.0, 8.0]], [0.8], left), found([[0.0, 0.0, 8.0, 8.0]], [0.6])
    alone = found([[50.0, 50.0, 60.0, 60.0]], [0.7])
    both = merged_instances([first, second], 0.5, 10)
    assert len(both) == 1
    assert both.scores.item() == pytest.approx(0.7)
    torch.testing.assert_close(both.grids[0, 0], torch.tensor([1.0, 1.0, 0.5, 0.5]))
    three = merged_instances([first, second, alone], 0.5, 10)
    assert three.boxes[:, 0].tolist() == [0.0, 50.0], "what one view alone saw ranks below"
    assert three.scores.tolist() == pytest.approx([1.4 / 3, 0.7 / 3])
    assert len(merged_instances([first, second, alone], 0.5, 1)) == 1
    assert len(merged_instances([found([], []), found([], [])], 0.5, 10)) == 0


def test_a_grid_is_sampled_where_another_lies() -> None:
    grid = torch.zeros(1, 4, 4)
    grid[0, :, 2:] = 1
    rect = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    torch.testing.assert_close(resampled(grid, rect, rect), grid)
    right_half = resampled(grid, rect, torch.tensor([[4.5, 0.0, 8.0, 8.0]]))
    assert right_half.min() > 0.5


def test_windows_cover_evenly() -> None:
    assert _starts(100, 100) == _starts(80, 100) == [0]
    for length in range(101, 500, 7):
        starts = _starts(length, 100)
        assert (starts[0], starts[-1]) == (0, length - 100)
        assert max(b - a for a, b in pairwise(starts)) <= 67


def test_windows_see_what_the_whole_sees(configure: Any) -> None:
    models = {}
    for crop in (None, (64, 64)):
        options = {"model.deeplabv3plus.test_crop_px": crop}
        models[crop] = build_segmenter("deeplabv3plus", "plain", configure("deeplabv3plus", **options)).eval()
    image = torch.rand(3, 64, 150)
    with torch.no_grad():
        whole, windows = (model([image])[0] for model in models.values())
    assert windows.shape == whole.shape == (3, 64, 150)
    torch.testing.assert_close(windows.sum(0), torch.ones(64, 150))
    with torch.no_grad():
        alone = models[None]([image[:, :, :64]])[0]
    torch.testing.assert_close(windows[:, :, :29], alone[:, :, :29])  # the next window begins at column 29
