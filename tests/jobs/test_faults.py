"""Workers that are killed, hang or leave, a database that goes away, a disk that is full: nothing is lost."""

from __future__ import annotations

import signal
import socket
from collections import Counter
from pathlib import Path

import pytest

from tests.jobs.fleet import Fleet, hook_refine_unit, kill_at_random
from tests.services import Postgres, wait_for

pytestmark = pytest.mark.slow


def test_kill_three_times(fleet: Fleet) -> None:
    for _ in range(1 if fleet.settings.on_sqlite else 2):
        fleet.start()
    job = fleet.submit(images=16)
    kill_at_random(fleet, job.id, 3, seed=1)
    done = fleet.wait(job.id)
    assert (done.state, done.result and done.result["images"]) == ("done", 16)
    assert max(fleet.refined(job.id).values()) <= 2
    assert (fleet.root / "out.json").read_bytes() == fleet.expected()


def test_a_lost_worker_s_parts_go_to_another(tmp_path: Path, postgres_url: str) -> None:
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
    again = "declared dead by another worker; starting again"
    wait_for("it starts again", lambda: again in (tmp_path / "workers.log").read_text())
    assert fleet.engine.get(job.id).state == "done"
    assert max(fleet.refined(job.id).values()) <= 2
    assert (fleet.root / "out.json").read_bytes() == fleet.expected()
    fleet.close()


def test_a_slow_but_living_worker_is_left_alone(tmp_path: Path, postgres_url: str) -> None:
    fleet = Fleet(tmp_path, postgres_url)
    fleet.settings = fleet.settings.model_copy(update={"dead_after_s": 20.0})  # on a busy machine a beat may come late
    fleet.start()
    job = fleet.submit(images=8, part_images=8)
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
        with socket.create_server(("127.0.0.1", server.port)) as door:
            door.accept()[0].close()  # the worker asks, and nobody answers
        server.start()
        assert fleet.wait(job.id).state == "done"
        assert max(fleet.refined(job.id).values()) <= 2
        assert (fleet.root / "out.json").read_bytes() == fleet.expected()
    finally:
        fleet.close()
        server.stop()


def test_a_disk_that_fills(local: Fleet) -> None:
    """The disk of the jobs is full while a part is under way: the job says so, waits, and goes on."""
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
    job = local.submit(images=24, part_images=24)
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


def test_a_worker_that_gets_nothing_done_starts_again(local: Fleet) -> None:
    """It gives signs of life, but an image never ends: a new process takes the part up and is not caught again.

    The limit is short from the moment at which the image hangs, and in that process only: however busy the machine is,
    no other image is too late.
    """
    once = local.root / "hung"
    site = hook_refine_unit(
        local.root,
        before="if unit.image == '2.png' and not os.path.exists(os.environ['HUNG']):\n"
        "    open(os.environ['HUNG'], 'w').close()\n"
        "    from bpr_service.jobs import worker\n"
        "    worker._context.settings.__dict__['part_timeout_s'] = 0.5\n"
        "    threading.Event().wait()\n",
    )
    worker = local.start(PYTHONPATH=site, HUNG=str(once))
    job = local.submit(images=4)
    done = local.wait(job.id)
    assert once.exists()
    assert worker.poll() is None  # the same process id, with a new program in it
    assert (done.state, done.result and done.result["failed_count"]) == ("done", 0)
    assert "no unit done for 0.5 s; starting again" in (local.root / "workers.log").read_text()
    assert (local.root / "out.json").read_bytes() == local.expected()


def test_a_unit_that_kills_its_worker(local: Fleet) -> None:
    """It is left as it is after three tries, and the others go on."""
    site = hook_refine_unit(local.root, before="if unit.image == '2.png':\n    os.kill(os.getpid(), 9)\n")
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


def test_a_unit_that_outlasts_the_drain_is_left_to_the_next_worker(local: Fleet) -> None:
    once = local.root / "hung"
    site = hook_refine_unit(
        local.root,
        before="if unit.image == '2.png' and not os.path.exists(os.environ['HUNG']):\n"
        "    open(os.environ['HUNG'], 'w').close()\n"
        "    threading.Event().wait()\n",
    )
    local.settings = local.settings.model_copy(update={"drain_s": 0.2})
    worker = local.start(PYTHONPATH=site, HUNG=str(once))
    job = local.submit(images=4)
    local.wait(job.id, lambda job: once.exists())
    worker.terminate()
    assert worker.wait(90) == 0
    local.start()
    assert local.wait(job.id).state == "done"
    assert max(local.refined(job.id).values()) == 1
