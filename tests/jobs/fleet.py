"""Worker processes over one installation of jobs, for tests and benchmarks."""

from __future__ import annotations

import json
import os
import random
import signal
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bpr_service.jobs.engine import Job, JobEngine
from bpr_service.jobs.refine.batch import Batch, run_batch
from bpr_service.jobs.requests import RefineRequest
from bpr_service.jobs.settings import JobSettings, Root
from tests.forks import Forked
from tests.jobs.samples import coco_set
from tests.services import wait_for

FAST: Any = {"poll_s": 0.1, "beat_s": 0.2, "dead_after_s": 6.0, "retry_s": 0.2, "log_units": True}


class Fleet:
    """Worker processes over one installation, in a folder ``root`` of its own."""

    def __init__(self, root: Path, database: str) -> None:
        self.root, self.workers = root, list[Forked]()
        self.settings = JobSettings(
            database=database, folder=str(root / "jobs"), roots={"data": Root(path=str(root))},
            models=str(root / "models"), **FAST,
        )  # fmt: skip
        self.engine = JobEngine(self.settings)

    def start(self, *arguments: str, **environment: str) -> Forked:
        values = self.settings.model_dump(mode="json", exclude_defaults=True)
        texts = {f"BPR_JOBS_{k.upper()}": v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **texts, **environment}
        self.workers.append(Forked(["worker", *arguments], environment, self.root / "workers.log"))
        return self.workers[-1]

    def submit(self, **values: Any) -> Job:
        request = coco_set(self.root, values.pop("images", 12)).model_dump(exclude_defaults=True)
        named = {
            k: f"data:{Path(request[k]).relative_to(self.root)}" for k in ("images", "predictions", "dataset", "out")
        }
        return self.engine.submit({"kind": "refine", **request, **named, **values})

    def wait(self, job_id: str, until: Callable[[Job], bool] = lambda job: job.ended_for_good, s: float = 180) -> Job:

        def found() -> Job | None:
            job = self.engine.get(job_id)
            return job if until(job) else None

        def about() -> str:
            return f"{self.engine.get(job_id)}\n{self.engine.log(job_id)}\n{(self.root / 'workers.log').read_text()}"

        job: Job = wait_for(f"job {job_id}", found, s, about)
        return job

    def wait_ready(self, count: int, s: float = 120) -> None:
        """Until ``count`` workers take work."""
        log = self.root / "workers.log"
        wait_for(f"{count} workers", lambda: log.read_text().count(": ready") >= count, s, log.read_text)

    def refined(self, job_id: str) -> Counter[str]:
        """How often each image was refined, over all workers and starts."""
        lines = self.engine.log(job_id).splitlines()
        return Counter(line.split(" refined ")[1] for line in lines if " refined " in line)

    def expected(self) -> bytes:
        """The result of an undisturbed run, image by image in one process."""
        request = json.loads(json.dumps(self.request))
        run_batch(RefineRequest(**{**request, "out": str(self.root / "expected.json")}), Batch(workers=0))
        return (self.root / "expected.json").read_bytes()

    @property
    def request(self) -> dict[str, Any]:
        row = min(self.engine.list(kind="refine"), key=lambda job: job.created)
        return {
            key: str(self.root / value[5:]) if isinstance(value, str) and value.startswith("data:") else value
            for key, value in row.request.items()
        }

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
        self.engine.close()


def hook_refine_unit(root: Path, *, before: str = "", after: str = "") -> str:
    """A folder for PYTHONPATH with which processes get `refine_unit` replaced: these lines run at each unit."""
    site = root / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, sys, threading, time\n"
        "NAME = 'bpr_service.jobs.refine.loaders'\n"
        "def hook(module):\n"
        "    real = module.refine_unit\n"
        "    def replaced(refiner, file, unit, ignore):\n"
        + textwrap.indent(before, " " * 8)
        + "        outcome = real(refiner, file, unit, ignore)\n"
        + textwrap.indent(after, " " * 8)
        + "        return outcome\n"
        "    module.refine_unit = replaced\n"
        "class Hook:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == NAME:\n"
        "            sys.meta_path.remove(self)\n"
        "            import bpr_service.jobs.refine.unit as units\n"
        "            hook(units)\n"
        "if NAME in sys.modules:\n"
        "    hook(sys.modules[NAME])\n"
        "else:\n"
        "    sys.meta_path.insert(0, Hook())\n"
    )
    return str(site)


def _past(fleet: Fleet, before: int, job: Job) -> bool:
    return job.ended_for_good or sum(fleet.refined(job.id).values()) > before


def kill_at_random(fleet: Fleet, job_id: str, kills: int, seed: int, pause_s: float = 0.0) -> None:
    """kill -9 a worker, ``kills`` times, once some more units were done than at the last kill; start another.

    Args:
        pause_s: a pause of random length, this at most, goes before each.
    """
    rng = random.Random(seed)
    for _ in range(kills):
        before = sum(fleet.refined(job_id).values())
        fleet.wait(job_id, partial(_past, fleet, before), s=600)
        time.sleep(rng.uniform(0, pause_s))
        victim = rng.choice([worker for worker in fleet.workers if worker.poll() is None])
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        fleet.start()
