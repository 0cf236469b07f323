"""``bpr bench``: what it prints, and what it flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bpr_service.bench import run
from bpr_service.bench.workload import HEIGHT, WIDTH, workload
from bpr_service.cli import app
from bpr_service.errors import FormatError
from bpr_service.masks.images import read_image
from bpr_service.masks.mask import Mask

RATIOS = {
    "network_share_of_wall",
    "network_share_of_peak",
    "int8_over_fp32",
    "extract_vs_baseline",
    "crop_vs_baseline",
    "reassemble_vs_baseline",
    "codec_vs_baseline",
}


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bpr_service.bench.workload.IMAGES", 1)
        return run.bench("fast", None, repeat=1, int8=False)


def test_it_measures_every_step(result: dict[str, Any]) -> None:
    assert set(result) == {"workload", "steps", "ratios", "machine"}
    assert set(result["ratios"]) == RATIOS
    assert set(result["steps"]) == {*run.STEPS, "wall"}
    assert all(result["steps"][step]["ms"] > 0 for step in run.STEPS)
    parts = sum(result["steps"][step]["ms"] for step in run.STEPS)
    assert parts == pytest.approx(result["steps"]["wall"]["ms"], rel=0.1)
    assert 0 < result["ratios"]["network_share_of_wall"] < 1
    assert result["ratios"]["network_share_of_peak"] > 0
    assert result["workload"]["patches"] > 20
    assert json.loads(json.dumps(result)) == result


def test_the_workload_is_one_size_and_its_masks_lie_inside() -> None:
    source, requests = workload(None)
    assert source == "bundled photographs"
    for request in requests:
        assert read_image(request.jpeg).shape == (HEIGHT, WIDTH, 3)
        masks = [Mask.from_rle(rle) for rle in request.rles]
        assert masks
        assert all((m.height, m.width) == (HEIGHT, WIDTH) and m.area > 0 for m in masks)


def test_a_step_that_lost_a_tenth_is_flagged(result: dict[str, Any]) -> None:
    assert run.slower(result, result) == []
    quick = json.loads(json.dumps(result))
    quick["steps"]["crop"]["ms"] *= 0.8
    (line,) = run.slower(result, quick)
    assert line == "crop: 1.25 times the baseline's time"
    quick["machine"]["processor"] = "another"  # there, only shares can be compared
    assert run.slower(result, quick) == []
    quick["steps"]["crop"]["share"] *= 0.5
    assert run.slower(result, quick) == ["crop: 2.00 times the baseline's share"]


def test_the_command_compares(result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "bench", lambda *a, **k: result)
    quick = json.loads(json.dumps(result))
    quick["steps"]["encode"]["ms"] /= 2
    file = tmp_path / "baseline.json"
    file.write_text(json.dumps(quick))
    done = CliRunner().invoke(app, ["bench", "--compare", str(file), "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["slower"] == ["encode: 2.00 times the baseline's time"]
    file.write_text(json.dumps(result))
    done = CliRunner().invoke(app, ["bench", "--compare", str(file)])
    assert done.exit_code == 0
    assert "boundary + nms" in done.stdout


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"expected CCP's val split"):
        workload(tmp_path)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(FormatError, match=r"expected what bpr bench --json printed"):
        run.read_baseline(tmp_path / "x.json")
    with pytest.raises(FormatError):
        run.read_baseline(tmp_path / "none.json")
