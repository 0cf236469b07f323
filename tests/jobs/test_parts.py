"""Plan, parts and merge: any number of tasks on any machines give the bytes of one process."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from bpr_service import storage
from bpr_service.errors import ConfigError, ConflictError, FormatError, ModelError, StorageError
from bpr_service.formats.records.result_parts import read_results
from bpr_service.jobs.refine import merge, plan
from bpr_service.jobs.refine.batch import Batch, run_batch
from bpr_service.jobs.refine.journal import part_name, read_frames
from bpr_service.jobs.refine.place import Place
from bpr_service.jobs.requests import RefineRequest
from tests.jobs.samples import coco_set, semantic_set, tiny_model

IMAGES = 7


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[RefineRequest, bytes]:
    """A request with parts of two images, and the bytes of its result."""
    request = coco_set(tmp_path_factory.mktemp("parts"), IMAGES).with_options(part_images=2)
    run_batch(request, Batch(workers=0))
    return request, Path(request.out).read_bytes()


def refine(request: RefineRequest, work: str, *shares: tuple[int, int]) -> int:
    """Images refined by these shares."""
    return sum(run_batch(request, Batch(workers=0, work=work, part=share)).images for share in shares)


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_shares_put_together_are_the_whole(
    where: str, done: tuple[RefineRequest, bytes], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole, expected = done
    work = str(tmp_path / "work") if where == "folder" else f"{request.getfixturevalue('s3')}/runs/first"
    again = whole.with_options(out=str(tmp_path / "out.json"))
    assert refine(again, work, (2, 3), (0, 3)) < IMAGES
    with pytest.raises(ConflictError, match=r"expected every part, each image once, got 1 of 4 parts missing: 1"):
        run_batch(again, Batch(work=work, merge=True))
    assert not Path(again.out).exists()
    assert refine(again, work, (1, 3)) > 0
    assert refine(again, work, (0, 2), (1, 2), (8, 9)) == 0  # another cut of what is done
    report = str(tmp_path / "report.json")
    result = run_batch(again, Batch(work=work, merge=True, report=report))
    assert result.totals is not None
    assert result.totals.images == IMAGES
    assert Path(again.out).read_bytes() == expected
    assert len(json.loads(Path(report).read_text())["units"]) == IMAGES
    Place(work).clear()
    assert storage.list_names(work, "") == []


def test_a_folder_of_files_is_merged_too(tmp_path: Path) -> None:
    request = semantic_set(tmp_path, 3)
    run_batch(request, Batch(workers=0))
    other = request.with_options(out=str(tmp_path / "again"))
    work = str(tmp_path / "work")
    refine(other, work, (0, 2), (1, 2))
    run_batch(other, Batch(work=work, merge=True))
    for path in Path(request.out).iterdir():
        assert (Path(other.out) / path.name).read_bytes() == path.read_bytes()


def test_parts_grow_with_the_run(
    done: tuple[RefineRequest, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MAX_PARTS", 3)
    place, request = Place(str(tmp_path / "work")), done[0]
    made = plan.make_plan(request, plan.open_file(request), place, model=request.model, model_sha256="0" * 64)
    assert (made.units, made.records, made.blocks, made.blocks_per_part, made.parts) == (7, 14, 4, 2, 2)
    assert [[unit.number for unit in made.read(place, part)] for part in range(2)] == [[0, 1, 2, 3], [4, 5, 6]]
    assert list(plan.unit_counts(made, place)) == [(0, 0, 4), (1, 4, 3)]
    for part in (-1, 2):
        with pytest.raises(ConfigError, match="expected a part of the plan: 0 to 1"):
            made.span(place, part)
    assert [list(plan.share(made, i, 3)) for i in range(3)] == [[], [0], [1]]


def test_many_buckets_keep_the_order_of_the_input(
    done: tuple[RefineRequest, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "BUCKET_RECORDS", 3)
    monkeypatch.setattr(merge, "BUFFER_BYTES", 200)
    again = done[0].with_options(out=str(tmp_path / "out.json"))
    run_batch(again, Batch(workers=0))
    assert Path(again.out).read_bytes() == done[1]


def test_a_merge_that_is_killed_is_done_again(done: tuple[RefineRequest, bytes], tmp_path: Path) -> None:
    request, work = done[0].with_options(out=str(tmp_path / "out.json")), str(tmp_path / "work")
    refine(request, work, (0, 1))
    for frame in random.Random(0).sample(range(IMAGES), 3):
        child = os.fork()
        if not child:
            killed_at(frame, request, work)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert not Path(request.out).exists()
    run_batch(request, Batch(work=work, merge=True))
    assert Path(request.out).read_bytes() == done[1]


def killed_at(frame: int, request: RefineRequest, work: str) -> None:
    """Merge, and die with the frame of that number; for a child process."""
    module: Any = merge
    frames, seen = module.read_frames, [frame]

    def dying(journal: object) -> object:
        for one in frames(journal):
            seen[0] -= 1
            if seen[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            yield one

    module.read_frames = dying
    run_batch(request, Batch(work=work, merge=True))
    os._exit(0)


def test_a_damaged_part_is_named_and_done_again(done: tuple[RefineRequest, bytes], tmp_path: Path) -> None:
    request, work = done[0].with_options(out=str(tmp_path / "out.json")), str(tmp_path / "work")
    refine(request, work, (0, 1))
    path = Path(work, part_name(1))
    data = bytearray(path.read_bytes())
    data[-60] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConflictError, match="part 1 without images 3"):
        run_batch(request, Batch(work=work, merge=True))
    assert refine(request, work, (1, 4)) == 2
    run_batch(request, Batch(work=work, merge=True))
    assert Path(request.out).read_bytes() == done[1]


def test_a_part_of_another_plan_is_refused(done: tuple[RefineRequest, bytes], tmp_path: Path) -> None:
    request, work = done[0].with_options(out=str(tmp_path / "out.json")), tmp_path / "work"
    refine(request, str(work), (0, 1))
    (work / part_name(0)).write_bytes((work / part_name(1)).read_bytes())
    with pytest.raises(ConflictError, match="part 0: image 2 too many"):
        run_batch(request, Batch(work=str(work), merge=True))


def test_what_does_not_fit_is_refused(done: tuple[RefineRequest, bytes], tmp_path: Path) -> None:
    request, work = done[0].with_options(out=str(tmp_path / "out.json")), str(tmp_path / "work")
    for options in (Batch(part=(0, 2)), Batch(merge=True)):
        with pytest.raises(ConfigError, match="--part and --merge: expected --work PLACE"):
            run_batch(request, options)
    with pytest.raises(ConfigError, match="expected --part or --merge, got both"):
        run_batch(request, Batch(part=(0, 2), merge=True, work=work))
    with pytest.raises(ConflictError, match="nothing to merge"):
        run_batch(request, Batch(merge=True, work=work))
    for share in ((2, 2), (0, 0)):
        with pytest.raises(ConfigError, match=r"--part: expected I/N with I from 0 to N - 1"):
            refine(request, work, share)
    assert refine(request, work, (0, 2)) > 0
    for other in (request.with_options(ignore_label=3), request.with_options(model=tiny_model(tmp_path / "m", seed=1))):
        with pytest.raises(ConflictError, match="begun with other inputs or settings"):
            refine(other, work, (1, 2))
        with pytest.raises(ConflictError, match="begun with other inputs or settings"):
            run_batch(other, Batch(merge=True, work=work))
    loaded = plan.load_plan(Place(work))
    assert loaded is not None
    with pytest.raises(ModelError, match="this machine has another model than the plan"):
        loaded.check_model("1" * 64)


@pytest.mark.parametrize(("name", "cut"), [("index", 5), ("units", 300)])
def test_a_plan_that_is_cut_off_is_refused(
    name: str, cut: int, done: tuple[RefineRequest, bytes], tmp_path: Path
) -> None:
    place, request = Place(str(tmp_path / "work")), done[0]
    made = plan.make_plan(request, plan.open_file(request), place, model=request.model, model_sha256="0" * 64)
    path = Path(place.at(f"plan-{made.mark}.{name}"))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ConflictError, match=rf"\.{name}: damaged: expected the file as the plan was written"):
        list(made.read(place, made.parts - 1))


def test_a_plan_that_is_no_plan_is_named_on_object_storage(done: tuple[RefineRequest, bytes], s3: str) -> None:
    storage.write_bytes(f"{s3}/run/plan.json", b'{"mark":')
    with pytest.raises(ConflictError, match=r"run/plan\.json: damaged"):
        refine(done[0], f"{s3}/run", (0, 1))


def test_a_place_that_refuses_is_named(done: tuple[RefineRequest, bytes], tmp_path: Path, s3: str) -> None:
    with pytest.raises(StorageError, match=r"work/plan-\w+.units: the store refuses"):
        refine(done[0], f"{s3.replace('bucket', 'nowhere')}-none/work", (0, 1))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="no place for unfinished work"):
        refine(done[0], str(tmp_path / "file" / "work"), (0, 1))


def test_of_two_that_finish_a_part_one_stays(s3: str, tmp_path: Path) -> None:
    place = Place(f"{s3}/twice/run")
    place.prepare()
    for text in ("first", "second"):
        source = place.scratch / "part"
        source.write_text(text)
        place.put("part-000000.bprs", source)
        assert not source.exists()
    assert place.read("part-000000.bprs") == b"first"
    place.clear()


def test_only_what_is_its_own_is_removed(done: tuple[RefineRequest, bytes], tmp_path: Path) -> None:
    """A folder that was named by mistake keeps what lies in it."""
    (tmp_path / "thesis.tex").write_text("years of work")
    request = done[0].with_options(out=str(tmp_path / "out.json"))
    run_batch(request, Batch(workers=0, work=str(tmp_path)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "thesis.tex"]


def test_frames_give_back_what_was_written(done: tuple[RefineRequest, bytes], tmp_path: Path) -> None:
    request, work = done[0], str(tmp_path / "work")
    refine(request, work, (0, 4))
    with Path(work, part_name(0)).open("rb") as journal:
        frames = list(read_frames(journal))
    records = dict(record for frame in frames for record in frame.records())
    lines = json.loads(done[1])
    assert {position: json.loads(data) for position, data in records.items()} == {p: lines[p] for p in records}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_results_as_parts(kind: str, done: tuple[RefineRequest, bytes], tmp_path: Path) -> None:
    """The records of the one file, grouped by image; a manifest that names the parts and their hashes."""
    request = done[0].with_options(out=str(tmp_path / "out"), result=kind)
    run_batch(request, Batch(workers=0))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["images"], manifest["records"], len(manifest["parts"])) == (IMAGES, 2 * IMAGES, 4)
    records = [json.loads(data) for data in read_results(request.out)]
    assert sorted(records, key=lambda r: r["note"]) == sorted(json.loads(done[1]), key=lambda r: r["note"])
    assert [r["image_id"] for r in records] == sorted(r["image_id"] for r in records)
    part = tmp_path / "out" / manifest["parts"][1]["name"]
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"part-000001.*expected SHA-256"):
        list(read_results(request.out))
    outside = json.dumps({**manifest, "parts": [{"name": "../pred.json", "sha256": ""}]})
    for said in ("{", "[]", json.dumps({**manifest, "format": "csv"}), json.dumps({"format": kind, "parts": [{}]})):
        (tmp_path / "out" / "manifest.json").write_text(said)
        with pytest.raises(FormatError, match=r"manifest\.json: no manifest of results: expected format \(jsonl, parq"):
            list(read_results(request.out))
    (tmp_path / "out" / "manifest.json").write_text(outside)
    with pytest.raises(FormatError, match="a file name leaves its folder"):
        list(read_results(request.out))


def test_a_record_of_several_lines_is_one_line(done: tuple[RefineRequest, bytes], tmp_path: Path) -> None:
    records = json.loads(Path(done[0].predictions).read_text())
    records[0]["segmentation"] = None  # cannot be refined, and so comes back byte for byte
    (tmp_path / "pred.json").write_text(json.dumps(records, indent=1))
    request = done[0].with_options(predictions=str(tmp_path / "pred.json"), out=str(tmp_path / "out"), result="jsonl")
    run_batch(request, Batch(workers=0))
    assert records[0] in [json.loads(data) for data in read_results(request.out)]


def test_files_are_no_records(tmp_path: Path) -> None:
    request = semantic_set(tmp_path, 1).with_options(result="jsonl")
    with pytest.raises(ConfigError, match="expected a format with JSON records, got png"):
        run_batch(request, Batch(workers=0))
