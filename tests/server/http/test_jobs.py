"""``/v1/jobs`` over a real worker on SQLite."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bpr_service.server.http.auth import ApiKey, Keys, hash_key
from bpr_service.server.http.jobs import job_router
from tests.jobs.fleet import Fleet
from tests.jobs.samples import coco_set
from tests.server.helpers import serving

pytestmark = pytest.mark.slow


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, "")
    yield fleet
    fleet.close()


@pytest.fixture
def http(fleet: Fleet) -> Iterator[httpx.Client]:
    with serving(job_router=job_router(fleet.engine)) as running:
        yield running.client


def body(fleet: Fleet, images: int) -> dict[str, Any]:
    request = coco_set(fleet.root, images).model_dump(exclude_defaults=True)
    names = ("images", "predictions", "dataset", "out")
    return {**request, **{k: f"data:{Path(request[k]).relative_to(fleet.root)}" for k in names}}


def events(http: httpx.Client, path: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    with http.stream("GET", path, timeout=120) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        kind = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                found.append((kind, json.loads(line[6:])))
    return found


def test_a_job_from_submit_to_result(fleet: Fleet, http: httpx.Client) -> None:
    values = body(fleet, 6)
    answer = http.post("/v1/jobs/refine", json=values, headers={"Idempotency-Key": "mine"})
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == "/v1/jobs/mine"
    assert http.post("/v1/jobs/refine", json=values, headers={"Idempotency-Key": "mine"}).json()["id"] == "mine"
    assert http.get("/v1/jobs/mine/result").status_code == 409
    fleet.start()
    found = events(http, "/v1/jobs/mine/events")
    assert found[-1] == ("end", {"state": "done"})
    assert found[-2][1]["progress"]["done"] == found[-2][1]["progress"]["total"] == 6
    assert [job["id"] for job in http.get("/v1/jobs").json()["jobs"]] == ["mine"]
    assert http.get("/v1/jobs", params={"state": "failed"}).json()["jobs"] == []
    assert "planned 6 images" in http.get("/v1/jobs/mine/log").text
    assert http.get("/v1/jobs/mine/result").json()["images"] == 6
    report = http.get("/v1/jobs/mine/result", params={"file": "report"}).json()
    assert len(report["units"]) == 6
    refined = http.get("/v1/jobs/mine/result", params={"file": "predictions"})
    assert refined.content == (fleet.root / "out.json").read_bytes()
    assert http.get("/v1/jobs/mine/result", params={"file": "../x"}).status_code == 404


def test_cancel_and_resume(fleet: Fleet, http: httpx.Client) -> None:
    job_id = http.post("/v1/jobs/refine", json=body(fleet, 3)).json()["id"]
    assert http.post(f"/v1/jobs/{job_id}/cancel").json()["state"] == "cancelled"
    assert http.post(f"/v1/jobs/{job_id}/cancel").status_code == 409
    assert http.post(f"/v1/jobs/{job_id}/resume").json()["state"] == "queued"
    fleet.start()
    assert events(http, f"/v1/jobs/{job_id}/events")[-1][1] == {"state": "done"}
    assert http.post(f"/v1/jobs/{job_id}/resume").status_code == 409


def test_refusals_are_problems(fleet: Fleet, http: httpx.Client) -> None:
    values = body(fleet, 1)
    for change, status in (
        ({"images": "data:../x"}, 403),
        ({"out": "/etc/x"}, 403),
        ({"typo": 1}, 422),
        ({"task": "depth"}, 422),
        ({"preset": "typo"}, 422),
    ):
        answer = http.post("/v1/jobs/refine", json={**values, **change})
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    assert http.post("/v1/jobs/refine", content=b"{").status_code in (400, 422)
    for method, path in (("GET", ""), ("GET", "/log"), ("GET", "/events"), ("GET", "/result"), ("POST", "/cancel")):
        assert http.request(method, f"/v1/jobs/none{path}").status_code == 404
    train = {"name": "mine", "images": "data:images", "ground_truth": "data:ann.json", "recipe": {"run": {"typo": 1}}}
    answer = http.post("/v1/jobs/train", json=train)
    assert answer.status_code == 422
    assert "typo" in answer.text


def test_a_job_is_its_owners(fleet: Fleet) -> None:
    names: dict[str, tuple[str, ...]] = {"ann": ("jobs",), "bob": ("jobs",), "boss": ("jobs", "admin")}
    keys = [ApiKey(name=name, sha256=hash_key(name), scopes=scopes) for name, scopes in names.items()]  # type: ignore[arg-type]
    with serving(keys=Keys(keys), job_router=job_router(fleet.engine)) as running:
        ann, bob, boss = ({"authorization": f"Bearer {name}"} for name in names)
        values = body(fleet, 1)
        job_id = running.client.post("/v1/jobs/refine", json=values, headers=ann).json()["id"]
        for path in ("", "/log", "/result", "/events"):
            assert running.client.get(f"/v1/jobs/{job_id}{path}", headers=bob).status_code == 404
        assert running.client.post(f"/v1/jobs/{job_id}/cancel", headers=bob).status_code == 404
        assert running.client.get("/v1/jobs", headers=bob).json()["jobs"] == []
        assert [job["id"] for job in running.client.get("/v1/jobs", headers=boss).json()["jobs"]] == [job_id]
        assert running.client.get(f"/v1/jobs/{job_id}", headers=boss).status_code == 200
        assert running.client.post(f"/v1/jobs/{job_id}/cancel", headers=ann).json()["state"] == "cancelled"
