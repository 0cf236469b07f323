"""How busy an installation is, who works, and who works on what."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from typer.testing import CliRunner

from bpr_service.cli import app
from bpr_service.errors import NotReadyError, UnknownName
from bpr_service.jobs.dbos_setup import queues_of
from bpr_service.jobs.engine import JobEngine
from bpr_service.jobs.settings import JobSettings
from bpr_service.server.metrics import Metrics
from tests.jobs.fleet import Fleet

pytestmark = pytest.mark.slow


def scrape(engine: JobEngine) -> dict[str, str]:
    metrics = Metrics()
    metrics.watch_jobs(engine).look()
    lines = generate_latest(metrics.registry).decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if line.startswith("bpr_jobs"))


def test_what_waits_and_who_works_is_told(fleet: Fleet) -> None:
    assert scrape(fleet.engine)["bpr_jobs_workers"] == "0.0"
    with pytest.raises(NotReadyError, match=r"sign of life on here, got none"):
        fleet.engine.check_worker("here")
    job = fleet.submit(images=2)
    before = scrape(fleet.engine)
    assert before["bpr_jobs_database_up"] == "1.0"
    assert {name for name in before if "{" in name} == {
        f'bpr_jobs_{state}{{queue="{queue}"}}'
        for state in ("queued", "running")
        for queue in ("jobs", "parts", "train")
    }
    assert before['bpr_jobs_queued{queue="jobs"}'] == "1.0"
    fleet.start()
    fleet.wait(job.id)
    after = scrape(fleet.engine)
    assert (after['bpr_jobs_queued{queue="jobs"}'], after["bpr_jobs_workers"]) == ("0.0", "1.0")
    assert fleet.engine.check_worker(socket.gethostname())
    (worker,) = fleet.workers
    worker.terminate()
    assert worker.wait(60) == 0
    assert scrape(fleet.engine)["bpr_jobs_workers"] == "0.0"
    with pytest.raises(NotReadyError):
        fleet.engine.check_worker(socket.gethostname())


def test_a_database_that_is_away_is_told_and_hides_no_other_metric(tmp_path: Path) -> None:
    settings = JobSettings(database="postgresql://nobody@127.0.0.1:9/none", folder=str(tmp_path))
    assert scrape(JobEngine(settings, patience_s=0.0)) == {"bpr_jobs_database_up": "0.0"}


def test_a_worker_leaves_the_other_kinds_of_jobs_alone(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, "")
    try:
        fleet.start("--kind", "train")
        fleet.wait_ready(1)
        job = fleet.submit(images=2)
        assert fleet.engine.load().queued["jobs"] == 1
        (trainer,) = fleet.workers
        trainer.terminate()
        trainer.wait(60)
        assert fleet.engine.get(job.id).state == "queued"
        fleet.start("--kind", "refine")
        assert fleet.wait(job.id).state == "done"
    finally:
        fleet.close()


def test_an_unknown_kind_of_job_is_refused() -> None:
    with pytest.raises(UnknownName, match="refine, train"):
        queues_of("refin")


def test_healthchecks_tell_by_their_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPR_PORT", "9")
    monkeypatch.setenv("BPR_JOBS_FOLDER", str(tmp_path))
    for what, said in (("server", "not ready"), ("worker", "not ready")):
        result = CliRunner().invoke(app, ["healthcheck", what])
        assert (result.exit_code, said in result.output) == (1, True), result.output
