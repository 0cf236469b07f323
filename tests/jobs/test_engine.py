"""Jobs on a real worker process, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import signal
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpr_service.errors import ConfigError, ConflictError, ForbiddenError, NotFoundError, UnknownName
from bpr_service.jobs.engine import JobEngine
from bpr_service.jobs.settings import load_job_settings
from tests.jobs.fleet import Fleet, kill_at_random
from tests.services import Postgres


@pytest.fixture(params=["sqlite", "postgres"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, request.getfixturevalue("postgres_url") if request.param == "postgres" else "")
    yield fleet
    fleet.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, "")
    yield fleet
    fleet.close()


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
        fleet.engine.submit({**job.request, "shard_images": 3}, job.id)


def test_kill_three_times(fleet: Fleet) -> None:
    for _ in range(1 if fleet.settings.on_sqlite else 2):
        fleet.start()
    job = fleet.submit(images=16)
    kill_at_random(fleet, job.id, 3, seed=1)
    assert fleet.wait(job.id).state == "done"
    counts = fleet.refined(job.id)
    assert len(counts) == 16
    assert max(counts.values()) <= 2
    assert (fleet.root / "out.json").read_bytes() == fleet.expected()


def test_cancel_and_resume(fleet: Fleet) -> None:
    fleet.start()
    job = fleet.submit(images=24, shard_images=6)
    fleet.wait(job.id, lambda job: sum(fleet.refined(job.id).values()) >= 2)
    assert fleet.engine.cancel(job.id).state == "cancelled"
    time.sleep(1.0)
    stopped = sum(fleet.refined(job.id).values())
    time.sleep(0.7)
    assert sum(fleet.refined(job.id).values()) == stopped < 24
    assert fleet.engine.get(job.id).state == "cancelled"
    assert fleet.engine.resume(job.id).attempt == 2
    assert fleet.wait(job.id).state == "done"
    assert max(fleet.refined(job.id).values()) == 1  # nothing of the first attempt was lost
    assert (fleet.root / "out.json").read_bytes() == fleet.expected()


def test_a_lost_worker_s_shards_go_to_another(tmp_path: Path, postgres_url: str) -> None:
    fleet = Fleet(tmp_path, postgres_url)
    first = fleet.start()
    job = fleet.submit(images=12)
    fleet.wait(job.id, lambda job: sum(fleet.refined(job.id).values()) >= 2)
    fleet.start()
    first.kill()  # and not started again
    assert fleet.wait(job.id).state == "done"
    assert (fleet.root / "out.json").read_bytes() == fleet.expected()
    fleet.close()


def test_a_worker_that_hangs_and_comes_back(tmp_path: Path, postgres_url: str) -> None:
    fleet = Fleet(tmp_path, postgres_url)
    first = fleet.start()
    job = fleet.submit(images=12)
    fleet.wait(job.id, lambda job: sum(fleet.refined(job.id).values()) >= 1)
    first.send_signal(signal.SIGSTOP)
    fleet.start()
    assert fleet.wait(job.id).state == "done"
    first.send_signal(signal.SIGCONT)
    give_up = time.monotonic() + 120
    while "starting again" not in (tmp_path / "workers.log").read_text() and time.monotonic() < give_up:
        time.sleep(0.1)
    assert "declared dead by another worker; starting again" in (tmp_path / "workers.log").read_text()
    assert fleet.engine.get(job.id).state == "done"
    assert max(fleet.refined(job.id).values()) <= 2
    assert (fleet.root / "out.json").read_bytes() == fleet.expected()
    fleet.close()


def test_a_slow_but_living_worker_is_left_alone(tmp_path: Path, postgres_url: str) -> None:
    fleet = Fleet(tmp_path, postgres_url)
    fleet.settings = fleet.settings.with_options(dead_after_s=20.0)  # on a busy machine a beat may come late
    fleet.start()
    job = fleet.submit(images=8, shard_images=8)
    fleet.wait(job.id, lambda job: sum(fleet.refined(job.id).values()) >= 1)
    fleet.start()  # another one that would take over what is not done
    assert fleet.wait(job.id).state == "done"
    assert max(fleet.refined(job.id).values()) == 1
    assert "taking over" not in (tmp_path / "workers.log").read_text()
    fleet.close()


def test_a_database_that_restarts(tmp_path: Path) -> None:
    server = Postgres(tmp_path / "pg")
    fleet = Fleet(tmp_path, server.url())
    try:
        fleet.start()
        job = fleet.submit(images=16)
        fleet.wait(job.id, lambda job: sum(fleet.refined(job.id).values()) >= 2)
        server.stop()
        time.sleep(1.5)
        server.start()
        assert fleet.wait(job.id).state == "done"
        assert max(fleet.refined(job.id).values()) <= 2
        assert (fleet.root / "out.json").read_bytes() == fleet.expected()
    finally:
        fleet.close()
        server.stop()


def test_a_disk_that_fills(local: Fleet) -> None:
    """The disk of the jobs is full while a shard is under way: the job says so, waits, and goes on."""
    flag = local.root / "full"
    site = local.root / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import errno, os, pathlib\n"
        "real = pathlib.Path.open\n"
        "class Full:\n"
        "    def __init__(self, file): self.file = file\n"
        "    def __getattr__(self, name): return getattr(self.file, name)\n"
        "    def __enter__(self): return self\n"
        "    def __exit__(self, *error): self.file.close()\n"
        "    def write(self, data):\n"
        "        if not os.path.exists(os.environ['FULL']):\n"
        "            return self.file.write(data)\n"
        "        if isinstance(data, memoryview) and len(data) > 1:\n"
        "            return self.file.write(data[:len(data) // 2])\n"  # a part still has room
        "        raise OSError(errno.ENOSPC, 'No space left on device', self.file.name)\n"
        "def opened(self, mode='r', *a, **k):\n"
        "    file = real(self, mode, *a, **k)\n"
        "    return Full(file) if '/jobs/runs/' in str(self) and mode[0] in 'wa' else file\n"
        "pathlib.Path.open = opened\n"
    )
    local.start(FULL=str(flag), PYTHONPATH=str(site))
    job = local.submit(images=24, shard_images=24)
    local.wait(job.id, lambda job: sum(local.refined(job.id).values()) >= 2)
    flag.touch()
    waiting = local.wait(job.id, lambda job: "No space left" in job.message)
    assert waiting.state == "running"
    assert "tried again by itself" in waiting.message
    flag.unlink()
    done = local.wait(job.id)
    assert (done.state, done.message) == ("done", "")
    assert max(local.refined(job.id).values()) == 1
    assert (local.root / "out.json").read_bytes() == local.expected()


def replace_refine_unit(root: Path, body: str) -> str:
    """A folder for PYTHONPATH with which workers get `units.refine_unit` replaced: `body` runs first, at each unit."""
    site = root / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "class Hook:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'bpr_service.jobs.loaders':\n"
        "            sys.meta_path.remove(self)\n"
        "            import bpr_service.jobs.units as units\n"
        "            real = units.refine_unit\n"
        "            def replaced(refiner, file, unit, ignore):\n"
        + textwrap.indent(body, " " * 16)
        + "                return real(refiner, file, unit, ignore)\n"
        "            units.refine_unit = replaced\n"
        "sys.meta_path.insert(0, Hook())\n"
    )
    return str(site)


def test_a_worker_that_gets_nothing_done_starts_again(local: Fleet) -> None:
    """It gives signs of life, but an image never ends: a new process takes the shard up and is not caught again."""
    local.settings = local.settings.with_options(shard_timeout_s=10.0)
    once = local.root / "hung"
    site = replace_refine_unit(
        local.root,
        "if unit.image == '2.png' and not os.path.exists(os.environ['HUNG']):\n"
        "    open(os.environ['HUNG'], 'w').close()\n"
        "    time.sleep(3600)\n",
    )
    worker = local.start(PYTHONPATH=site, HUNG=str(once))
    job = local.submit(images=4)
    done = local.wait(job.id)
    assert once.exists()
    assert worker.poll() is None  # the same process id, with a new program in it
    assert (done.state, done.result and done.result["failed_count"]) == ("done", 0)
    assert "no unit done for 10 s; starting again" in (local.root / "workers.log").read_text()
    assert (local.root / "out.json").read_bytes() == local.expected()


def test_a_unit_that_kills_its_worker(local: Fleet) -> None:
    """It is left as it is after three tries, and the others go on."""
    site = replace_refine_unit(local.root, "if unit.image == '2.png':\n    os.kill(os.getpid(), 9)\n")
    job = local.submit(images=4)
    for _ in range(6):
        local.start(PYTHONPATH=site)
        local.wait(job.id, lambda job: job.ended_for_good or local.workers[-1].poll() is not None)
    done = local.wait(job.id)
    assert done.state == "done"
    assert done.result is not None
    assert done.result["failed_count"] == 1
    assert "its worker ended 3 times" in done.result["failed"][0]
    assert local.refined(job.id) == Counter({f"{i}.png": 1 for i in (0, 1, 3)})


def test_sigterm_ends_a_worker_between_units(local: Fleet) -> None:
    worker = local.start()
    job = local.submit(images=12)
    local.wait(job.id, lambda job: sum(local.refined(job.id).values()) >= 2)
    worker.terminate()
    assert worker.wait(90) == 0
    local.start()
    assert local.wait(job.id).state == "done"
    assert max(local.refined(job.id).values()) == 1


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
    "path", ["data:../x", "data:a/../../x", "/etc/passwd", "s3://bucket/x", "data:link/x", "data:a\\..\\..\\x"]
)
def test_roots_do_not_let_out(path: str, local: Fleet) -> None:
    job = local.submit(images=1)
    (local.root / "link").symlink_to("/etc")
    for field in ("images", "predictions", "dataset", "out"):
        with pytest.raises(ForbiddenError):
            local.engine.submit({**job.request, field: path})
    with pytest.raises(UnknownName, match="root"):
        local.engine.submit({**job.request, "images": "other:x"})


def test_a_read_only_root(tmp_path: Path) -> None:
    settings = load_job_settings(
        {"BPR_JOBS_ROOTS": json.dumps({"data": {"path": str(tmp_path), "write": False}})}, folder=str(tmp_path / "jobs")
    )
    engine = JobEngine(settings)
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
    assert done.result["failed_count"] == 1


def test_a_broken_file_fails_the_job_with_its_byte(local: Fleet) -> None:
    job = local.submit(images=3)
    path = local.root / "pred.json"
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    local.start()
    failed = local.wait(job.id)
    assert failed.state == "failed"
    assert "broken JSON at byte" in failed.message
    assert not (local.root / "out.json").exists()
    path.write_bytes(data)
    local.engine.resume(job.id)
    assert local.wait(job.id).state == "done"


def test_settings() -> None:
    with pytest.raises(ConfigError, match="BPR_JOBS_ROOTS"):
        load_job_settings({"BPR_JOBS_ROOTS": "data=/data"})
    settings = load_job_settings({"BPR_JOBS_ROOTS": '{"a": "/a"}', "BPR_JOBS_DEAD_AFTER_S": "7"})
    assert settings.roots["a"].path == "/a"
    assert settings.dead_after_s == 7
