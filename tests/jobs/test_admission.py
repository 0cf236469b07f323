"""What a job may ask for, who owns it, and what is removed of it: no worker runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from bpr_service.cli import app
from bpr_service.errors import ConfigError, ConflictError, ForbiddenError, LimitError, NotFoundError, NotReadyError
from bpr_service.jobs.engine import JobEngine
from bpr_service.jobs.requests import HeldOut
from bpr_service.jobs.roots import Roots
from bpr_service.jobs.settings import JobSettings, Promotion, Root
from bpr_service.jobs.tables import jobs

REFINE = {"kind": "refine", "task": "semantic", "images": "data:i", "predictions": "data:p", "out": "data:o"}
TRAIN = {"kind": "train", "name": "mine", "images": "data:i", "ground_truth": "data:g"}
OURS = {"images": "data:ours", "ground_truth": "data:ours.json", "predictions": "data:coarse.json"}


@pytest.fixture
def settings(tmp_path: Path) -> JobSettings:
    for name in ("i", "p"):
        (tmp_path / name).mkdir()
    roots: Any = {"data": {"path": str(tmp_path)}}
    return JobSettings(folder=str(tmp_path / "jobs"), roots=roots, models=str(tmp_path / "models"))


@pytest.fixture
def engine(settings: JobSettings) -> Iterator[JobEngine]:
    engine = JobEngine(settings)
    yield engine
    engine.close()


def limited(engine: JobEngine, **values: Any) -> JobEngine:
    engine.settings = engine.settings.model_copy(update=values)
    return engine


def test_jobs_have_owners(engine: JobEngine) -> None:
    ann = engine.submit(REFINE, owner="ann")
    assert ann.owner == "ann"
    assert engine.submit(REFINE, owner="ann").id == ann.id
    with pytest.raises(ConflictError, match="no other owner's job"):
        engine.submit(REFINE, owner="ben")
    ben = engine.submit({**REFINE, "out": "data:ben"}, owner="ben")
    assert [job.id for job in engine.list(owner="ann")] == [ann.id]
    assert {job.id for job in engine.list()} == {ann.id, ben.id}
    with pytest.raises(ConflictError, match="another request") as taken:
        engine.submit({**REFINE, "out": "data:x"}, ann.id, owner="ben")
    assert "data:o" not in str(taken.value)
    same = {**REFINE, "out": "data:y"}
    assert engine.submit(same, owner="cid").id != JobEngine.submit(engine, {**same, "out": "data:z"}, owner="dan").id


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({**REFINE, "settings": {"max_pixels": 10**12}}, "BPR_JOBS_MAX_PIXELS"),
        ({**TRAIN, "recipe": {"run": {"steps": 10**9}}}, "BPR_JOBS_MAX_STEPS"),
        ({**TRAIN, "recipe": {"run": {"workers": 100_000}}}, "BPR_JOBS_MAX_LOADERS"),
        ({**TRAIN, "recipe": {"run": {"threads": 100_000}}}, "BPR_JOBS_MAX_LOADERS"),
        ({**TRAIN, "recipe": {"run": {"steps": "1000000000"}}}, "BPR_JOBS_MAX_STEPS"),
        ({**REFINE, "settings": {"max_pixels": "1000000000000"}}, "BPR_JOBS_MAX_PIXELS"),
        ({**TRAIN, "recipe": {"run": {"batch_size": 10**9}}}, "BPR_JOBS_MAX_BATCH_SIZE"),
        ({**TRAIN, "recipe": {"network": {"arguments": {"widths": [32, 10**6]}}}}, "BPR_JOBS_MAX_WIDTH"),
        ({**TRAIN, "recipe": {"run": {"steps": "9" * 400}}}, "BPR_JOBS_MAX_STEPS"),
        ({**TRAIN, "time_limit_s": 1e15}, "BPR_JOBS_MAX_TIME_LIMIT_S"),
        ({**TRAIN, "disk_limit_mb": 1e15}, "BPR_JOBS_MAX_DISK_LIMIT_MB"),
    ],
)
def test_ceilings(values: dict[str, Any], named: str, engine: JobEngine) -> None:
    with pytest.raises(LimitError, match=named):
        engine.submit(values)
    assert engine.list() == []


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "values",
    [
        {**TRAIN, "recipe": {"network": {"arguments": {"a": nested(300)}}}},
        {**TRAIN, "recipe": {"network": {"arguments": {"a": 10**400}}}},
        {**TRAIN, "recipe": {"network": {"arguments": {"a": float("nan")}}}},
        {**REFINE, "images": "data:a\0b"},
        {**REFINE, "images": "data:\ud800"},
        {**REFINE, "settings": {"\ud800": 1}},
    ],
)
def test_what_no_database_keeps_is_refused(values: dict[str, Any], engine: JobEngine) -> None:
    with pytest.raises(ConfigError, match="the request of a job"):
        engine.submit(values)
    assert engine.list() == []


def test_what_is_given_back_is_opened_beneath_its_root(engine: JobEngine, tmp_path: Path) -> None:
    job = engine.submit({**REFINE, "out": "data:o.json"})
    (tmp_path / "o.json").write_text("[]")
    done = dataclasses.replace(job, result={"out": "data:o.json"})
    with engine.open_out(done) as file:
        assert file.read() == b"[]"
    (tmp_path / "o.json").unlink()
    (tmp_path / "o.json").symlink_to("/etc/hostname")
    with pytest.raises(ForbiddenError):
        engine.open_out(done)


def test_a_quota_for_each_owner(engine: JobEngine) -> None:
    limited(engine, max_queued=2)
    first = engine.submit(REFINE, owner="ann")
    engine.submit({**REFINE, "out": "data:2"}, owner="ann")
    with pytest.raises(LimitError, match="BPR_JOBS_MAX_QUEUED"):
        engine.submit({**REFINE, "out": "data:3"}, owner="ann")
    engine.submit({**REFINE, "out": "data:4"}, owner="ben")
    engine.cancel(first.id)
    engine.submit({**REFINE, "out": "data:3"}, owner="ann")


def test_promotion_needs_leave(engine: JobEngine) -> None:
    wish = {**TRAIN, "promote_if_better": True, "held_out": {**OURS, "images": "data:theirs"}}
    with pytest.raises(ForbiddenError, match="scope admin"):
        engine.submit(wish, may_promote=False)
    assert engine.submit(wish, may_promote=True).request["held_out"]["images"] == "data:theirs"
    limited(engine, promotion=Promotion(names=("mine",), held_out=HeldOut.model_validate(OURS)))
    job = engine.submit(wish, "by-rule", may_promote=False)
    assert job.request["held_out"]["images"] == "data:ours"
    with pytest.raises(ForbiddenError):
        engine.submit({**wish, "name": "other"}, may_promote=False)


class BrokenError(Exception):
    """The fault between the two."""


def broken(*_: Any) -> None:
    raise BrokenError


def test_a_fault_between_row_and_queue_leaves_neither(engine: JobEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine.client, "enqueue_in_transaction", broken)
        with pytest.raises(BrokenError):
            engine.submit(REFINE, "job")
    with pytest.raises(NotFoundError):
        engine.get("job")
    engine.submit(REFINE, "job")
    engine.cancel("job")
    with monkeypatch.context() as patch:
        patch.setattr(engine.client, "enqueue_in_transaction", broken)
        with pytest.raises(BrokenError):
            engine.resume("job")
    assert (engine.get("job").state, engine.get("job").attempt) == ("cancelled", 1)
    assert (engine.resume("job").state, engine.get("job").attempt) == ("queued", 2)


def end(engine: JobEngine, job_id: str, ago_s: float) -> None:
    engine.cancel(job_id)
    folder = engine.settings.job_folder(job_id)
    folder.mkdir(parents=True)
    (folder / "plan.json").write_bytes(bytes(1000))
    with engine.database.engine.begin() as c:
        c.execute(sa.update(jobs).where(jobs.c.id == job_id).values(ended=engine.database.now - ago_s))


def test_old_jobs_are_removed_with_all_they_left(engine: JobEngine, tmp_path: Path) -> None:
    for name in ("old", "old.2", "new", "open"):
        engine.submit({**REFINE, "out": f"data:{name}"}, name)
    engine.database.start_part("old", 0, 4, 4)
    end(engine, "old", 1000)
    end(engine, "old.2", 10)
    end(engine, "new", 1)
    assert engine.prune(older_than_s=100) == ["old"]
    assert {job.id for job in engine.list()} == {"old.2", "new", "open"}
    assert not engine.settings.job_folder("old").exists()
    assert engine.database.sum_parts("old") == (0, 0)
    assert engine.database.workflows_of("old:") == []
    assert engine.database.workflows_of("old.2:") == ["old.2:1"]
    assert engine.prune(older_than_s=100, keep_bytes=1500) == ["old.2"]
    assert engine.prune(older_than_s=100, keep_bytes=1500) == []
    assert engine.get("open").state == "queued"
    assert engine.submit({**REFINE, "out": "data:old"}, "old").state == "queued"


def test_the_prune_command(engine: JobEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.submit(REFINE, "old")
    end(engine, "old", 3 * 86_400)
    monkeypatch.setenv("BPR_JOBS_FOLDER", engine.settings.folder)
    assert "0 jobs removed" in CliRunner().invoke(app, ["jobs", "prune", "--older-than", "4"]).output
    assert "1 jobs removed\n  old\n" in CliRunner().invoke(app, ["jobs", "prune", "--older-than", "2"]).output


def test_a_damaged_row_hides_no_other(engine: JobEngine) -> None:
    engine.submit(REFINE, "good")
    engine.submit({**REFINE, "out": "data:2"}, "bad")
    with engine.database.engine.begin() as c:
        c.execute(sa.update(jobs).where(jobs.c.id == "bad").values(request="{"))
    assert {job.id: job.message for job in engine.list()} == {
        "good": "",
        "bad": "its row is damaged: the request is no JSON",
    }


def test_the_database_s_place_is_not_told(tmp_path: Path) -> None:
    settings = JobSettings(database="postgresql://somebody@127.0.0.1:9/none", folder=str(tmp_path))
    with pytest.raises(NotReadyError) as away:
        JobEngine(settings, patience_s=0.0).list()
    assert not any(word in str(away.value) for word in ("127.0.0.1", "somebody", "port"))


def test_a_table_of_an_earlier_release_gets_its_columns(settings: JobSettings) -> None:
    engine = JobEngine(settings)
    old = sa.Table(jobs.name, sa.MetaData(), *(c._copy() for c in jobs.columns if c.name not in ("owner", "out")))
    old.create(engine.database.engine)
    assert engine.submit(REFINE, owner="ann").owner == "ann"
    engine.close()


def test_callers_read_no_path_of_this_machine(tmp_path: Path) -> None:
    roots = Roots(
        {"data": Root(path=f"{tmp_path}/"), "deep": Root(path=str(tmp_path / "i")), "s": Root(path="s3://b/p")}
    )
    said = (
        f"{tmp_path}/i/a.png, {tmp_path}/p.json; {tmp_path}: s3://b/p/x, '/usr/lib/x.so' at /images/0, 1/2 of s3://c/p"
    )
    assert roots.outward(said) == "deep:a.png, data:p.json; data:: s:x, 'x.so' at /images/0, 1/2 of s3://c/p"
