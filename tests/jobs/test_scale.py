"""The benchmark of a million pictures runs, on few: every stage gives what the one before left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fleet, scale
from bpr_service.jobs.refine.merge import merge
from bpr_service.jobs.refine.parts import Watcher, refine_parts
from bpr_service.jobs.refine.place import Place
from bpr_service.jobs.refine.plan import make_plan
from bpr_service.jobs.requests import RefineRequest
from tests.jobs.test_object_storage import Door


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


@pytest.mark.parametrize("devices", fleet.DEVICES)
def test_what_a_fleet_costs_is_what_playing_it_through_costs(devices: int) -> None:
    run = fleet.Run()
    summed, played = fleet.cost(run, devices), fleet.played(run, devices)
    assert run.parts == 4085
    assert played.requests == summed.requests
    assert played.work_s == pytest.approx(summed.work_s, rel=0.05)
    assert played.writes == pytest.approx(summed.writes, rel=0.05)


def test_a_part_asks_storage_as_often_as_the_fleet_counts(tmp_path: Path, s3: str, s3_door: Door) -> None:
    request = RefineRequest(task="instance", images="", predictions="100", out=str(tmp_path / "out.json"))
    file, place, asked = scale.opened(request), Place(f"{s3}/run"), list[str]()
    plan = make_plan(request, file, place, model=None, model_sha256=scale.SHA)

    def door(environ: dict[str, Any]) -> bool:
        asked.append(environ["PATH_INFO"])
        return True

    s3_door(door)
    pool: Any = scale.FreePool()
    refine_parts(pool, request, file, place, plan, range(plan.parts), Watcher())
    assert sum(1 for _ in merge(file, place, plan, request.out)) == 100
    of_the_merge_itself = 2  # the listing, the index
    assert len(asked) == fleet.REQUESTS_OF_A_PART * plan.parts + of_the_merge_itself
