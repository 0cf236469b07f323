"""Jobs on a real worker process, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bpr_service.errors import ConfigError, ConflictError, ForbiddenError, NotFoundError, UnknownName
from bpr_service.jobs.engine import JobEngine
from bpr_service.jobs.settings import JobSettings
from tests.jobs.fleet import Fleet

pytestmark = pytest.mark.slow


def test_a_job_is_done_once(fleet: Fleet) -> None:
    fleet.start()
    job = fleet.submit(images=6)
    again = fleet.engine.submit({**job.request})
    assert again.id == job.id
    done = fleet.wait(job.id)
    assert (done.state, done.message) == ("done", "")
    assert done.progress["done"] == done.progress["total"] == 6
    assert done.result is not None
    assert done.result["images"] == 6
    assert fleet.engine.submit({**job.request}).state == "done"
    assert fleet.refined(job.id) == Counter({f"{i}.png": 1 for i in range(6)})
    assert (fleet.root / "out.json").read_bytes() == fleet.expected()
    assert [job.id for job in fleet.engine.list()] == [job.id]
    with pytest.raises(ConflictError, match="cannot be resumed"):
        fleet.engine.resume(job.id)
    with pytest.raises(ConflictError, match="cannot be cancelled"):
        fleet.engine.cancel(job.id)
    with pytest.raises(ConflictError, match="another request"):
        fleet.engine.submit({**job.request, "part_images": 3}, job.id)


def test_a_job_that_ends_while_it_is_looked_up_has_its_result(local: Fleet) -> None:
    job, engine = local.submit(images=1), local.engine
    look = engine.client.list_workflows

    def ends(**asked: Any) -> Any:
        found = look(**asked)
        engine.database.update_job(job.id, ended=True, result={"images": 1})
        for status in found:
            status.status = "SUCCESS"
        return found

    with mock.patch.object(engine.client, "list_workflows", ends):
        done = engine.get(job.id)
    assert (done.state, done.result, done.ended is None) == ("done", {"images": 1}, False)


def test_cancel_and_resume(fleet: Fleet) -> None:
    fleet.start()
    job = fleet.submit(images=24, part_images=6)
    fleet.wait(job.id, lambda job: sum(fleet.refined(job.id).values()) >= 2)
    assert fleet.engine.cancel(job.id).state == "cancelled"
    others = [fleet.engine.submit({**job.request, "out": f"data:other{i}.json", "part_images": 24}) for i in range(2)]
    fleet.wait(others[0].id)
    stopped = sum(fleet.refined(job.id).values())
    fleet.wait(others[1].id)  # what the worker does now is others' work
    assert sum(fleet.refined(job.id).values()) == stopped < 24
    assert fleet.engine.get(job.id).state == "cancelled"
    assert fleet.engine.resume(job.id).attempt == 2
    assert fleet.wait(job.id).state == "done"
    assert max(fleet.refined(job.id).values()) == 1  # nothing of the first attempt was lost
    assert (fleet.root / "out.json").read_bytes() == fleet.expected()


def test_one_worker_on_sqlite(local: Fleet) -> None:
    local.start()
    job = local.submit(images=2)
    local.wait(job.id)
    second = local.start()
    assert second.wait(120) == 2
    assert "a worker runs already" in (local.root / "workers.log").read_text()


def test_bad_jobs(local: Fleet) -> None:
    job = local.submit(images=1)
    request = job.request
    submit = local.engine.submit
    with pytest.raises(NotFoundError, match="job 'none'"):
        local.engine.get("none")
    for call in (local.engine.cancel, local.engine.resume, local.engine.log):
        with pytest.raises(NotFoundError):
            call("none")
    with pytest.raises(UnknownName, match="setting"):
        submit({**request, "typo": 1})
    with pytest.raises(UnknownName):
        submit({**request, "settings": {"typo": 1}})
    with pytest.raises(UnknownName, match="'device'"):
        submit({**request, "settings": {"device": "cuda"}})
    with pytest.raises(UnknownName, match="preset"):
        submit({**request, "preset": "typo"})
    with pytest.raises(UnknownName, match="format"):
        submit({**request, "format": "typo"})
    with pytest.raises(ConfigError, match="kind of a job"):
        submit({**request, "kind": "typo"})
    with pytest.raises(ConfigError, match="job's id"):
        submit(request, "../x")


@pytest.mark.parametrize(
    "path",
    [
        "data:../x",
        "data:a/../../x",
        "/etc/passwd",
        "s3://bucket/x",
        "data:link/x",
        "data:a\\..\\..\\x",
        "data:a::file:///etc/x",
        "data:a/s3://bucket/x",
    ],
)
def test_roots_do_not_let_out(path: str, local: Fleet) -> None:
    job = local.submit(images=1)
    (local.root / "link").symlink_to("/etc")
    for field in ("images", "predictions", "dataset", "out", "model"):
        with pytest.raises(ForbiddenError):
            local.engine.submit({**job.request, field: path})
    with pytest.raises(UnknownName, match="root"):
        local.engine.submit({**job.request, "images": "other:x"})


def test_a_read_only_root(tmp_path: Path) -> None:
    roots: Any = {"data": {"path": str(tmp_path), "write": False}}
    engine = JobEngine(JobSettings(roots=roots, folder=str(tmp_path / "jobs")))
    request = {"kind": "refine", "task": "semantic", "images": "data:i", "predictions": "data:p", "out": "data:o"}
    with pytest.raises(ForbiddenError, match="may be written"):
        engine.submit(request)


def test_a_link_in_the_images_is_refused_and_named(local: Fleet) -> None:
    job = local.submit(images=3)
    secret = local.root.parent / f"{local.root.name}-secret.png"
    (local.root / "images" / "1.png").rename(secret)
    (local.root / "images" / "1.png").symlink_to(secret)
    local.start()
    done = local.wait(job.id)
    assert done.result is not None
    assert "a link leaves the allowed folders" in done.result["failed"][0]
    assert str(local.root) not in json.dumps([done.result, done.message])
    assert done.result["failed_count"] == 1


def test_a_broken_file_fails_the_job_with_its_byte(local: Fleet) -> None:
    job = local.submit(images=3)
    path = local.root / "pred.json"
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    local.start()
    failed = local.wait(job.id)
    assert failed.state == "failed"
    assert failed.message.startswith("data:pred.json: broken JSON at byte"), "no path of this machine"
    assert str(local.root) not in local.engine.log(job.id)
    assert not (local.root / "out.json").exists()
    path.write_bytes(data)
    local.engine.resume(job.id)
    assert local.wait(job.id).state == "done"


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPR_JOBS_ROOTS", "data=/data")
    with pytest.raises(ConfigError, match="BPR_JOBS_ROOTS"):
        JobSettings.load()
    monkeypatch.setenv("BPR_JOBS_ROOTS", '{"a": "/a"}')
    monkeypatch.setenv("BPR_JOBS_DEAD_AFTER_S", "7")
    settings = JobSettings.load()
    assert settings.roots["a"].path == "/a"
    assert settings.dead_after_s == 7
