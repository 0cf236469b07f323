"""Pictures and predictions on object storage: asked for ahead, listed by prefix, and a store that refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bpr_service import storage
from bpr_service.errors import NotFoundError, StorageError
from bpr_service.jobs.refine.batch import Batch, run_batch
from bpr_service.jobs.requests import RefineRequest
from tests.jobs.samples import coco_set, panoptic_set, semantic_set

Door = Callable[[Callable[[dict[str, Any]], bool]], None]
SETS = {"instance": coco_set, "semantic": semantic_set, "panoptic": panoptic_set}


def uploaded(request: RefineRequest, s3: str, out: str) -> RefineRequest:
    """The request with its images and predictions in the bucket."""
    root = Path(request.images).parent
    for path in root.rglob("*"):
        if path.is_file() and "model" not in path.parts and not path.is_relative_to(request.out):
            storage.copy(str(path), f"{s3}/data/{path.relative_to(root)}")
    names = ("images", "predictions", "dataset", "panoptic_dir")
    moved = {name: f"{s3}/data/{Path(value).name}" for name in names if (value := getattr(request, name))}
    return request.with_options(**moved, out=out)


def files(out: str) -> dict[str, bytes]:
    path = Path(out)
    return {p.name: p.read_bytes() for p in (path.iterdir() if path.is_dir() else [path])}


@pytest.mark.parametrize("task", SETS)
def test_every_task_reads_its_input_by_prefix(task: str, tmp_path: Path, s3: str) -> None:
    request = SETS[task](tmp_path, 3)
    run_batch(request, Batch(workers=0))
    remote = uploaded(request, s3, str(tmp_path / "again"))
    run_batch(remote, Batch(workers=1))
    assert sorted(files(remote.out).values()) == sorted(files(request.out).values())


def test_pictures_are_asked_for_ahead(tmp_path: Path, s3: str, s3_door: Door) -> None:
    """Requests for eight pictures are in flight at once: the store answers none of them before."""
    request = coco_set(tmp_path, 16)
    run_batch(request, Batch(workers=0))
    remote = uploaded(request, s3, str(tmp_path / "again.json"))
    asked, eight = list[str](), threading.Event()

    def door(environ: dict[str, Any]) -> bool:
        if not environ["PATH_INFO"].endswith(".png"):
            return True
        asked.append(environ["PATH_INFO"])
        if len(asked) >= 8:
            eight.set()
        return eight.wait(60)

    s3_door(door)
    run_batch(remote, Batch(workers=1))
    assert len(asked) == len(set(asked)) == 16, "one request a picture"
    assert Path(remote.out).read_bytes() == Path(request.out).read_bytes()


@pytest.mark.parametrize("task", ["instance", "semantic"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bucket_that_refuses_ends_the_run_and_says_so(
    task: str, workers: int, tmp_path: Path, s3: str, s3_door: Door
) -> None:
    """Where it is listed, and where a picture is read: no image is called failed for it, and nothing is written."""
    request = SETS[task](tmp_path, 2)
    remote = uploaded(request, s3, str(tmp_path / "out")).with_options(
        predictions=request.predictions, dataset=request.dataset
    )
    s3_door(lambda environ: not environ["PATH_INFO"].startswith(f"/{s3[5:]}"))
    with pytest.raises(StorageError, match=r"images.*the store refuses: .*(Forbidden|Access Denied)"):
        run_batch(remote, Batch(workers=workers))
    assert not Path(remote.out).exists()


def test_a_bucket_that_refuses_the_result_is_named(s3: str, s3_door: Door) -> None:
    s3_door(lambda environ: environ["REQUEST_METHOD"] not in ("PUT", "DELETE"))
    with pytest.raises(StorageError, match=r"out\.json: the store refuses"):
        storage.write_bytes(f"{s3}/out.json", b"[]")
    with pytest.raises(StorageError, match=r"old\.json: the store refuses"):
        storage.remove(f"{s3}/old.json")


def test_a_bucket_that_is_not_there_is_named(tmp_path: Path, s3: str) -> None:
    request = coco_set(tmp_path, 1).with_options(predictions=f"{s3}-none/pred.json", out=str(tmp_path / "o.json"))
    with pytest.raises(NotFoundError, match=r"-none/pred.json"):
        run_batch(request, Batch(workers=0))
