"""Train jobs with a stand-in trainer: a real child process, killed, resumed, measured, registered once."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from bpr_service.errors import ConfigError, NotFoundError, UnknownName
from bpr_service.jobs.engine import Job
from bpr_service.runtime.model_store import ModelStore
from tests.jobs.fleet import Fleet
from tests.jobs.samples import coco_set, tiny_model
from tests.services import wait_for

pytestmark = pytest.mark.slow

TRAINER = (sys.executable, str(Path(__file__).with_name("stand_in_trainer.py")))


class TrainFleet(Fleet):
    def __init__(self, root: Path, database: str) -> None:
        super().__init__(root, database)
        self.settings = self.settings.model_copy(update={"trainer": TRAINER})
        self.engine.settings = self.settings
        coco_set(root, 2)
        self.new = tiny_model(root / "new", seed=1)
        self.store = ModelStore(str(root / "models"))

    def train(self, steps: int = 20, **values: Any) -> Job:
        request = {"kind": "train", "name": "mine", "images": "data:images", "ground_truth": "data:ann.json",
                   "predictions": "data:pred.json", "recipe": {"run": {"steps": steps}}}  # fmt: skip
        return self.engine.submit({**request, **values})

    def begin(self, **environment: str) -> Any:
        return self.start(STAND_IN_MODEL=self.new, **environment)

    def trainer_s_worker(self, job_id: str) -> Any:
        """The worker whose child the latest trainer is; any, where that trainer has just ended."""
        pid = self.starts(job_id)[-1][0]
        living = [worker for worker in self.workers if worker.poll() is None]
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return living[0]
        return next((worker for worker in living if worker.pid == parent), living[0])

    def starts(self, job_id: str) -> list[tuple[int, int]]:
        """(process id, first step) of every trainer that was started."""
        path = self.settings.job_folder(job_id) / "run" / "starts.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(a), int(b)) for a, b in (line.split() for line in lines)]

    def steps_done(self, job_id: str) -> int:
        """The step of the last checkpoint; 0 where there is none."""
        checkpoint = self.settings.job_folder(job_id) / "run" / "last.ckpt"
        return int(checkpoint.read_text()) if checkpoint.exists() else 0


@pytest.fixture(params=["sqlite", "postgres"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TrainFleet]:
    fleet = TrainFleet(tmp_path, request.getfixturevalue("postgres_url") if request.param == "postgres" else "")
    yield fleet
    fleet.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[TrainFleet]:
    fleet = TrainFleet(tmp_path, "")
    yield fleet
    fleet.close()


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except (FileNotFoundError, ProcessLookupError):  # gone before the file was opened, or while it was read
        return False
    return state != "Z"


def _past(fleet: TrainFleet, step: int, job: Job) -> bool:
    return job.ended_for_good or fleet.steps_done(job.id) >= step


def test_killed_three_times_it_registers_one_version(fleet: TrainFleet) -> None:
    for _ in range(1 if fleet.settings.on_sqlite else 2):
        fleet.begin()
    job = fleet.train(steps=150)
    rng = random.Random(2)
    for _ in range(3):
        at = fleet.steps_done(job.id) + rng.randint(1, 20)
        fleet.wait(job.id, partial(_past, fleet, at))
        for worker in [w for w in fleet.workers if w.poll() is None]:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        wait_for("the trainer dies with its worker", lambda: not any(lives(pid) for pid, _ in fleet.starts(job.id)))
        for _ in range(1 if fleet.settings.on_sqlite else 2):
            fleet.begin()
    done = fleet.wait(job.id)
    assert done.state == "done", done.message
    firsts = [first for _, first in fleet.starts(job.id)]
    assert firsts == sorted(firsts)
    assert len(firsts) >= 2
    assert firsts[-1] > 0  # from a checkpoint
    (version,) = fleet.store.list("mine")
    assert done.result is not None
    assert done.result["version"] == version.ref
    assert version.aliases == ("candidate",)
    assert version.provenance["job"] == job.id
    assert version.provenance["recipe"]["run"] == {"steps": 150}
    assert len(version.provenance["data"]["ground_truth"]) == 64
    assert "progress" in fleet.engine.log(job.id)
    assert done.progress["done"] == done.progress["total"] == 150


def held_out() -> dict[str, str]:
    return {"images": "data:images", "ground_truth": "data:ann.json", "predictions": "data:pred.json"}


@pytest.mark.parametrize(("figure", "promoted"), [("0.6", True), ("0.5", False)])
def test_promotion_by_rule(figure: str, promoted: bool, local: TrainFleet) -> None:
    active = local.store.activate(local.store.add(str(local.root / "model"), "mine").ref)
    local.begin(STAND_IN_FIGURE=figure)
    job = local.train(held_out=held_out(), promote_if_better=True)
    done = local.wait(job.id)
    assert done.state == "done", done.message
    assert done.result is not None
    comparison = done.result["comparison"]
    assert comparison["measure"] == "boundary_AP"
    assert (comparison["before_figure"], comparison["candidate_figure"]) == (0.5, float(figure))
    assert comparison["active"] == active.ref
    assert set(comparison["figures"]) == {"coarse", "candidate", "active"}
    version = local.store.get(done.result["version"])
    assert done.result["promoted"] is promoted
    assert local.store.get("mine").id == (version.id if promoted else active.id)
    assert version.provenance["parent"] == active.ref
    assert version.provenance["comparison"]["better"] is promoted
    if promoted:
        assert local.store.rollback("mine").id == active.id


def test_it_is_compared_with_what_is_active_whatever_it_starts_from(local: TrainFleet) -> None:
    parent = local.store.add(tiny_model(local.root / "other", seed=2), "mine")
    active = local.store.activate(local.store.add(str(local.root / "model"), "mine").ref)
    local.begin(STAND_IN_FIGURE="0.6")
    job = local.train(parent=parent.ref, held_out=held_out(), promote_if_better=True)
    done = local.wait(job.id)
    assert done.result is not None, done.message
    assert done.result["comparison"]["active"] == active.ref
    assert local.store.get(done.result["version"]).provenance["parent"] == parent.ref
    assert local.store.rollback("mine").id == active.id


def test_cancel_kills_the_whole_group_and_resume_goes_on(local: TrainFleet) -> None:
    local.begin()
    job = local.train(steps=200)
    local.wait(job.id, lambda job: job.progress.get("done", 0) > 5)
    local.engine.cancel(job.id)
    (pid, _), *_ = local.starts(job.id)
    wait_for("it is killed", lambda: not lives(pid))
    assert local.store.list() == []
    local.engine.resume(job.id)
    assert local.wait(job.id).state == "done"
    assert local.starts(job.id)[-1][1] > 5


def test_a_trainer_that_fails_says_why(local: TrainFleet) -> None:
    local.begin(STAND_IN_FAILS="1")
    job = local.train()
    failed = local.wait(job.id)
    assert failed.state == "failed"
    assert "exit code 1" in failed.message
    assert "out of luck at step 3" in failed.message
    assert local.store.list() == []


def test_images_that_cannot_be_read_are_left_out_and_counted(local: TrainFleet) -> None:
    local.begin(STAND_IN_SKIPS="1")
    patch = {"patch_size_px": 32, "padding_px": 8, "network_size_px": 48}
    done = local.wait(local.train(recipe={"run": {"steps": 2}, "patch": patch}).id)
    assert done.state == "done", done.message
    assert done.result is not None
    provenance = local.store.get(done.result["version"]).provenance
    assert provenance["patches"] == {"patches": 2, "images": 2, "images_skipped": 1}
    assert "--patch-size-px 32 --padding-px 8" in local.engine.log(done.id)


def test_a_patch_set_that_was_not_built_fails_the_job(local: TrainFleet) -> None:
    local.begin(STAND_IN_SKIPS="2")
    failed = local.wait(local.train().id)
    assert failed.state == "failed"
    assert "no patch set was built" in failed.message


def test_cancelling_ends_the_measuring_too(local: TrainFleet) -> None:
    pid_file = local.root / "pid"
    local.begin(STAND_IN_SLOW=str(pid_file))
    job = local.train(steps=2, held_out=held_out())
    local.wait(job.id, lambda job: pid_file.exists() and pid_file.read_text() != "")
    pid = int(pid_file.read_text())
    local.engine.cancel(job.id)
    wait_for("it is killed", lambda: not lives(pid))
    assert local.store.list() == []


def test_what_a_run_starts_from(local: TrainFleet) -> None:
    """The parent, where the recipe has no network or the job names one; else nothing."""
    local.begin()
    active = local.store.activate(local.store.add(str(local.root / "model"), "mine").ref)
    own = {"network": {"name": "light_unet_s"}, "run": {"steps": 1}}
    jobs = [local.train(steps=1), local.train(recipe=own), local.train(recipe=own, parent=active.ref)]
    networks = []
    for job in jobs:
        assert local.wait(job.id).state == "done"
        config = yaml.safe_load((local.settings.job_folder(job.id) / "config.yaml").read_text())
        networks.append(config["network"].get("start_from"))
    folder = local.store.fetch(active.ref)
    assert networks == [folder, None, folder]


@pytest.mark.parametrize("limit", ["time_limit_s", "disk_limit_mb"])
def test_limits(limit: str, local: TrainFleet) -> None:
    local.begin()
    job = local.train(steps=2000, **{limit: 0.5 if limit == "time_limit_s" else 0.0001})
    failed = local.wait(job.id)
    assert failed.state == "failed"
    assert f"past its {limit}" in failed.message
    assert not any(lives(pid) for pid, _ in local.starts(job.id))


def test_a_trainer_opens_files_in_the_roots_alone(local: TrainFleet) -> None:
    local.begin()
    job = local.train(steps=2000)
    local.wait(job.id, lambda _: bool(local.starts(job.id)))
    variables = Path(f"/proc/{local.starts(job.id)[-1][0]}/environ").read_bytes().split(b"\0")
    (confined,) = [text for text in variables if text.startswith(b"BPR_CONFINED=")]
    assert str(local.root).encode() in confined
    local.engine.cancel(job.id)


def test_what_is_refused_at_once(local: TrainFleet) -> None:
    with pytest.raises(UnknownName, match=r"checkpoint_every.*'recipe\.run\.typo'"):
        local.train(recipe={"run": {"typo": 1}})
    with pytest.raises(UnknownName, match=r"optim.*'recipe\.typo'"):
        local.train(recipe={"typo": {}})
    with pytest.raises(ConfigError, match=r"recipe\.run: expected input should be"):
        local.train(recipe={"run": 3})
    with pytest.raises(UnknownName, match=r"arguments.*'recipe\.network\.start_from'"):
        local.train(recipe={"network": {"name": "light_unet_s", "start_from": "/outside/the/roots"}})
    with pytest.raises(ConfigError, match=r"recipe\.patch\.scheme: expected dense"):
        local.train(recipe={"patch": {"scheme": "grid"}})
    with pytest.raises(ConfigError, match=r"held_out\.classes: expected the number of classes"):
        local.train(task="semantic", held_out=held_out())
    with pytest.raises(ConfigError, match="panoptic_dir: expected the folder"):
        local.train(task="panoptic")
    with pytest.raises(ConfigError, match=r"held_out\.panoptic_dir: expected the folder"):
        local.train(task="panoptic", panoptic_dir="data:images", held_out=held_out())
    with pytest.raises(ConfigError, match="promote_if_better: expected held_out"):
        local.train(promote_if_better=True)
    with pytest.raises(NotFoundError):
        local.train(parent="mine@0123")
    with pytest.raises(ConfigError, match="name"):
        local.train(name="../x")


def test_the_recipe_is_the_trainer_s() -> None:
    from bpr_service.recipe import Recipe
    from refiner_training.config import TrainConfig

    recipe = {"optim": {"lr": 0.5}, "run": {"steps": 3}, "network": {"name": "light_unet_m"}}
    whole = TrainConfig.model_validate({**recipe, "name": "a", "data": {"kind": "patches", "patches": "p"}})
    assert issubclass(TrainConfig, Recipe)
    assert Recipe.model_validate(recipe).model_dump() == {
        section: {key: value for key, value in values.items() if key not in ("start_from", "encoder_weights")}
        for section, values in whole.model_dump().items()
        if section in Recipe.model_fields
    }


def test_a_child_dies_with_its_parent() -> None:
    import subprocess

    sleeper = "import os, subprocess, sys, time\n" \
              "child = subprocess.Popen([sys.executable, '-m', 'bpr_service.jobs.train.child', str(os.getpid())," \
              " 'sleep', '60'])\nprint(child.pid, flush=True)\ntime.sleep(60)"  # fmt: skip
    parent = subprocess.Popen([sys.executable, "-c", sleeper], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    wait_for("it is the command", lambda: Path(f"/proc/{pid}/comm").read_text().strip() == "sleep")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for("it dies with its parent", lambda: not lives(pid))
