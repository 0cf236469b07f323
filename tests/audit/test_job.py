"""An audit as a job: the steps that a worker takes, done here, and what comes of it over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bpr_service.audit.decisions import read_report
from bpr_service.errors import CancelledError, ConfigError, ConflictError, ForbiddenError, LimitError, NotFoundError
from bpr_service.jobs import refine_steps
from bpr_service.jobs.context import Context
from bpr_service.jobs.engine import JobEngine
from bpr_service.jobs.refine.batch import Batch, run_batch
from bpr_service.jobs.settings import JobSettings
from bpr_service.server.http.auth import ApiKey, Keys, hash_key
from bpr_service.server.http.jobs import job_router
from tests.audit.samples import audit_set, request, work
from tests.server.helpers import serving


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[JobEngine]:
    roots: Any = {"data": {"path": str(tmp_path / "data")}, "fixed": {"path": str(tmp_path / "data"), "write": False}}
    engine = JobEngine(JobSettings(folder=str(tmp_path / "jobs"), roots=roots, models=str(tmp_path / "models")))
    yield engine
    engine.close()


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """A request over files in the root."""
    found = audit_set(tmp_path / "data")
    paths = {"images": "data:images", "predictions": "data:ann.json", "out": "data:report.json", "model": "data:model"}
    return {**found, **paths}


def test_a_job_finds_what_the_command_finds(engine: JobEngine, values: dict[str, Any], tmp_path: Path) -> None:
    job = engine.submit({**values, "sample": 3})
    assert (job.kind, job.state) == ("audit", "queued")
    work(engine, job)
    done = engine.get(job.id)
    assert (done.state, done.progress["done"], done.progress["total"]) == ("done", 5, 5)
    assert done.result is not None
    assert (done.result["out"], done.result["failed_count"]) == ("data:report.json", 2)
    with engine.open_out(done) as file:
        report = json.load(file)
    folder = tmp_path / "data"
    own = {"images": folder / "images", "predictions": folder / "ann.json", "out": tmp_path / "own.json"}
    command = {**values, "model": folder / "model", **own, "sample": 3}
    run_batch(request({key: str(v) if isinstance(v, Path) else v for key, v in command.items()}), Batch(workers=0))
    expected = json.loads((tmp_path / "own.json").read_text())
    assert report["masks"] == expected["masks"]
    assert report["sample"] == expected["sample"]
    with engine.open_page(done) as page:
        assert page.read().count(b'<script type="text/plain" id="p') == 9
    # files are named as the request did, not by where they lie on the machine
    assert (report["images"], report["annotations"]) == ("data:images", "data:ann.json")
    assert str(tmp_path) not in engine.folder(job.id).joinpath("page.html").read_text()


def test_its_report_is_decided_about_where_the_files_are(
    engine: JobEngine, values: dict[str, Any], tmp_path: Path
) -> None:
    work(engine, engine.submit(values))
    report = str(tmp_path / "data" / "report.json")
    with pytest.raises(NotFoundError, match=r"data:ann\.json"):
        next(iter(read_report(report, {})[0].open().scan()))
    head, _ = read_report(report, {})
    moved = head.at(images=str(tmp_path / "data" / "images"), annotations=str(tmp_path / "data" / "ann.json"))
    assert len(list(moved.open().scan())) == 5


def test_a_page_goes_where_the_request_says(engine: JobEngine, values: dict[str, Any], tmp_path: Path) -> None:
    job = engine.submit({**values, "page_out": "data:page.html"}, owner="ann")
    work(engine, job)
    with engine.open_page(engine.get(job.id)) as page:
        assert page.read() == (tmp_path / "data" / "page.html").read_bytes()
    for out in ("out", "page_out"):
        with pytest.raises(ConflictError, match="no other owner's job"):
            engine.submit({**values, "out": "data:other.json", out: "data:page.html"}, owner="ben")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"page_out": "/etc/x.html"}, ForbiddenError),
        ({"page_out": "data:../x.html"}, ForbiddenError),
        ({"page_out": "fixed:x.html"}, ForbiddenError),
        ({"out": "fixed:x.json"}, ForbiddenError),
        ({"result": "jsonl"}, ConfigError),
        ({"page_masks": 30_000}, ConfigError),
        ({"page_masks": 11}, LimitError),
        ({"sample": 11}, LimitError),
    ],
)
def test_what_an_audit_may_not(engine: JobEngine, values: dict[str, Any], change: dict[str, Any], error: Any) -> None:
    engine.settings = engine.settings.model_copy(update={"max_page_masks": 10})
    with pytest.raises(error):
        engine.submit({**values, "page_masks": 5, **change})
    assert engine.list() == []


def test_cancelled_and_resumed_it_goes_on_where_it_was(engine: JobEngine, values: dict[str, Any]) -> None:
    engine.settings = engine.settings.model_copy(update={"log_units": True})
    job = engine.submit(values)
    context = Context(engine.settings, engine.database, "cpu", 0, "here")
    row = engine.database.job(job.id)
    assert row is not None
    refine_steps.plan_job(context, row)
    refine_steps.run_part(context, row, 0)
    assert engine.cancel(job.id).state == "cancelled"
    with pytest.raises(CancelledError):
        refine_steps.run_part(context, row, 1)
    work(engine, engine.resume(job.id))
    lines = [line.split(" refined ")[1] for line in engine.log(job.id).splitlines() if " refined " in line]
    assert len(lines) == len(set(lines)) == 5
    assert engine.get(job.id).state == "done"


def test_over_http(engine: JobEngine, values: dict[str, Any], tmp_path: Path) -> None:
    names: tuple[str, ...] = ("ann", "bob")
    keys = Keys([ApiKey(name=name, sha256=hash_key(name), scopes=("jobs",)) for name in names])
    ann, bob = ({"authorization": f"Bearer {name}"} for name in names)
    with serving(keys=keys, job_router=job_router(engine)) as running:
        http: httpx.Client = running.client
        body = {key: value for key, value in values.items() if key != "kind"}
        answer = http.post("/v1/jobs/audit", json=body, headers={**ann, "Idempotency-Key": "mine"})
        assert answer.status_code == 202, answer.text
        assert answer.json()["kind"] == "audit"
        assert http.get("/v1/jobs/mine/result?file=page", headers=ann).status_code == 409
        work(engine, engine.get("mine"))
        report = http.get("/v1/jobs/mine/result?file=report", headers=ann)
        assert report.json() == json.loads((tmp_path / "data" / "report.json").read_text())
        page = http.get("/v1/jobs/mine/result?file=page", headers=ann)
        assert page.text.startswith("<!doctype html>")
        assert page.headers["content-type"].startswith("text/plain")  # it is the caller's file: it must not run here
        assert http.get("/v1/jobs/mine/result?file=predictions", headers=ann).status_code == 404
        assert http.get("/v1/jobs/mine/result?file=page", headers=bob).status_code == 404
        refused = http.post("/v1/jobs/audit", json={**body, "page_out": "/etc/x"}, headers=ann)
        assert (refused.status_code, refused.headers["content-type"]) == (403, "application/problem+json")
