from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bpr_service.masks.mask import read_panoptic_png
from refiner_training.data.label_masks import compact
from refiner_training.evaluate import evaluate_panoptic
from refiner_training.metrics.panoptic import Tally, measure_segments, tally
from tests.training import oracles
from tests.training.synthetic import write_panoptic


@pytest.mark.parametrize("boundary", [False, True])
def test_pq_equals_panopticapis_definition(tmp_path: Path, boundary: bool) -> None:
    paths = write_panoptic(tmp_path, images=5)
    expected: dict[int, list[float]] = {}
    got = Tally()
    sides = [json.loads(paths[side].read_text())["annotations"] for side in ("gt", "before")]
    for gt, pred in zip(*sides, strict=True):
        truth = read_panoptic_png(paths["gt_dir"] / gt["file_name"])
        prediction = read_panoptic_png(paths["before_dir"] / pred["file_name"])
        infos = gt["segments_info"], pred["segments_info"]
        for category, row in oracles.panoptic_quality(truth, prediction, *infos, 2 if boundary else None).items():
            expected[category] = [a + b for a, b in zip(row, expected.get(category, [0.0] * 4), strict=True)]
        ids = [[s["id"] for s in info] for info in infos]
        maps = compact(truth, ids[0]), compact(prediction, ids[1])
        got.merge(tally(measure_segments(*maps, len(ids[0]), len(ids[1]), 2), *infos, boundary=boundary))
    assert {c: [got.iou[c], *got.counts[c]] for c in got.counts} == {
        c: pytest.approx(expected[c], abs=1e-9) for c in expected
    }
    assert sum(counts[1] for counts in got.counts.values()) > 0
    if not boundary:
        overall = evaluate_panoptic(paths["gt"], paths["gt_dir"], paths["before"], paths["before_dir"]).summary
        rows = [(iou / (tp + fp / 2 + fn / 2), iou / max(tp, 1)) for iou, tp, fp, fn in expected.values()]
        assert overall["PQ"] == pytest.approx(np.mean([pq for pq, _ in rows]), abs=1e-9)
        assert overall["SQ"] == pytest.approx(np.mean([sq for _, sq in rows]), abs=1e-9)


def test_a_prediction_mostly_in_void_or_crowd_is_no_error() -> None:
    truth = np.full((10, 10), -1, np.int32)
    truth[:, 5:] = 0
    prediction = np.full((10, 10), -1, np.int32)
    prediction[:, :2], prediction[:, 6:9] = 0, 1
    infos = [{"category_id": 1, "iscrowd": 1}], [{"category_id": 1}, {"category_id": 1}]
    overlaps = measure_segments(truth, prediction, 1, 2, 1)
    assert tally(overlaps, *infos).counts == {}
    infos[0][0]["category_id"] = 2
    assert tally(overlaps, *infos).counts == {1: [0, 1, 0]}
