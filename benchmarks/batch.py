"""``bpr batch`` and workers: is the network kept busy, is memory flat, do two workers do twice the work?

    python -m benchmarks.batch busy    [--images 500] [--workers 2] [--threads 2] [--device cpu] [--json OUT]
    python -m benchmarks.batch workers [--images 60] [--json OUT]

busy: after the first 10 s, the time in which the network runs as a share of wall time, and the time that the pure
network takes for the same batches (replayed alone, afterwards) as a share of it; resident memory of the whole process
tree at image 50 and at the last. workers: images/s of one and of two workers on PostgreSQL, each pinned to a core.
Pictures are synthetic (640 x 480, 6 masks each); the model is an untrained network of the default preset's size.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

H, W, SKIP_S = 480, 640, 10.0


def photographs(root: Path, images: int) -> Any:
    """COCO results over ``images`` pictures with six coarse blobs each."""
    from bpr_service.core.masks import Mask
    from bpr_service.jobs.requests import RefineRequest
    from tests.jobs.samples import tiny_model

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
        dataset=str(root / "ann.json"), out=str(root / "out.json"), model=tiny_model(root / "model"),
    )  # fmt: skip


def resident_mb() -> float:
    """Resident memory of this process and its children, MB, without what they share."""
    import psutil

    me = psutil.Process()
    return sum(p.memory_full_info().uss for p in (me, *me.children(recursive=True))) / 1e6


def busy(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from bpr_service.jobs.batch import Batch, run_batch, spec_of

    torch.set_num_threads(args.threads)
    request = photographs(root, args.images)
    memory: dict[int, float] = {}
    stamps: list[float] = []

    def on_unit() -> None:
        stamps.append(time.perf_counter())
        if len(stamps) % 50 == 0:
            memory[len(stamps)] = round(resident_mb(), 1)

    result = run_batch(
        request, Batch(device=args.device, workers=args.workers, keep_batches=True), on_unit=on_unit
    )  # from the first batch on: models are loaded, loaders are starting
    first, end = result.busy.batches[0][0] + SKIP_S, stamps[-1]
    counted = [(a, b, n) for a, b, n in result.busy.batches if a >= first]
    wall = end - first
    refiner = spec_of(request).load(device=args.device)
    side = refiner.config.patch.network_size_px
    noise = np.random.default_rng(0).integers(0, 255, (refiner.config.batch_size, side, side, 4), np.uint8)
    for _ in range(3):
        refiner.predict(noise)
    begun = time.perf_counter()
    for _, _, n in counted:
        refiner.predict(noise[:n])
    pure = time.perf_counter() - begun
    return {
        "images": result.images, "seconds": round(result.seconds, 1), "workers": args.workers,
        "threads": args.threads, "device": args.device, "images_per_s": round(result.images / result.seconds, 2),
        "patches": result.busy.patches, "wall_after_10_s": round(wall, 2),
        "network_running_share": round(sum(b - a for a, b, _ in counted) / wall, 4),
        "pure_network_share": round(pure / wall, 4), "memory_mb": memory,
        "memory_growth": round(memory[max(memory)] / memory[50] - 1, 4) if 50 in memory else None,
    }  # fmt: skip


def workers(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    from tests.jobs.fleet import Fleet
    from tests.services import Postgres

    server = Postgres(root / "pg")
    rates = {}
    try:
        for count in (1, 2):
            name = f"w{count}"
            fleet = Fleet(root, server.new_database(name))
            request = photographs(root / name, args.images).model_dump(exclude_defaults=True)
            values = {k: f"data:{Path(v).relative_to(root)}" for k, v in request.items() if k in
                      ("images", "predictions", "dataset", "out")}  # fmt: skip
            for core in range(count):
                worker = fleet.start(OMP_NUM_THREADS="1")
                os.sched_setaffinity(worker.pid, {args.cores[core]})
            fleet.wait_ready(count)
            warm = fleet.engine.submit({"kind": "refine", **request, **values, "out": f"data:{name}/warm.json",
                                        "shard_images": max(1, args.images // (2 * count))})  # fmt: skip
            fleet.wait(warm.id, s=1200)
            begun = time.monotonic()
            job = fleet.engine.submit({"kind": "refine", **request, **values, "shard_images": 5})
            fleet.wait(job.id, s=1200)
            rates[count] = args.images / (time.monotonic() - begun)
            fleet.close()
    finally:
        server.stop()
    return {
        "images": args.images, "one_worker_images_per_s": round(rates[1], 3),
        "two_workers_images_per_s": round(rates[2], 3), "ratio": round(rates[2] / rates[1], 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["busy", "workers"])
    parser.add_argument("--images", type=int)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cores", type=int, nargs=2, default=[0, 1])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.images = args.images or {"busy": 500, "workers": 60}[args.what]
    with tempfile.TemporaryDirectory() as folder:
        result = {"what": args.what, **(busy if args.what == "busy" else workers)(Path(folder, "b"), args)}
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
