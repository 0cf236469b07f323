"""Kills and what is left of them: kill -9 of a worker at random moments, on SQLite and on PostgreSQL.

    python -m benchmarks.faults refine [--kills 20] [--images 200] [--database sqlite|postgres|both] [--json OUT]
    python -m benchmarks.faults train  [--kills 20] [--database sqlite|postgres|both] [--json OUT]
    python -m benchmarks.faults disk   [--images 60] [--database sqlite|postgres|both] [--json OUT]

Refine: the result must be byte-identical to an undisturbed run's, no image lost or refined more than twice.
Train: it goes on from its checkpoint and registers exactly one version. Disk: jobs and results (and SQLite) lie on a
small file system, which is filled to the last byte for a while; this mounts a tmpfs and so needs root.
Exit code 1 where one of these does not hold.
PostgreSQL (Debian's) is started as an ordinary user in a temporary folder, with two workers.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.jobs.fleet import Fleet, kill_at_random
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
        kill_at_random(fleet, job.id, args.kills, args.seed)
        kills = len(fleet.workers) - workers
        done = fleet.wait(job.id, s=1800)
        seconds = time.monotonic() - begun
        counts = fleet.refined(job.id)
        same = (root / "out.json").read_bytes() == fleet.expected()
        return {
            "what": "refine", "state": done.state, "kills": kills, "workers": workers, "images": len(counts),
            "refined_twice": sum(n == 2 for n in counts.values()), "most_often": max(counts.values()),
            "byte_identical": same, "seconds": round(seconds, 1),
            "ok": same and done.state == "done" and len(counts) == args.images and max(counts.values()) <= 2,
        }  # fmt: skip
    finally:
        fleet.close()


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["refine", "train", "disk"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", choices=["sqlite", "postgres", "both"], default="both")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    for name in ("sqlite", "postgres") if args.database == "both" else (args.database,):
        with tempfile.TemporaryDirectory() as folder:
            server = Postgres(Path(folder, "pg")) if name == "postgres" else None
            run = {"refine": refine, "train": train, "disk": disk}[args.what]
            root = Path(folder, "run")
            root.mkdir()
            result = {"database": name, **run(root, server.url() if server else "", 2 if server else 1, args)}
            if server:
                server.stop()
        print(json.dumps(result), flush=True)
        results.append(result)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(0 if all(result["ok"] for result in results) else 1)


if __name__ == "__main__":
    main()
