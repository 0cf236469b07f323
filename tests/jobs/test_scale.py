"""The benchmark of a million pictures runs, on few: every stage gives what the one before left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scale
from bpr_service.jobs.requests import RefineRequest


@pytest.mark.parametrize("simulated", [False, True])
def test_every_stage_of_the_benchmark_runs(simulated: bool, tmp_path: Path) -> None:
    request = scale.write_files(tmp_path, 300)
    if simulated:
        request = RefineRequest(task="instance", images="", predictions="300", out=str(tmp_path / "out.json"))
    assert scale.plan(request, tmp_path)["parts"] == 19
    assert scale.queue(request, tmp_path) == {"queued": 19}
    assert scale.refine(request, tmp_path) == {"images": 300}
    assert scale.put_together(request, tmp_path)["images"] == 300
    if not simulated:
        assert Path(request.out).read_bytes() == Path(request.predictions).read_bytes()
        return
    assert [json.loads(line)["image_id"] for line in Path(request.out).read_text().splitlines()] == list(range(300))
