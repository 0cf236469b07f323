"""``bpr batch`` and workers: is the network kept busy, is memory flat, do two workers do twice the work?

    python -m benchmarks.batch busy    [--images 500] [--workers 2] [--threads 1] [--preset fast] [--json OUT]
    python -m benchmarks.batch s3      [--images 200] [--delay-ms 50] [--json OUT]
    python -m benchmarks.batch workers [--images 200] [--cores 0 1] [--json OUT]
    python -m benchmarks.batch scale   [--images 1000] [--json OUT]     a thousand instances an image: a million

busy: over the time after the first 10 s, the share in which the network runs, and the share that the pure network
takes for the same batches (replayed alone, afterwards); resident memory of the whole process tree at image 50 and at
the last. s3: the same with pictures and predictions in a bucket (moto's) that takes its time before it answers each
request. workers: images/s of one and of two workers on PostgreSQL, each pinned to a core of its own. scale: memory
and time an instance of one long file (instances of 4 to 12 px; what the model's card chose runs the network).

Both name a second figure for machines that do other work too, from what the kernel says of each thread
(``/proc/.../schedstat``): the time in which it wanted to run and another process had the core is left out. ``feed``
compares processor time alone: the network's over that of a loader; at 1 or more the loaders keep up.
Pictures are synthetic (640 x 480, 6 masks each); the models are the bundled ones.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

H, W, SKIP_S = 480, 640, 10.0
CROWD = 1000


def photographs(root: Path, images: int, preset: str) -> Any:
    """COCO results over ``images`` pictures with six coarse blobs each."""
    from bpr_service.jobs.requests import RefineRequest
    from bpr_service.masks.mask import Mask

    (root / "images").mkdir(parents=True)
    records, entries = [], []
    for i in range(images):
        rng = np.random.default_rng(i)
        noise = rng.integers(0, 255, (H // 16, W // 16, 3), np.uint8)
        cv2.imwrite(str(root / "images" / f"{i}.jpg"), cv2.resize(noise, (W, H), interpolation=cv2.INTER_CUBIC))
        entries.append({"id": i, "file_name": f"{i}.jpg", "height": H, "width": W})
        for _ in range(6):
            frame = np.zeros((H, W), np.uint8)
            centre = (int(rng.integers(60, W - 60)), int(rng.integers(60, H - 60)))
            axes = (int(rng.integers(25, 90)), int(rng.integers(25, 90)))
            cv2.ellipse(frame, centre, axes, float(rng.integers(0, 180)), 0, 360, 1, -1)
            rle = Mask.from_array(frame).to_rle()
            records.append({"image_id": i, "category_id": 1, "segmentation": rle, "score": 0.9})
    (root / "pred.json").write_text(json.dumps(records))
    (root / "ann.json").write_text(json.dumps({"images": entries}))
    return RefineRequest(
        task="instance", images=str(root / "images"), predictions=str(root / "pred.json"),
        dataset=str(root / "ann.json"), out=str(root / "out.json"), preset=preset,
    )  # fmt: skip


def crowded(root: Path, images: int, preset: str) -> Any:
    """COCO results over ``images`` pictures with a thousand small coarse discs each, written as they are made."""
    from bpr_service.jobs.requests import RefineRequest
    from bpr_service.masks.mask import Mask

    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rles = []
    for _ in range(5000):
        frame = np.zeros((H, W), np.uint8)
        centre = (int(rng.integers(20, W - 20)), int(rng.integers(20, H - 20)))
        cv2.circle(frame, centre, int(rng.integers(4, 13)), 1, -1)
        rles.append(json.dumps(Mask.from_array(frame).to_rle()))
    entries = []
    with (root / "pred.json").open("w") as file:
        file.write("[")
        for i in range(images):
            noise = rng.integers(0, 255, (H // 16, W // 16, 3), np.uint8)
            cv2.imwrite(str(root / "images" / f"{i}.jpg"), cv2.resize(noise, (W, H), interpolation=cv2.INTER_CUBIC))
            entries.append({"id": i, "file_name": f"{i}.jpg", "height": H, "width": W})
            chosen = rng.integers(0, len(rles), CROWD)
            head = f'{{"image_id": {i}, "category_id": 1, "score": 0.9, "segmentation": '
            file.write((",\n" if i else "") + ",\n".join(f"{head}{rles[k]}}}" for k in chosen))
        file.write("]\n")
    (root / "ann.json").write_text(json.dumps({"images": entries}))
    return RefineRequest(
        task="instance", images=str(root / "images"), predictions=str(root / "pred.json"),
        dataset=str(root / "ann.json"), out=str(root / "out.json"), preset=preset,
        settings={},
    )  # fmt: skip


def resident_mb() -> float:
    """Resident memory of this process and its children, MB, without what they share."""
    import psutil

    me = psutil.Process()
    return float(sum(p.memory_full_info().uss for p in (me, *me.children(recursive=True))) / 1e6)


def scheduled(task: str) -> tuple[float, float]:
    """Seconds that a thread (``/proc/.../task/ID``) ran, and seconds that it wanted to and had no core."""
    ran, waited, _ = Path(task, "schedstat").read_text().split()
    return int(ran) / 1e9, int(waited) / 1e9


def device_thread() -> str:
    (found,) = [thread.native_id for thread in threading.enumerate() if thread.name == "device"]
    return f"/proc/self/task/{found}"


def loaders_cpu_s() -> float:
    """Processor time of the loader processes so far."""
    import psutil

    times = [child.cpu_times() for child in psutil.Process().children()]
    return float(sum(t.user + t.system for t in times))


@dataclass
class Watch:
    """Memory at every 50th unit; what was used of the processor from ``SKIP_S`` after the first unit on."""

    begun: float = 0.0
    from_here: tuple[float, float, float] | None = None
    first: float = 0.0
    memory: dict[int, float] = field(default_factory=dict)
    units: int = 0
    last: tuple[float, float, float] = (0.0, 0.0, 0.0)
    end: float = 0.0

    def on_unit(self) -> None:
        now = time.perf_counter()
        self.units += 1
        self.begun = self.begun or now
        self.last = (*scheduled(device_thread()), loaders_cpu_s())
        if self.from_here is None and now - self.begun >= SKIP_S:
            self.from_here, self.first = self.last, now
        self.end = now
        if self.units % 50 == 0:
            self.memory[self.units] = round(resident_mb(), 1)


def busy(root: Path, args: argparse.Namespace, request: Any = None) -> dict[str, Any]:
    import torch

    from bpr_service.jobs.refine.batch import Batch, run_batch, spec_of

    torch.set_num_threads(args.threads)
    request, watch = request or photographs(root, args.images, args.preset), Watch()
    options = Batch(device=args.device, workers=args.workers, keep_batches=True)
    result = run_batch(request, options, on_unit=watch.on_unit)
    assert watch.from_here is not None, "all was done in ten seconds: take more images"
    ran, kept_waiting, loaders = (b - a for a, b in zip(watch.from_here, watch.last, strict=True))
    counted = [(a, b, n) for a, b, n in result.busy.batches if a >= watch.first and b <= watch.end]
    wall, free = watch.end - watch.first, watch.end - watch.first - kept_waiting
    refiner = spec_of(request, request.model).load(device=args.device)
    side = refiner.config.patch.network_size_px
    noise = np.random.default_rng(0).integers(0, 255, (refiner.config.batch_size, side, side, 4), np.uint8)
    for _ in range(3):
        refiner.predict(noise)
    begun, begun_cpu = time.perf_counter(), time.process_time()
    for _, _, n in counted:
        refiner.predict(noise[:n])
    pure, pure_cpu = time.perf_counter() - begun, (time.process_time() - begun_cpu) / args.threads
    memory = watch.memory
    return {
        "images": result.images, "seconds": round(result.seconds, 1), "workers": args.workers,
        "threads": args.threads, "device": args.device, "preset": args.preset,
        "images_per_s": round(result.images / result.seconds, 2), "patches": result.busy.patches,
        "wall_after_10_s": round(wall, 2),
        "network_running_share": round(sum(b - a for a, b, _ in counted) / wall, 4),
        "pure_network_share": round(pure / wall, 4),
        "network_had_no_core_share": round(kept_waiting / wall, 4),
        "device_thread_ran_share_of_the_rest": round(ran / free, 4),
        "pure_network_share_of_the_rest": round(pure_cpu / free, 4),
        "feed": round(ran / (loaders / args.workers), 3) if loaders else None,
        "memory_mb": memory,
        "memory_growth": round(memory[max(memory)] / memory[50] - 1, 4) if 50 in memory else None,
    }  # fmt: skip


def serve_bucket(delay_s: float, told: Any, requests: Any) -> None:
    """Moto's S3, which waits before every request; as a process that counts them."""
    from tests.services import S3Door

    logging.getLogger("werkzeug").setLevel(logging.ERROR)

    def door(environ: dict[str, Any]) -> bool:
        with requests.get_lock():
            requests.value += 1
        time.sleep(delay_s)
        return True

    told.send(S3Door(door).url)
    threading.Event().wait()


def s3(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    import boto3

    from bpr_service import storage

    context = multiprocessing.get_context("spawn")
    (here, there), requests = context.Pipe(), context.Value("l", 0)
    server = context.Process(target=serve_bucket, args=(args.delay_ms / 1e3, there, requests))
    server.start()
    try:
        names = {"AWS_ENDPOINT_URL": here.recv(), "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        os.environ.update(names, AWS_DEFAULT_REGION="us-east-1", AWS_CONFIG_FILE=str(root / "none"))
        boto3.client("s3").create_bucket(Bucket="bucket")
        request = photographs(root, args.images, args.preset)
        moved = {
            name: f"s3://bucket/{Path(getattr(request, name)).name}" for name in ("images", "predictions", "dataset")
        }
        storage.filesystem("s3://bucket/")[0].put(str(root / "images"), "bucket/images", recursive=True)
        for name in ("predictions", "dataset"):
            storage.copy(getattr(request, name), moved[name])
        before = requests.value
        measured = busy(root, args, request.with_options(**moved))
        asked = round((requests.value - before) / args.images, 2)
        return {"delay_ms": args.delay_ms, "requests_a_picture": asked, **measured}
    finally:
        server.kill()


def scale(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from bpr_service.jobs.refine.batch import Batch, run_batch

    torch.set_num_threads(args.threads)
    request, watch = crowded(root, args.images, args.preset), Watch()
    before = time.process_time()
    result = run_batch(request, Batch(device=args.device, workers=args.workers), on_unit=watch.on_unit)
    return {
        "instances": CROWD * result.images, "preset": args.preset, "workers": args.workers, "threads": args.threads,
        "file_mb": round(Path(request.predictions).stat().st_size / 1e6, 1), "seconds": round(result.seconds, 1),
        "instances_per_s": round(CROWD * result.images / result.seconds, 1), "patches": result.busy.patches,
        "instances_per_processor_s": round(CROWD * result.images / (time.process_time() - before + watch.last[2]), 1),
        "processor_s": {"all but loaders": round(time.process_time() - before, 1), "loaders": round(watch.last[2], 1)},
        "network_running_share": round(result.busy.seconds / result.seconds, 4),
        "memory_mb": {k: v for k, v in watch.memory.items() if k in (50, max(watch.memory)) or k % 200 == 0},
        "memory_growth": round(watch.memory[max(watch.memory)] / watch.memory[50] - 1, 4),
    }  # fmt: skip


def few(predictions: Path, images: int) -> str:
    """A file beside a COCO results file with the records of its first images; as a job names it."""
    records = [record for record in json.loads(predictions.read_text()) if record["image_id"] < images]
    predictions.with_name("few.json").write_text(json.dumps(records))
    return f"data:{predictions.parent.name}/few.json"


def per_thread(pid: int) -> dict[str, tuple[float, float]]:
    """(seconds run, seconds without a core) of each thread of a process."""
    return {task.name: scheduled(str(task)) for task in Path(f"/proc/{pid}/task").iterdir()}


def without_a_core(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]) -> float:
    """Seconds that the thread which ran most in between wanted to run and had no core."""
    zero = (0.0, 0.0)
    return max((ran - before.get(k, zero)[0], lost - before.get(k, zero)[1]) for k, (ran, lost) in after.items())[1]


def workers(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    from tests.jobs.fleet import Fleet
    from tests.services import Postgres

    server = Postgres(root / "pg")
    rates, corrected = {}, {}
    try:
        for count in (1, 2):
            name = f"w{count}"
            fleet = Fleet(root, server.new_database(name))
            request = photographs(root / name, args.images, args.preset).model_dump(exclude_defaults=True)
            values = {k: f"data:{Path(v).relative_to(root)}" for k, v in request.items() if k in
                      ("images", "predictions", "dataset", "out")}  # fmt: skip
            for core in args.cores[:count]:
                worker = fleet.start(OMP_NUM_THREADS="1")
                os.sched_setaffinity(worker.pid, {core})
            fleet.wait_ready(count)
            warm_up = {"predictions": few(root / name / "pred.json", 8), "out": f"data:{name}/warm.json"}
            warm = fleet.engine.submit({"kind": "refine", **request, **values, **warm_up, "part_images": 2})
            fleet.wait(warm.id, s=1800)
            pids = [worker.pid for worker in fleet.workers]
            before = [per_thread(pid) for pid in pids]
            begun = time.monotonic()
            job = fleet.engine.submit({"kind": "refine", **request, **values, "part_images": 5})
            fleet.wait(job.id, s=1800)
            wall = time.monotonic() - begun
            lost = [without_a_core(was, per_thread(pid)) for was, pid in zip(before, pids, strict=True)]
            rates[count], corrected[count] = args.images / wall, args.images / (wall - sum(lost) / count)
            fleet.close()
    finally:
        server.stop()
    return {
        "images": args.images, "preset": args.preset, "one_worker_images_per_s": round(rates[1], 3),
        "two_workers_images_per_s": round(rates[2], 3), "ratio": round(rates[2] / rates[1], 3),
        "with_cores_to_themselves": {"one": round(corrected[1], 3), "two": round(corrected[2], 3),
                                     "ratio": round(corrected[2] / corrected[1], 3)},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["busy", "s3", "workers", "scale"])
    parser.add_argument("--images", type=int)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--delay-ms", type=float, default=50.0)
    parser.add_argument("--cores", type=int, nargs=2, default=[0, 1])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.images = args.images or {"busy": 500, "s3": 200, "workers": 200, "scale": 1000}[args.what]
    measure = {"busy": busy, "s3": s3, "workers": workers, "scale": scale}[args.what]
    with tempfile.TemporaryDirectory() as folder:
        result = {"what": args.what, **measure(Path(folder, "b"), args)}
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
