"""What plan, journal, queue and merge cost at a million pictures, with a network that costs nothing.

    python -m benchmarks.scale run   [--images 1000000] [--simulated] [--json OUT]
    python -m benchmarks.scale fleet [--images 10000000] [--masks 10] [--images-per-s 20] [--json OUT]

run: a COCO results file of one mask a picture is planned, queued (SQLite), refined by a pool that gives every record
back as it came, and merged; each stage in a process of its own, with its time and its peak memory. ``--simulated``
takes units and records from a generator instead of a file, for sizes that no disk here holds.
fleet: what a run costs on 1, 16 and 256 devices by arithmetic, and the same by playing the queue through: parts of
uneven length, taken by the device that is free first.
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing
import random
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
from bpr_service.jobs.refine.plan import BLOCK_RECORDS, MAX_PARTS, load_plan, make_plan, open_file
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


def fleet(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Costs of a run on 1, 16, 256 devices: by arithmetic and by playing the queue through."""
    block_images = min(16, max(1, BLOCK_RECORDS // args.masks))
    blocks = -(-args.images // block_images)
    of_a_part = -(-blocks // MAX_PARTS)
    parts = -(-blocks // of_a_part)
    part_s = args.images / parts / args.images_per_s
    rows = []
    for devices in (1, 16, 256):
        rng, free, end = random.Random(0), [0.0] * devices, 0.0
        for _ in range(parts):
            begun = heapq.heappop(free)
            end = max(end, begun + part_s * rng.uniform(0.5, 1.5))
            heapq.heappush(free, begun + part_s * rng.uniform(0.5, 1.5))
        rows.append({"devices": devices, "work_h": round(args.images / args.images_per_s / devices / 3600, 2),
                     "work_played_h": round(max(end, *free) / 3600, 2)})  # fmt: skip
    return {
        "images": args.images, "masks": args.images * args.masks, "parts": parts,
        "images_of_a_part": round(args.images / parts), "minutes_of_a_part": round(part_s / 60, 1), "devices": rows,
        "requests_to_storage": {"pictures": args.images, "records": 2 * args.images, "parts": 6 * parts},
        "writes_to_database": 6 * parts,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "fleet"])
    parser.add_argument("--images", type=int)
    parser.add_argument("--masks", type=int, default=10)
    parser.add_argument("--images-per-s", type=float, default=20.0)
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.images = args.images or {"run": 1_000_000, "fleet": 10_000_000}[args.what]
    with tempfile.TemporaryDirectory() as folder:
        result = {"what": args.what, **{"run": run, "fleet": fleet}[args.what](Path(folder), args)}
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
