"""COCO results as JSON lines: one record a line, in and out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bpr_service.formats import open_predictions
from bpr_service.masks.mask import Mask
from tests.formats.drawing import disc
from tests.formats.samples import content, sample, write_all


@pytest.fixture(params=["\n", "\n\n", "\r\n"], ids=["plain", "spaced", "windows"])
def lines(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """The sample of COCO results, a record a line, without a data set: images are found by the names' numbers."""
    file = sample(("instance", "coco"), tmp_path)
    records = json.loads(Path(file.paths.predictions).read_text())
    text = "".join(json.dumps(record, ensure_ascii=False) + request.param for record in records)
    (tmp_path / "pred.jsonl").write_bytes(text.encode())
    paths = replace(file.paths, predictions=str(tmp_path / "pred.jsonl"), dataset=None)
    return open_predictions("instance", "coco", paths)


def test_untouched_lines_come_back_byte_for_byte(lines: Any, tmp_path: Path) -> None:
    write_all(lines, tmp_path / "out.jsonl", None)
    assert (tmp_path / "out.jsonl").read_bytes() == Path(lines.paths.predictions).read_bytes()


def test_changed_lines_hold_what_the_array_would(lines: Any, tmp_path: Path) -> None:
    array = sample(("instance", "coco"), tmp_path / "array")
    mask = Mask.from_array(disc(20, 20))
    for file, name in ((lines, "out.jsonl"), (array, "out.json")):
        write_all(file, tmp_path / name, lambda _, read: read.with_masks([mask] * len(read.masks)))
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().split(b"\n") if line.strip()]
    assert out == json.loads((tmp_path / "out.json").read_text())
    again = open_predictions("instance", "coco", replace(lines.paths, predictions=str(tmp_path / "out.jsonl")))
    assert len(content(again)) == 2
