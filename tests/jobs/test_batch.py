from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpr_service import storage
from bpr_service.errors import ConfigError, ConflictError, FormatError, NotFoundError
from bpr_service.jobs.refine.batch import Batch, run_batch
from bpr_service.jobs.refine.journal import PartWriter, part_name, read_frames, sealed
from bpr_service.jobs.refine.loader_process import RefinerSpec
from bpr_service.jobs.refine.loaders import RefinerPool
from bpr_service.jobs.refine.place import Place
from bpr_service.jobs.refine.plan import open_file
from bpr_service.jobs.requests import RefineRequest
from bpr_service.masks.mask import Mask, read_label_map, read_panoptic_png
from tests.jobs.samples import SETTINGS, coco_set, panoptic_set, semantic_set
from tests.services import wait_for

pytestmark = pytest.mark.slow

IN_PROCESS = Batch(workers=0)


def tree(path: str) -> dict[str, bytes]:
    root = Path(path)
    if root.is_file():
        return {"": root.read_bytes()}
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def expected_masks(request: RefineRequest) -> dict[int, list[Mask]]:
    """By the plain Refiner, image by image."""
    refiner = RefinerSpec(request.preset, request.model, request.settings).load()
    images = {e["id"]: e["file_name"] for e in json.loads(Path(str(request.dataset)).read_text())["images"]}
    records = json.loads(Path(request.predictions).read_text())
    out = {}
    for image_id, name in images.items():
        masks = [record["segmentation"] for record in records if record["image_id"] == image_id]
        out[image_id] = refiner.refine(Path(request.images, name), masks).masks
    return out


def test_instances_are_what_the_refiner_gives(tmp_path: Path) -> None:
    request = coco_set(tmp_path, 6)
    result = run_batch(request, Batch(workers=0, report=str(tmp_path / "report.json")))
    before, after = (json.loads(Path(p).read_text()) for p in (request.predictions, request.out))
    expected = expected_masks(request)
    seen = dict.fromkeys(expected, 0)
    for old, new in zip(before, after, strict=True):
        mask = expected[new["image_id"]][seen[new["image_id"]]]
        seen[new["image_id"]] += 1
        assert new["segmentation"] == mask.to_rle()
        assert new["bbox"] == mask.bbox
        kept = ("image_id", "category_id", "score", "note")
        assert [new[key] for key in kept] == [old[key] for key in kept]
    assert result.exit_code == 0
    assert result.totals.refined + sum(result.totals.unchanged.values()) == 12
    assert result.totals.refined > 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["images"] == len(report["units"]) == 6
    assert 0 < report["network_busy_share"] <= 1
    assert not Path(f"{request.out}.bpr-work").exists()


@pytest.mark.parametrize("make", [coco_set, semantic_set, panoptic_set])
def test_loaders_give_the_same_bytes(make: Callable[[Path, int], RefineRequest], tmp_path: Path) -> None:
    request = make(tmp_path, 5)
    run_batch(request, IN_PROCESS)
    alone = tree(request.out)
    other = request.with_options(out=f"{request.out}2")
    result = run_batch(other, Batch(workers=2))
    assert tree(other.out) == alone
    assert result.busy.patches == result.totals.patches > 0


def test_semantic_keeps_what_is_ignored(tmp_path: Path) -> None:
    request = semantic_set(tmp_path, 3)
    result = run_batch(request, IN_PROCESS)
    assert result.totals.changed_px > 0
    for i in range(3):
        old, new = (read_label_map(Path(folder, f"{i}.png")) for folder in (request.predictions, request.out))
        np.testing.assert_array_equal(new == 255, old == 255)


def test_panoptic_ids_agree(tmp_path: Path) -> None:
    request = panoptic_set(tmp_path, 3)
    run_batch(request, IN_PROCESS)
    data = json.loads(Path(request.out, "panoptic.json").read_text())
    assert data["info"] == {}
    for annotation in data["annotations"]:
        ids = read_panoptic_png(Path(request.out, annotation["file_name"]))
        assert set(np.unique(ids).tolist()) - {0} == {info["id"] for info in annotation["segments_info"]}
        assert sum(info["area"] for info in annotation["segments_info"]) == np.count_nonzero(ids)


def test_bad_items_are_named_and_the_others_go_on(tmp_path: Path) -> None:
    request = coco_set(tmp_path, 6)
    records = json.loads(Path(request.predictions).read_text())
    records[1]["image_id"] = 77
    records[2]["segmentation"] = {"size": [72, 96], "counts": [1]}
    Path(request.predictions).write_text(json.dumps(records))
    (tmp_path / "images" / "3.png").unlink()
    data = (tmp_path / "images" / "4.png").read_bytes()
    (tmp_path / "images" / "4.png").write_bytes(data[: len(data) // 2])
    result = run_batch(request, Batch(workers=1, report=str(tmp_path / "report.json")))
    assert result.exit_code == 1
    failed = "\n".join(json.loads((tmp_path / "report.json").read_text())["failed"])
    assert "image_id 77 is not in" in failed
    assert "record 2 (byte" in failed
    assert "do not add up" in failed
    assert "3.png" in failed
    assert "4.png" in failed
    after = json.loads(Path(request.out).read_text())
    assert len(after) == len(records)
    for position in (1, 2, 3, 4, 9, 10):  # as they were
        assert after[position] == records[position]
    assert after[0]["segmentation"] != records[0]["segmentation"]


def test_nothing_is_written_for_a_broken_file(tmp_path: Path) -> None:
    request = coco_set(tmp_path, 3)
    path = Path(request.predictions)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(FormatError, match="broken JSON at byte"):
        run_batch(request, IN_PROCESS)
    assert not Path(request.out).exists()
    with pytest.raises(NotFoundError):
        run_batch(request.with_options(predictions=str(tmp_path / "none.json")), IN_PROCESS)


def test_resume_after_kill(tmp_path: Path) -> None:
    request = coco_set(tmp_path, 24)
    run_batch(request, IN_PROCESS)
    expected = tree(request.out)
    other = request.with_options(out=str(tmp_path / "again.json"))
    script = (
        "import sys; from bpr_service.jobs.refine.batch import *; from bpr_service.jobs.requests import *\n"
        "run_batch(parse_request(json.loads(sys.argv[1])), Batch(workers=1))"
    )
    command = [sys.executable, "-c", f"import json; {script}", other.model_dump_json()]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    work = Path(f"{other.out}.bpr-work")
    wait_for("six are done", lambda: count_done(work) >= 6, pause_s=0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = count_done(work)
    assert done >= 6
    result = run_batch(other, Batch(workers=0, resume=True))
    assert result.images == 24 - done
    assert tree(other.out) == expected


def count_done(work: Path) -> int:
    count = 0
    for path in [*work.glob("*.journal"), *work.glob("*.bprs")]:
        try:
            with path.open("rb") as file:
                count += sum(1 for _ in read_frames(file))
        except FileNotFoundError:
            continue
    return count


def test_resume_with_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = coco_set(tmp_path, 3)
    monkeypatch.setattr(
        "bpr_service.jobs.refine.batch.put_together", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        run_batch(request, IN_PROCESS)
    monkeypatch.undo()
    other = request.with_options(settings={**SETTINGS, "nms_threshold": 0.5})
    with pytest.raises(ConflictError, match="other inputs or settings"):
        run_batch(other, Batch(workers=0, resume=True))
    assert run_batch(request, Batch(workers=0, resume=True)).images == 0


def test_a_damaged_journal_loses_only_its_tail(tmp_path: Path) -> None:
    request = coco_set(tmp_path, 4)
    with RefinerPool(RefinerSpec(request.preset, request.model, request.settings)) as pool:
        file = open_file(request)
        outcomes = list(pool.run(file, file.scan()))
    place = Place(str(tmp_path / "run"))
    writer = PartWriter(place, 0)
    for outcome in outcomes[:3]:
        writer.add(outcome)
    writer.close()
    data = writer.path.read_bytes()
    writer.path.write_bytes(data[:-10])  # killed in the middle of a write
    again = PartWriter(place, 0)
    assert again.done == {0, 1}
    for outcome in outcomes[2:]:
        again.add(outcome)
    again.finish()
    path = tmp_path / "run" / part_name(0)
    assert sealed(place, 0)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    assert not sealed(place, 0)


def test_images_and_result_on_s3(tmp_path: Path, s3: str) -> None:
    request = coco_set(tmp_path, 3)
    run_batch(request, IN_PROCESS)
    for path in (tmp_path / "images").iterdir():
        storage.copy(str(path), f"{s3}/data/images/{path.name}")
    for name in ("pred.json", "ann.json"):
        storage.copy(str(tmp_path / name), f"{s3}/data/{name}")
    remote = request.with_options(
        images=f"{s3}/data/images",
        predictions=f"{s3}/data/pred.json",
        dataset=f"{s3}/data/ann.json",
        out=f"{s3}/data/out.json",
    )
    with pytest.raises(ConfigError, match="--work"):
        run_batch(remote, IN_PROCESS)
    run_batch(remote, Batch(workers=1, work=str(tmp_path / "work")))
    assert storage.read_bytes(remote.out) == Path(request.out).read_bytes()


def test_figures_before_and_after(tmp_path: Path) -> None:
    request = coco_set(tmp_path, 2)
    stand_in = tmp_path / "trainer.py"
    stand_in.write_text("import json, sys; print(json.dumps({'argv': sys.argv[1:]}))")
    trainer = [sys.executable, str(stand_in)]
    truth = tmp_path / "gt.json"
    truth.write_text("{}")
    options = Batch(workers=0, report=str(tmp_path / "report.json"), ground_truth=str(truth))
    run_batch(request, options, trainer)
    figures: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())["figures"]
    command = ["evaluate", "instance", "--dataset", str(truth), "--predictions"]
    assert figures["before"]["argv"] == [*command, request.predictions, "--json"]
    assert figures["after"]["argv"] == [*command, request.out, "--json"]
    run_batch(request, options, ["/no/such/trainer"])
    figures = json.loads((tmp_path / "report.json").read_text())["figures"]
    assert "install bpr-service" in figures["after"]["error"]
    with pytest.raises(ConfigError, match="--truth: expected --report"):
        run_batch(request, Batch(workers=0, ground_truth=str(truth)), trainer)
    with pytest.raises(NotFoundError, match="--truth: expected a file or folder"):
        run_batch(request, replace(options, ground_truth=str(tmp_path / "none.json")), trainer)
    with pytest.raises(ConfigError, match="--classes"):
        run_batch(semantic_set(tmp_path / "s", 1), Batch(workers=0, ground_truth=str(tmp_path)))


def test_the_command(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from bpr_service.jobs.batch_commands import batch

    request = coco_set(tmp_path, 2)
    arguments = ["instance", "--images", request.images, "--predictions", request.predictions, "--workers", "0"]
    arguments += ["--dataset", str(request.dataset), "--out", request.out, "--model", str(request.model)]
    arguments += [f"--set={name}={value}" for name, value in SETTINGS.items()]
    done = CliRunner().invoke(batch, arguments)
    assert done.exit_code == 0, done.output
    assert "2 images" in done.stdout
    assert done.stderr == ""  # no bar where it is no terminal
    (tmp_path / "images" / "1.png").unlink()
    done = CliRunner().invoke(batch, arguments)
    assert done.exit_code == 1
    assert "failed" in done.stderr
