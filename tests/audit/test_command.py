from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from bpr_service.cli import app
from tests.audit.samples import audit_set


def test_audit_decide_apply_and_estimate(tmp_path: Path) -> None:
    """The way of a data set: its report and page, decisions, the mended file, the share of wrong masks."""
    values = audit_set(tmp_path)
    settings = [part for key, value in values["settings"].items() for part in ("--set", f"{key}={value}")]
    report, page = Path(values["out"]), tmp_path / "page.html"
    call = [
        "audit",
        "instance",
        "--images",
        values["images"],
        "--annotations",
        values["predictions"],
        "--out",
        str(report),
        "--page",
        str(page),
        "--sample",
        "4",
        "--model",
        values["model"],
        "--workers",
        "0",
        *settings,
    ]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 1, done.output  # two units cannot be read whole
    assert "10 masks of 5 images" in done.output
    text = page.read_text()
    assert text.count('<script type="text/plain" id="p') == 9  # all but the empty mask
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")

    found = json.loads(report.read_text())
    taken = next(mask for mask in found["masks"] if mask["replacement"] is not None)
    decisions = {f"{mask['key'][0]}/{mask['key'][1]}": "keep" for mask in found["masks"]}
    decisions[f"{taken['key'][0]}/{taken['key'][1]}"] = "take"
    saved = tmp_path / "decisions.json"
    saved.write_text(json.dumps({"decisions": decisions}))
    out = tmp_path / "mended.json"
    done = CliRunner().invoke(app, ["audit", "apply", str(report), str(saved), "-o", str(out)])
    assert done.exit_code == 0, done.output
    before, after = (json.loads(Path(p).read_text()) for p in (values["predictions"], out))
    changed = [k for k, (a, b) in enumerate(zip(before["annotations"], after["annotations"], strict=True)) if a != b]
    assert changed == [taken["key"][1]]
    assert after["annotations"][changed[0]]["segmentation"] == taken["replacement"]

    done = CliRunner().invoke(app, ["audit", "estimate", str(report), str(saved)])
    assert done.exit_code == 0, done.output
    assert "95 % interval" in done.output
