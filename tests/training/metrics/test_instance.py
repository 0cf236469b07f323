from __future__ import annotations

import contextlib
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refiner_training.evaluate import evaluate_instances
from refiner_training.metrics.instance import IOU_THRESHOLDS, match_detections
from tests.training import oracles
from tests.training.synthetic import write_coco


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_coco(tmp_path_factory.mktemp("coco"), images=8)


def pycocotools_run(gt: Path, results: Path) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(gt))
        run = COCOeval(coco, coco.loadRes(str(results)), "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


@pytest.mark.parametrize("side", ["before", "after"])
def test_mask_ap_is_that_of_pycocotools(paths: dict[str, Path], side: str) -> None:
    got = evaluate_instances(paths["gt"], paths[side]).summary
    run = pycocotools_run(paths["gt"], paths[side])
    expected = dict(zip(("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"), run.stats[:6], strict=True))
    for name, value in expected.items():
        assert (-1 if got[name] is None else got[name]) == pytest.approx(value, abs=1e-9), name
    precision = run.eval["precision"][8, :, :, 0, 2]
    assert got["AP90"] == pytest.approx(precision[precision > -1].mean(), abs=1e-9)
    assert 0.2 < got["AP"] < 1


@pytest.mark.parametrize("ratio", [0.02, 0.1])
def test_boundary_ap_is_that_of_faster_coco_eval(paths: dict[str, Path], ratio: float) -> None:
    from faster_coco_eval import COCO, COCOeval_faster

    gt = COCO(str(paths["gt"]))
    run = COCOeval_faster(gt, gt.loadRes(str(paths["before"])), "boundary", boundary_dilation_ratio=ratio)
    run.run()
    got = evaluate_instances(paths["gt"], paths["before"], boundary_ratio=ratio).summary
    assert got["boundary_AP"] == pytest.approx(run.stats[0], abs=1e-9)
    assert got["boundary_AP75"] == pytest.approx(run.stats[2], abs=1e-9)
    assert got["boundary_AP"] < got["AP"]


def test_af_is_the_mean_f_of_pycocotools_true_positives(paths: dict[str, Path]) -> None:
    run = pycocotools_run(paths["gt"], paths["before"])
    gt, dt = run.cocoGt, run.cocoDt
    scores: dict[int, list[float]] = defaultdict(list)
    for image in run.evalImgs:
        if image is None or image["aRng"] != [0, 1e10]:
            continue
        for t, matches in enumerate(image["dtMatches"]):
            for d, g in zip(image["dtIds"], matches, strict=True):
                if g and not gt.anns[g]["iscrowd"]:
                    frames = gt.annToMask(gt.anns[g]), dt.annToMask(dt.anns[d])
                    scores[t].append(oracles.boundary_f(frames[1], frames[0], 1))
    got = evaluate_instances(paths["gt"], paths["before"]).summary
    assert got["AF"] == pytest.approx(np.mean([np.mean(values) for values in scores.values()]), abs=1e-9)
    assert got["AF_threshold_px"] == 1


def test_processes_measure_what_one_process_does(paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = evaluate_instances(paths["gt"], paths["after"], before=paths["before"], workers=1)
    monkeypatch.setattr("refiner_training.evaluation.instances.SERIAL_BELOW", 1)
    assert (
        evaluate_instances(paths["gt"], paths["after"], before=paths["before"], workers=2).to_json() == alone.to_json()
    )


def test_lvis_leaves_out_what_was_not_verified(paths: dict[str, Path], tmp_path: Path) -> None:
    data = json.loads(paths["gt"].read_text())
    plain = evaluate_instances(paths["gt"], paths["after"]).summary["AP"]
    for image in data["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    (tmp_path / "lvis.json").write_text(json.dumps(data))
    lvis = evaluate_instances(tmp_path / "lvis.json", paths["after"]).summary["AP"]
    present = {(a["image_id"], a["category_id"]) for a in data["annotations"]}
    kept = [e for e in json.loads(paths["after"].read_text()) if (e["image_id"], e["category_id"]) in present]
    (tmp_path / "kept.json").write_text(json.dumps(kept))
    assert lvis == pytest.approx(evaluate_instances(paths["gt"], tmp_path / "kept.json").summary["AP"], abs=1e-9)
    assert lvis >= plain
    for image in data["images"]:
        image["not_exhaustive_category_ids"] = [1, 2, 5]  # then no unmatched detection is an error
    (tmp_path / "lvis.json").write_text(json.dumps(data))
    assert evaluate_instances(tmp_path / "lvis.json", paths["after"]).summary["AP50"] > lvis


def test_each_truth_is_matched_once_and_a_crowd_never() -> None:
    iou = np.array([[0.9, 0.6, 0.95], [0.8, 0.7, 0.99]])
    match = match_detections(iou, np.array([False, False, True]), IOU_THRESHOLDS)
    assert match[0].tolist() == [0, 1]
    assert match[5].tolist() == [0, -1]  # at 0.75 the second finds nothing free
