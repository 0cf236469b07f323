"""The whole of it: annotations in, a report and a page out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpr_service.audit.kinds import EMPTY, TWICE, has_tiny_piece
from bpr_service.audit.measures import INPUTS
from bpr_service.audit.ranking import Ranking
from bpr_service.audit.report import suspects
from bpr_service.audit.suspicion import Judge, judge_of
from bpr_service.audit.unit import listed
from bpr_service.errors import ModelError
from bpr_service.jobs.refine.batch import Batch, run_batch
from bpr_service.jobs.refine.loader_process import RefinerSpec
from bpr_service.jobs.refine.unit import FOUND, audit_unit
from bpr_service.masks.mask import Mask
from bpr_service.network.weights import find_model, read_card
from tests.audit.samples import audit_set, auditing_model, card, request
from tests.formats.samples import kinds, sample
from tests.jobs.samples import SETTINGS, tiny_model

IN_PROCESS = Batch(workers=0)


def report_of(values: dict[str, Any], options: Batch = IN_PROCESS) -> dict[str, Any]:
    run_batch(request(values), options)
    found: dict[str, Any] = json.loads(Path(values["out"]).read_text())
    return found


def test_every_mask_is_reported_the_worst_first(tmp_path: Path) -> None:
    report = report_of(audit_set(tmp_path))
    masks = report["masks"]
    assert {m["id"] for m in masks} == {0, 1, 10, 11, 20, 21, 30, 31, 100, 101}
    assert [m["suspicion"] for m in masks] == sorted((m["suspicion"] for m in masks), reverse=True)
    assert masks[0]["id"] == 101
    assert masks[0]["kinds"] == [EMPTY]
    twice = [m for m in masks if TWICE in m["kinds"]]
    assert {(m["id"], m["like"]) for m in twice} == {(0, 100), (100, 0)}
    for mask in masks[1:]:
        assert 0 <= mask["expected_iou"] <= 1
        assert 0 <= mask["expected_boundary_f"] <= 1
        assert mask["image"] == f"{mask['image_id'] - 1}.png"
        if mask["replacement"] is not None:
            assert not Mask.from_rle(mask["replacement"]).is_empty


def test_what_cannot_be_audited_is_a_finding_of_its_own(tmp_path: Path) -> None:
    report = report_of(audit_set(tmp_path))
    named = {one["kind"]: one for one in report["findings"]["named"]}
    assert report["findings"]["counts"] == {
        "unreadable mask": 1, "unreadable annotations": 1, "a picture without annotations": 1,
    }  # fmt: skip
    assert "record 10" in named["unreadable mask"]["problem"]
    assert "image_id 77" in named["unreadable annotations"]["problem"]
    assert named["a picture without annotations"]["image"] == "4.png"


def test_the_summary_adds_up(tmp_path: Path) -> None:
    report = report_of(audit_set(tmp_path))
    summary, masks = report["summary"], report["masks"]
    assert summary["masks"] == len(masks) == 10
    assert summary["by_annotator"].keys() == {"ann", "bob"}
    assert summary["by_category"].keys() == {"0 disc", "1"}
    assert sum(group["masks"] for group in summary["by_category"].values()) == 10
    assert summary["by_picture_size"] == {"up to 512 px": {**summary["by_picture_size"]["up to 512 px"], "masks": 10}}
    mean = np.mean([m["suspicion"] for m in masks if m["annotator"] == "bob"])
    assert summary["by_annotator"]["bob"]["expected_wrong_share"] == pytest.approx(mean, abs=1e-3)


def test_shares_and_loaders_find_the_same(tmp_path: Path) -> None:
    values = audit_set(tmp_path)
    whole = report_of(values)
    assert report_of(values, Batch(workers=1)) == whole
    work = str(tmp_path / "work")
    for k in range(2):
        run_batch(request(values), Batch(workers=0, work=work, part=(k, 2)))
    merged = report_of(values, Batch(work=work, merge=True))
    assert (merged["masks"], merged["summary"]) == (whole["masks"], whole["summary"])


def test_a_model_that_cannot_audit_is_refused_before_any_work(tmp_path: Path) -> None:
    values = {**audit_set(tmp_path), "model": tiny_model(tmp_path / "other")}
    with pytest.raises(ModelError, match="cannot audit"):
        run_batch(request(values), IN_PROCESS)
    assert not Path(values["out"]).exists()


def test_a_card_of_other_measures_is_refused() -> None:
    odd = card().model_copy(update={"inputs": [*card().inputs[:-1], "colour of the sky"]})
    with pytest.raises(ModelError, match="colour of the sky"):
        Judge(odd)


def test_the_bundled_model_audits() -> None:
    assert isinstance(judge_of(read_card(find_model("balanced"))), Judge)


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind[1] != "masks"], ids="-".join)
def test_every_format_can_be_audited(kind: tuple[str, str], tmp_path: Path) -> None:
    file = sample(kind, tmp_path)
    refiner = RefinerSpec("balanced", auditing_model(tmp_path / "model"), SETTINGS).load()
    found = 0
    for unit in file.scan():
        outcome = audit_unit(refiner, file, unit, None)
        assert outcome.failed == []
        rows = [json.loads(line) for line in outcome.encoded.files[FOUND].splitlines()]
        assert len(rows) == len(listed(file, file.read(unit), None)[0])
        found += len(rows)
        if kind[1] == "ids":
            assert {row["category_id"] for row in rows} == {None}
        assert all(row["key"][0] == unit.number and row["area"] > 0 for row in rows)
    assert found


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind[1] != "masks"], ids="-".join)
def test_faults_of_files_are_findings_in_every_format(kind: tuple[str, str], tmp_path: Path) -> None:
    """A picture that is not there, one that nothing speaks of, annotations that cannot be read."""
    file = sample(kind, tmp_path)
    paths, first = file.paths, Path(file.paths.images) / next(iter(file.scan())).image
    values = {"task": kind[0], "format": kind[1], "images": paths.images, "predictions": paths.predictions,
              "dataset": paths.dataset, "panoptic_dir": paths.panoptic_dir, "out": str(tmp_path / "report.json"),
              "model": auditing_model(tmp_path / "model"), "settings": SETTINGS}  # fmt: skip
    away = first.rename(first.with_name("zz_extra.png"))
    counts = report_of(values)["findings"]["counts"]
    assert counts["a picture without annotations"] >= 1
    assert counts["unreadable annotations"] >= 1
    away.rename(first)
    annotations = Path(paths.panoptic_dir or paths.predictions)
    if annotations.is_dir():
        path = sorted(path for path in annotations.rglob("*") if path.is_file())[-1]
        path.write_bytes(path.read_bytes() + b"\n3 0.2 x" if path.suffix == ".txt" else b"no such file")
        assert {"unreadable annotations", "unreadable mask"} & report_of(values)["findings"]["counts"].keys()


def test_pictures_that_went_away_stop_nothing(tmp_path: Path) -> None:
    values = audit_set(tmp_path)
    (tmp_path / "images" / "1.png").unlink()
    (tmp_path / "images" / "2.png").write_bytes(b"no picture")
    report = report_of(values)
    assert report["findings"]["counts"]["unreadable annotations"] == 3
    assert {m["image"] for m in report["masks"]} == {"0.png", "3.png"}


def test_a_file_without_masks_gives_an_empty_report(tmp_path: Path) -> None:
    values = audit_set(tmp_path)
    (tmp_path / "ann.json").write_text(json.dumps({"images": [], "annotations": []}))
    report = report_of({**values, "page_out": str(tmp_path / "p.html"), "sample": 5})
    assert report["masks"] == []
    assert report["findings"]["counts"]["a picture without annotations"] == 5


def test_a_set_is_held_against_itself(tmp_path: Path) -> None:
    """The same measures are more suspicious where all other masks have other ones."""
    rng = np.random.default_rng(0)
    middle, spread = np.array(card().mean, np.float32), np.array(card().scale, np.float32)
    odd = middle + spread * rng.normal(0, 2, len(INPUTS)).astype(np.float32)
    judge = Judge(card())
    alone = judge.table(odd[None], judge.usual(np.tile(odd, (500, 1))))[0, len(INPUTS) :]
    among = judge.table(odd[None], judge.usual(np.tile(middle, (500, 1))))[0, len(INPUTS) :]
    assert 5 * np.abs(alone).mean() < np.abs(among).mean()


def test_a_ranking_reads_back_what_was_found(tmp_path: Path) -> None:
    rows = [{"key": [0, k], "kinds": []} for k in range(50)]
    inputs = np.random.default_rng(0).normal(0, 1, (50, len(INPUTS))).astype(np.float32)
    inputs[7] = np.nan
    with Ranking(tmp_path) as ranking:
        for k in range(0, 50, 10):
            lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows[k : k + 10])
            ranking.add(lines, inputs[k : k + 10].tobytes())
        ranking.judge(Judge(card()))
        found = list(ranking.rows())
    assert sorted(row["key"][1] for row in found) == list(range(50))
    unjudged = [row for row in found if "unjudged" in row]
    assert [row["key"] for row in unjudged] == [[0, 7]]
    assert unjudged[0]["expected_iou"] is None


def test_suspects_are_counted_from_the_top(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"masks": [{"suspicion": s} for s in (0.9, 0.8, 0.2)], "task": "x"}))
    assert [suspects(str(path), over) for over in (0.95, 0.8, 0.1)] == [0, 1, 3]


def test_tiny_pieces_are_seen() -> None:
    array = np.zeros((90, 90), np.uint8)
    array[10:60, 10:60] = 1
    assert not has_tiny_piece(Mask.from_array(array))
    array[80:83, 80:83] = 1
    assert has_tiny_piece(Mask.from_array(array))
    speck = np.zeros((90, 90), np.uint8)
    speck[3:6, 3:6] = 1
    assert has_tiny_piece(Mask.from_array(speck))
