"""``bpr-train evaluate``: the three tasks, their page, and what it says of bad input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bpr_service.errors import FormatError
from refiner_training import cli
from refiner_training.evaluate import evaluate_instances, evaluate_panoptic, evaluate_semantic
from refiner_training.report import write_report
from tests.training import oracles
from tests.training.synthetic import SIZE, write_coco, write_labels, write_panoptic


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: Any) -> tuple[int, str, str]:
    """Run ``bpr-train`` in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["bpr-train", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out = capsys.readouterr()
    return int(end.value.code or 0), out.out, out.err


@pytest.fixture
def coco(tmp_path: Path) -> dict[str, Path]:
    return write_coco(tmp_path / "coco", images=3)


@pytest.fixture
def labels(tmp_path: Path) -> dict[str, Path]:
    return write_labels(tmp_path / "labels", images=3)


@pytest.fixture
def panoptic(tmp_path: Path) -> dict[str, Path]:
    return write_panoptic(tmp_path / "panoptic", images=3)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


# ---- what is measured ----------------------------------------------------------------------------------------


def test_instance_json_has_before_after_and_change(
    coco: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(
        capsys, monkeypatch, "evaluate", "instance", "--dataset", coco["gt"], "--predictions", coco["after"],
        "--before", coco["before"], "--json",
    )  # fmt: skip
    got = json.loads(out)
    assert code == 0
    assert got["AP"] > got["before"]["AP"]
    assert got["change"]["count"] == sum("gt" in e for e in json.loads(coco["before"].read_text()))
    assert got["change"]["better_share"] > 0.5
    assert got["change"]["share_removed"] > 0.2
    assert got["AF_threshold_px"] == 1
    assert set(got["per_class"]) == {"c1", "c2", "c5"}
    assert got["failures"] == []


def test_without_the_key_gt_masks_are_matched_by_iou(coco: dict[str, Path]) -> None:
    named = evaluate_instances(coco["gt"], coco["after"], before=coco["before"]).summary["change"]
    for side in ("before", "after"):
        edit(coco[side], lambda data: [e.pop("gt", None) for e in data])
    by_order = evaluate_instances(coco["gt"], coco["after"], before=coco["before"]).summary["change"]
    edit(coco["after"], lambda data: data.reverse())
    by_iou = evaluate_instances(coco["gt"], coco["after"], before=coco["before"]).summary["change"]
    assert named["count"] >= by_order["count"] > 0.7 * named["count"]
    assert by_iou["count"] == by_order["count"]
    assert by_iou["iou_after"] == pytest.approx(by_order["iou_after"], abs=1e-9)


def test_semantic_measures_equal_their_definitions(labels: dict[str, Path]) -> None:
    got = evaluate_semantic(labels["labels"], labels["after"], 4, before=labels["before"]).to_json()
    for side, values in (("before", got["before"]), ("after", got)):
        shared, union, f = np.zeros(4), np.zeros(4), []
        for path in sorted(labels["labels"].iterdir()):
            truth, prediction = (np.array(Image.open(p)) for p in (path, labels[side] / path.name))
            seen = truth != 255
            for c in range(4):
                shared[c] += (seen & (truth == c) & (prediction == c)).sum()
                union[c] += (seen & ((truth == c) | (prediction == c))).sum()
            f.append(oracles.segf(truth, prediction, 4, 255))
        assert values["mIoU"] == pytest.approx((shared / union).mean(), abs=1e-9)
        assert values["AF"] == pytest.approx(np.mean(f), abs=1e-9)
    assert got["AF_threshold_px"] == 1
    assert got["change"]["better_share"] > got["change"]["worse_share"]


def test_panoptic_before_and_after(panoptic: dict[str, Path]) -> None:
    p = panoptic
    got = evaluate_panoptic(p["gt"], p["gt_dir"], p["after"], p["after_dir"], before=p["before"]).to_json()
    alone = evaluate_panoptic(p["gt"], p["gt_dir"], p["before"], p["before_dir"]).to_json()
    assert got["before"]["PQ"] == alone["PQ"]
    assert got["before"]["boundary_PQ"] == alone["boundary_PQ"]
    assert got["PQ"] > alone["PQ"]
    assert got["change"]["better_share"] > got["change"]["worse_share"]
    perfect = evaluate_panoptic(p["gt"], p["gt_dir"], p["gt"], p["gt_dir"]).summary
    assert perfect["PQ"] == perfect["boundary_PQ"] == 1


def test_panoptic_processes_measure_what_one_process_does(
    panoptic: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [panoptic[k] for k in ("gt", "gt_dir", "after", "after_dir")]
    alone = evaluate_panoptic(*paths, workers=1).to_json()
    monkeypatch.setattr("refiner_training.evaluation.panoptic.SERIAL_BELOW", 1)
    assert evaluate_panoptic(*paths, workers=2).to_json() == alone


# ---- the page ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_before", [False, True])
@pytest.mark.parametrize("task", ["instance", "semantic", "panoptic"])
def test_the_page_is_whole_and_needs_nothing_else(
    tmp_path: Path,
    task: str,
    with_before: bool,
    coco: dict[str, Path],
    labels: dict[str, Path],
    panoptic: dict[str, Path],
) -> None:
    def before(paths: dict[str, Path]) -> Path | None:
        return paths["before"] if with_before else None

    evaluation = {
        "instance": lambda: evaluate_instances(
            coco["gt"], coco["after"], before=before(coco), images=coco["images"]
        ),
        "semantic": lambda: evaluate_semantic(
            labels["labels"], labels["after"], 4, before=before(labels), images=labels["images"]
        ),
        "panoptic": lambda: evaluate_panoptic(
            *(panoptic[k] for k in ("gt", "gt_dir", "after", "after_dir")),
            before=before(panoptic),
            images=panoptic["images"],
        ),
    }[task]()  # fmt: skip
    write_report(evaluation, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|<script", page)
    assert page.count("data:image/jpeg;base64,") >= 4
    assert page.count("<figure") == page.count("data:image/jpeg")
    assert ("IoU of each mask, before and after" in page) == with_before
    assert page.count('class="point') == (len(evaluation.examples) if with_before else 0)
    assert ("AP against the IoU threshold" in page) == (task == "instance")
    assert page.count('<rect class="bar after"') >= len(evaluation.per_class)
    assert "$" not in page.split("</style>")[1]


def test_the_page_works_without_images(coco: dict[str, Path], tmp_path: Path) -> None:
    write_report(evaluate_instances(coco["gt"], coco["after"]), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "data:image" not in page
    assert page.count("of-truth") > 1


# ---- bad input -----------------------------------------------------------------------------------------------


def spoil_results(key: str, value: Any) -> Callable[[Any], Any]:
    return lambda data: data[2].__setitem__(key, value)


INSTANCE_CASES = {
    "unknown image": ("after", spoil_results("image_id", 99), r"after\.json: entry 2.*image ids.*got 99"),
    "unknown category": ("after", spoil_results("category_id", 77), r"after\.json: entry 2.*category ids.*got 77"),
    "no score": ("after", spoil_results("score", None), r"after\.json: entry 2.*score.*None"),
    "unknown gt": ("after", spoil_results("gt", 4000), r"after\.json: entry 2.*as gt.*4000"),
    "another size": (
        "after",
        lambda data: data[2]["segmentation"].update(size=[SIZE[1], SIZE[0]]),
        r"after\.json: entry 2 \(image_id 3\).*\[70, 90\].*\[90, 70\]",
    ),
    "boxes alone": ("after", lambda data: data[2].pop("segmentation"), r"after\.json: entry 2.*segmentation"),
    "another size in before": (
        "before",
        lambda data: data[0]["segmentation"].update(size=[7, 7]),
        r"before\.json: entry 0.*\[7, 7\]",
    ),
    "annotation of an unknown image": (
        "gt",
        lambda data: data["annotations"][4].update(image_id=12345),
        r"gt\.json: annotations\[4\].*12345",
    ),
    "an id twice": (
        "gt",
        lambda data: data["annotations"][4].update(id=data["annotations"][3]["id"]),
        r"gt\.json: annotations\[4\].*again",
    ),
    "no annotations": ("gt", lambda data: data.pop("annotations"), r"gt\.json.*list of annotations"),
    "no images": ("gt", lambda data: data.pop("images"), r"gt\.json.*images"),
    "no height": ("gt", lambda data: data["images"][1].pop("height"), r"gt\.json: images\[1\].*height"),
}


@pytest.mark.parametrize("case", INSTANCE_CASES)
def test_bad_instance_files_are_refused_before_any_work(
    coco: dict[str, Path], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_work(*_: Any, **__: Any) -> None:
        raise AssertionError("measured before the files were checked")

    monkeypatch.setattr("refiner_training.evaluation.instances.in_parallel", no_work)
    side, change, message = INSTANCE_CASES[case]
    edit(coco[side], change)
    with pytest.raises(FormatError, match=message):
        evaluate_instances(coco["gt"], coco["after"], before=coco["before"])


def test_a_call_that_is_wrong_exits_with_2(
    coco: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", "instance", "--dataset", coco["gt"], "--predictions"]
    code, out, err = run(capsys, monkeypatch, *words, coco["gt"].with_name("none.json"))
    assert (code, out) == (2, "")
    assert "none.json" in err
    assert "Traceback" not in err
    coco["after"].write_text(coco["after"].read_text()[:-30])
    code, _, err = run(capsys, monkeypatch, *words, coco["after"])
    assert code == 2
    assert "after.json" in err
    assert run(capsys, monkeypatch, "evaluate", "instance")[0] == 2


def test_a_broken_mask_is_left_out_named_and_exits_with_1(
    coco: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(coco["after"], lambda data: data[1]["segmentation"].update(counts=[5, 7]))
    code, out, err = run(
        capsys, monkeypatch, "evaluate", "instance", "--dataset", coco["gt"], "--predictions", coco["after"], "--json"
    )
    got = json.loads(out)
    assert code == 1
    assert got["failed"] == 1
    assert got["failures"][0]["entry"].startswith("1 (image_id 3)")
    assert "after.json" in err
    edit(coco["after"], lambda data: data.pop(1))
    whole = evaluate_instances(coco["gt"], coco["after"]).summary
    assert got["AP"] == pytest.approx(whole["AP"], abs=1e-12)


def test_an_empty_match_is_an_error(coco: dict[str, Path]) -> None:
    for side in ("before", "after"):
        edit(coco[side], lambda data: [e.pop("gt", None) for e in data])
    empty = {"size": list(SIZE), "counts": [SIZE[0] * SIZE[1]]}
    edit(coco["before"], lambda data: [e.update(segmentation=empty) for e in data])
    with pytest.raises(FormatError, match=r"before\.json.*no match"):
        evaluate_instances(coco["gt"], coco["after"], before=coco["before"])


def test_a_missing_image_is_refused(coco: dict[str, Path]) -> None:
    (coco["images"] / "0004.png").unlink()
    with pytest.raises(FormatError, match=r"gt\.json.*0004\.png"):
        evaluate_instances(coco["gt"], coco["after"], images=coco["images"])


def test_bad_label_folders_are_refused(labels: dict[str, Path], tmp_path: Path) -> None:
    def check(message: str, **options: Any) -> None:
        with pytest.raises(FormatError, match=message):
            evaluate_semantic(labels["labels"], labels["after"], 4, **options)

    check("none: expected a folder", before=tmp_path / "none")
    check(r"000\.png.*its image", images=tmp_path)
    spare = labels["after"] / "extra.png"
    spare.write_bytes((labels["after"] / "000.png").read_bytes())
    check(r"extra\.png.*of the same name")
    spare.unlink()
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(labels["after"] / "001.png")
    check(r"001\.png.*70 x 90.*5 x 6")
    (labels["after"] / "001.png").unlink()
    check(r"after.*none named 001\.png")


def test_a_broken_label_map_is_left_out(labels: dict[str, Path]) -> None:
    path = labels["after"] / "001.png"
    path.write_bytes(path.read_bytes()[:120])
    got = evaluate_semantic(labels["labels"], labels["after"], 4)
    assert [f.entry for f in got.failures] == ["001.png"]
    assert got.summary["images"] == 2
    with pytest.raises(FormatError, match=r"labels 0 to 1"):
        evaluate_semantic(labels["labels"], labels["after"], 2)  # every map has labels 2 and 3


PANOPTIC_CASES = {
    "no prediction": (lambda d: d["annotations"].pop(1), r"after\.json.*none for image_id 1"),
    "unknown image": (lambda d: d["annotations"][1].update(image_id=50), r"after\.json: annotations\[1\].*50"),
    "unknown category": (
        lambda d: d["annotations"][1]["segments_info"][0].update(category_id=9),
        r"after\.json: annotations\[1\], segment 7.*got 9",
    ),
    "void as segment": (lambda d: d["annotations"][1]["segments_info"][0].update(id=0), r"annotations\[1\].*id over 0"),
    "an id twice": (
        lambda d: d["annotations"][1]["segments_info"][1].update(id=7),
        r"annotations\[1\].*segment ids of their own",
    ),
    "no PNG": (lambda d: d["annotations"][2].update(file_name="none.png"), r"none\.png"),
}


@pytest.mark.parametrize("case", PANOPTIC_CASES)
def test_bad_panoptic_files_are_refused(panoptic: dict[str, Path], case: str) -> None:
    change, message = PANOPTIC_CASES[case]
    edit(panoptic["after"], change)
    with pytest.raises(FormatError, match=message):
        evaluate_panoptic(*(panoptic[k] for k in ("gt", "gt_dir", "after", "after_dir")))


def test_panoptic_ids_that_disagree_are_left_out(panoptic: dict[str, Path]) -> None:
    edit(panoptic["after"], lambda d: d["annotations"][1]["segments_info"][0].update(id=9999))
    got = evaluate_panoptic(*(panoptic[k] for k in ("gt", "gt_dir", "after", "after_dir")))
    assert [f.entry for f in got.failures] == ["image_id 1"]
    assert "id 7 in the PNG alone" in got.failures[0].error
    assert got.summary["images"] == 2


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "numba", "cv2", "numpy")
    code = f"import sys; import refiner_training.cli; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
