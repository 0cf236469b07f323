"""Kills and what is left of them: kill -9 of a worker, of one of Ray's nodes, of a merge, at random moments.

    python -m benchmarks.faults refine [--kills 20] [--images 200] [--database sqlite|postgres|both] [--json OUT]
    python -m benchmarks.faults ray    [--kills 20] [--images 200] [--json OUT]
    python -m benchmarks.faults merge  [--kills 20] [--images 100000] [--json OUT]
    python -m benchmarks.faults train  [--kills 20] [--database sqlite|postgres|both] [--json OUT]
    python -m benchmarks.faults disk   [--images 60] [--database sqlite|postgres|both] [--json OUT]

Refine: the result must be byte-identical to an undisturbed run's, no image lost or refined more than twice. Ray: the
same of a cluster of three nodes on this machine, one of which is lost at each kill and replaced. Merge: no result is
there until the merge that is left alone, whose result is byte-identical.
Train: it goes on from its checkpoint and registers exactly one version. Disk: jobs and results (and SQLite) lie on a
small file system, which is filled to the last byte for a while; this mounts a tmpfs and so needs root.
Exit code 1 where one of these does not hold.
PostgreSQL (Debian's) is started as an ordinary user in a temporary folder, with two workers.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.scale import plan, put_together, write_files
from benchmarks.scale import refine as refine_for_nothing
from bpr_service.jobs.refine.batch import Batch, run_batch
from bpr_service.jobs.refine.place import Place
from tests.jobs.fleet import Fleet, kill_at_random
from tests.jobs.ray_cluster import RayCluster
from tests.jobs.samples import coco_set
from tests.jobs.test_train import TrainFleet, lives
from tests.services import Postgres


def refine(root: Path, database: str, workers: int, args: argparse.Namespace) -> dict[str, Any]:
    """One job, killed ``args.kills`` times."""
    fleet = Fleet(root, database)
    try:
        for _ in range(workers):
            fleet.start()
        begun = time.monotonic()
        job = fleet.submit(images=args.images, part_images=16)
        kill_at_random(fleet, job.id, args.kills, args.seed, pause_s=0.3)
        kills = len(fleet.workers) - workers
        done = fleet.wait(job.id, s=1800)
        seconds = time.monotonic() - begun
        counts = fleet.refined(job.id)  # a kill between an image's journal and its line leaves the line out
        images = (done.result or {}).get("images")
        same = (root / "out.json").read_bytes() == fleet.expected()
        return {
            "what": "refine", "state": done.state, "kills": kills, "workers": workers, "images": images,
            "refined_twice": sum(n == 2 for n in counts.values()), "most_often": max(counts.values()),
            "byte_identical": same, "seconds": round(seconds, 1),
            "ok": same and done.state == "done" and images == args.images and max(counts.values()) <= 2,
        }  # fmt: skip
    finally:
        fleet.close()


def ray(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run on three nodes, of which ``args.kills`` are lost one after the other."""
    request = coco_set(root / "set", args.images).with_options(part_images=4)
    run_batch(request, Batch(workers=0))
    again, place = request.with_options(out=str(root / "again.json")), Place(str(root / "work"))
    cluster = RayCluster(root)
    try:
        begun = time.monotonic()
        at = cluster.refine(again, place, kills=args.kills, seed=args.seed, pause_s=0.3)
        seconds, counts = time.monotonic() - begun, cluster.refined()
    finally:
        cluster.close()
    run_batch(again, Batch(work=place.address, merge=True))
    same = Path(again.out).read_bytes() == Path(request.out).read_bytes()
    return {
        "what": "ray", "nodes": 3, "kills": len(at), "images_refined_at_each": at, "images": len(counts),
        "refined_twice": sum(n == 2 for n in counts.values()), "most_often": max(counts.values()),
        "byte_identical": same, "seconds": round(seconds, 1),
        "ok": same and len(counts) == args.images and max(counts.values()) <= 2,
    }  # fmt: skip


def merge(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One merge of what a network gave that costs nothing, killed before its end each time but the last."""
    request = write_files(root, args.images)
    plan(request, root)
    refine_for_nothing(request, root)
    context, out = multiprocessing.get_context("fork"), Path(request.out)
    begun = time.monotonic()
    put_together(request, root)
    undisturbed, expected = time.monotonic() - begun, out.read_bytes()
    out.unlink()
    rng, early, left = random.Random(args.seed), 0, set[str]()
    for _ in range(args.kills):
        child = context.Process(target=put_together, args=(request, root))
        child.start()
        child.join(rng.uniform(0, undisturbed))
        child.kill()
        child.join()
        early += child.exitcode == -signal.SIGKILL and not out.exists()
        out.unlink(missing_ok=True)
        left |= {path.name for path in root.iterdir()} - {"work", "pred.json", "ann.json"}
    put_together(request, root)
    same = out.read_bytes() == expected
    return {
        "what": "merge", "kills": args.kills, "killed_before_the_result": early, "images": args.images,
        "undisturbed_s": round(undisturbed, 2), "byte_identical": same, "files_left": len(left),
        "ok": same and early > 0,
    }  # fmt: skip


def train(root: Path, database: str, workers: int, args: argparse.Namespace) -> dict[str, Any]:
    """One training run of a stand-in trainer, killed ``args.kills`` times together with its worker."""
    fleet = TrainFleet(root, database)
    rng = random.Random(args.seed)
    orphans = 0
    try:
        for _ in range(workers):
            fleet.begin()
        begun = time.monotonic()
        job = fleet.train(steps=100 * args.kills)
        for _ in range(args.kills):
            before = len(fleet.starts(job.id))
            fleet.wait(job.id, lambda job, n=before: job.ended_for_good or len(fleet.starts(job.id)) > n, s=900)
            time.sleep(rng.uniform(0.0, 1.0))
            owner = fleet.trainer_s_worker(job.id)
            owner.send_signal(signal.SIGKILL)
            owner.wait()
            time.sleep(0.5)
            orphans += sum(lives(pid) for pid, _ in fleet.starts(job.id)[: before + 1])
            fleet.begin()
        done = fleet.wait(job.id, s=1800)
        versions, firsts = fleet.store.list(), [first for _, first in fleet.starts(job.id)]
        ok = done.state == "done" and len(versions) == 1 and firsts == sorted(firsts) and not orphans
        return {
            "what": "train", "state": done.state, "kills": args.kills, "workers": workers, "versions": len(versions),
            "trainer_starts": len(firsts), "resumed_at_steps": firsts, "orphans": orphans,
            "seconds": round(time.monotonic() - begun, 1), "ok": ok,
        }  # fmt: skip
    finally:
        fleet.close()


def disk(root: Path, database: str, workers: int, args: argparse.Namespace) -> dict[str, Any]:
    """One job, whose disk is full for ten seconds in the middle of it."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(root)], check=True)
    fleet = Fleet(root, database)
    filler = root / "filler"
    try:
        for _ in range(workers):
            fleet.start()
        job = fleet.submit(images=args.images, part_images=16)
        fleet.wait(job.id, lambda job: sum(fleet.refined(job.id).values()) >= 5, s=600)
        fill(filler)
        time.sleep(10)
        done_while_full = sum(fleet.refined(job.id).values())
        state = fleet.engine.database.job(job.id)
        message = state.message if state else ""
        filler.unlink()
        done = fleet.wait(job.id, s=1800)
        same = (root / "out.json").read_bytes() == fleet.expected()
        alive = sum(worker.poll() is None for worker in fleet.workers)
        return {
            "what": "disk", "state": done.state, "workers": workers, "workers_alive": alive, "images": args.images,
            "done_while_full": done_while_full, "message_while_full": message, "byte_identical": same,
            "ok": same and done.state == "done" and not done.message,
        }  # fmt: skip
    finally:
        fleet.close()
        subprocess.run(["umount", "-l", str(root)], check=False)


def fill(path: Path) -> None:
    """Take what room there is, to the last byte."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 10, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass


def on_database(name: str, root: Path, args: argparse.Namespace) -> dict[str, Any]:
    server = Postgres(root.with_name("pg")) if name == "postgres" else None
    try:
        run = {"refine": refine, "train": train, "disk": disk}[args.what]
        return {"database": name, **run(root, server.url() if server else "", 2 if server else 1, args)}
    finally:
        if server:
            server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["refine", "ray", "merge", "train", "disk"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", choices=["sqlite", "postgres", "both"], default="both")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.images = args.images or {"merge": 100_000}.get(args.what, 200)
    databases = ("sqlite", "postgres") if args.database == "both" else (args.database,)
    results = []
    for name in ("",) if args.what in ("ray", "merge") else databases:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, "run")
            root.mkdir()
            alone = {"ray": ray, "merge": merge}.get(args.what)
            result = alone(root, args) if alone else on_database(name, root, args)
        print(json.dumps(result), flush=True)
        results.append(result)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(0 if all(result["ok"] for result in results) else 1)


if __name__ == "__main__":
    main()
