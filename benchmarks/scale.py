"""What plan, journal, queue and merge cost at a million pictures, with a network that costs nothing.

    python -m benchmarks.scale run [--images 1000000] [--simulated] [--json OUT]

run: a COCO results file of one mask a picture is planned, queued (SQLite), refined by a pool that gives every record
back as it came, and merged; each stage in a process of its own, with its time and its peak memory. ``--simulated``
takes units and records from a generator instead of a file, for sizes that no disk here holds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bpr_service.formats import Encoded, Paths, PredictionFormat, Unit
from bpr_service.jobs.refine.merge import merge
from bpr_service.jobs.refine.parts import Watcher, refine_parts
from bpr_service.jobs.refine.place import Place
from bpr_service.jobs.refine.plan import load_plan, make_plan, open_file
from bpr_service.jobs.refine.unit import Outcome
from bpr_service.jobs.requests import RefineRequest

SHA = "0" * 64
RLE = {"size": [480, 640], "counts": "PQR25l>0000000000000000000000000000000000000000000Vo`6"}


class Simulated(PredictionFormat):
    """As many units as ``paths.predictions`` says, of one record each; nothing is read."""

    name, task, has_records, result_is_folder = "simulated", "instance", True, False

    def scan(self) -> Iterator[Unit]:
        for i in range(int(self.paths.predictions)):
            yield Unit(i, f"{i:012d}.jpg", str(i), [[i, 200 * i, 200]], (480, 640))

    def untouched(self, unit: Unit) -> Encoded:
        return Encoded(records={unit.number: record(unit.number)})

    def write(self, out: str, records: Iterable[bytes]) -> None:
        with open(out, "wb") as file:
            file.writelines(data + b"\n" for data in records)

    def read(self, unit: Unit, size: tuple[int, int] | None = None) -> Any:
        raise NotImplementedError

    def encode(self, unit: Unit, prediction: Any) -> Encoded:
        raise NotImplementedError


class FreePool:
    """In place of a `RefinerPool`: a network that costs nothing and changes nothing."""

    refiner = SimpleNamespace(card=SimpleNamespace(sha256=SHA))

    def run(self, file: PredictionFormat, units: Iterable[Unit], **_: object) -> Iterator[Outcome]:
        for unit in units:
            yield Outcome(unit.number, unit.image, encoded=file.untouched(unit))


def record(i: int) -> bytes:
    return json.dumps({"image_id": i, "category_id": 1, "segmentation": RLE, "score": 0.5}).encode()


def write_files(root: Path, images: int) -> RefineRequest:
    """A results file with the records of neighbouring pictures apart, and a data set that names the pictures."""
    with (root / "pred.json").open("wb") as file:
        step = 1_000_003  # a prime: the input's order is not that of the pictures
        for k in range(images):
            file.write((b",\n" if k else b"[") + record(k * step % images))
        file.write(b"]\n")
    with (root / "ann.json").open("w") as text:
        for i in range(images):
            entry = {"id": i, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640}
            text.write((",\n" if i else '{"images": [') + json.dumps(entry))
        text.write("]}\n")
    return RefineRequest(
        task="instance", images=str(root), predictions=str(root / "pred.json"), dataset=str(root / "ann.json"),
        out=str(root / "out.json"),
    )  # fmt: skip


def opened(request: RefineRequest) -> PredictionFormat:
    if request.predictions.isdecimal():
        return Simulated(Paths("", request.predictions))
    return open_file(request)


def plan(request: RefineRequest, root: Path) -> dict[str, Any]:
    made = make_plan(request, opened(request), Place(str(root / "work")), model=None, model_sha256=SHA)
    index = root / "work" / f"plan-{made.mark}.index"
    return {"parts": made.parts, "images_of_a_part": made.units // made.parts, "index_bytes": index.stat().st_size}


def queue(request: RefineRequest, root: Path) -> dict[str, Any]:
    """As the dispatch step of a worker does it."""
    from bpr_service.jobs.dbos_setup import enqueue
    from bpr_service.jobs.engine import JobEngine
    from bpr_service.jobs.settings import JobSettings
    from bpr_service.jobs.worker import BATCH

    made = load_plan(Place(str(root / "work")))
    assert made is not None
    engine = JobEngine(JobSettings(folder=str(root / "jobs")))
    client = engine.client
    for start in range(0, made.parts, BATCH):
        with engine.database.engine.begin() as c:
            for part in range(start, min(start + BATCH, made.parts)):
                enqueue(client, c, "parts", "refine-part", f"job:1.{part}", ("job", "1", str(part)))
    queued = engine.load().queued["parts"]
    engine.close()
    return {"queued": queued}


def refine(request: RefineRequest, root: Path) -> dict[str, Any]:
    place = Place(str(root / "work"))
    made = load_plan(place)
    assert made is not None
    pool: Any = FreePool()
    return {"images": refine_parts(pool, request, opened(request), place, made, range(made.parts), Watcher())}


def put_together(request: RefineRequest, root: Path) -> dict[str, Any]:
    place = Place(str(root / "work"))
    made = load_plan(place)
    assert made is not None
    images = sum(1 for _ in merge(opened(request), place, made, request.out))
    return {"images": images, "result_mb": round(Path(request.out).stat().st_size / 1e6, 1)}


def measured(stage: Callable[[RefineRequest, Path], dict[str, Any]], *args: Any) -> dict[str, Any]:
    """A stage in a process of its own: its time, without the start of Python, and its peak memory."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_measured, args=(there, stage, args))
    process.start()
    there.close()
    result: dict[str, Any] = here.recv()
    process.join()
    return result


def _measured(connection: Any, stage: Callable[..., dict[str, Any]], args: tuple[Any, ...]) -> None:
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun, cpu = time.perf_counter(), time.process_time()
    values = stage(*args)
    seconds, used = time.perf_counter() - begun, time.process_time() - cpu
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = {"peak_mb": round(peak_kb / 1e3, 1), "more_than_python_mb": round((peak_kb - before_kb) / 1e3, 1)}
    connection.send({**values, "seconds": round(seconds, 2), "processor_s": round(used, 2), **memory})


def run(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    if args.simulated:
        out = str(root / "out.json")
        request = RefineRequest(task="instance", images="", predictions=str(args.images), out=out)
    else:
        request = write_files(root, args.images)
    stages = {"plan": plan, "queue": queue, "refine": refine, "merge": put_together}
    results = {}
    for name, stage in stages.items():
        results[name] = measured(stage, request, root)
        print(name, json.dumps(results[name]), flush=True)
    cost = sum(results[name]["seconds"] for name in ("plan", "refine", "merge"))
    return {
        "images": args.images,
        "simulated": args.simulated,
        "ms_a_picture": round(1e3 * cost / args.images, 4),
        **results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run"])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = {"what": args.what, **run(Path(folder), args)}
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
