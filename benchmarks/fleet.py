"""What a run costs on a fleet: plan, dispatch, work, merge, requests to storage, writes to the database.

    python -m benchmarks.fleet [--images 10000000] [--masks 10] [--images-per-s 20] [--json OUT]

`cost` is arithmetic from figures that were measured, each beside the command that gives it. `played` plays the same
run through, part by part, with parts of uneven length that the device takes which is free first; the tests hold one
against the other.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from bpr_service.jobs.refine.plan import BLOCK_RECORDS, MAX_PARTS

DEVICES = (1, 16, 256)
PLAN_S = 15.8e-6
"""Of a record of a COCO results file (`benchmarks.scale run --images 1000000`)."""
QUEUE_S = 1.2e-3
"""Of a part (`benchmarks.scale run --images 10000000 --simulated`)."""
MERGE_S = 8.4e-6
"""Of a record (the same)."""
REQUESTS_OF_A_PICTURE = 2
"""Its file, and its records where they lie together (`benchmarks.batch s3`)."""
REQUESTS_OF_A_PART = 10
"""Whether it is there 2, its place in the plan 4, its units, put; of the merge 2 (`tests/jobs/test_scale.py`)."""
WRITES_OF_A_PART = 6
"""Its entry in the queue, taken, its step, its end; its row, begun and done."""
POLL_S, BEAT_S = 1.0, 5.0
"""Defaults of BPR_JOBS_POLL_S (a part's progress) and BPR_JOBS_BEAT_S (a sign of life), each a write."""


@dataclass(frozen=True)
class Run:
    """What is to be done."""

    images: int = 10_000_000
    masks: int = 10
    images_per_s: float = 20.0

    @property
    def parts(self) -> int:
        """As the plan cuts them."""
        blocks = -(-self.images // min(16, max(1, BLOCK_RECORDS // self.masks)))
        return -(-blocks // -(-blocks // MAX_PARTS))

    @property
    def part_s(self) -> float:
        """How long a device works on a part."""
        return self.images / self.parts / self.images_per_s


@dataclass(frozen=True)
class Cost:
    """Seconds of each stage, and what storage and database are asked for."""

    devices: int
    plan_s: float
    dispatch_s: float
    work_s: float
    merge_s: float
    requests: int
    writes: int
    writes_per_s: float


def cost(run: Run, devices: int) -> Cost:
    """By arithmetic: the work is even, and the last parts leave devices idle for half a part."""
    work_s = run.images / run.images_per_s / devices + (run.part_s / 2 if devices > 1 else 0)
    records, busy_s = run.images * run.masks, run.images / run.images_per_s
    writes = round(WRITES_OF_A_PART * run.parts + busy_s / POLL_S + devices * work_s / BEAT_S)
    requests = REQUESTS_OF_A_PICTURE * run.images + REQUESTS_OF_A_PART * run.parts
    return Cost(
        devices, PLAN_S * records, QUEUE_S * run.parts, work_s, MERGE_S * records, requests, writes, writes / work_s
    )


def played(run: Run, devices: int, seed: int = 0) -> Cost:
    """By playing it through: parts take half to one and a half times the mean, everything is counted as it comes."""
    rng, free, left = random.Random(seed), [0.0] * devices, run.images
    requests = writes = 0
    for part in range(run.parts):
        images = left // (run.parts - part)
        left -= images
        takes = images / run.images_per_s * rng.uniform(0.5, 1.5)
        heapq.heappush(free, heapq.heappop(free) + takes)
        requests += REQUESTS_OF_A_PART + REQUESTS_OF_A_PICTURE * images
        writes += WRITES_OF_A_PART + int(takes / POLL_S)
    work_s = max(free)
    writes += devices * int(work_s / BEAT_S)
    by_sum = cost(run, devices)
    return Cost(devices, by_sum.plan_s, by_sum.dispatch_s, work_s, by_sum.merge_s, requests, writes, writes / work_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--masks", type=int, default=10)
    parser.add_argument("--images-per-s", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    run = Run(args.images, args.masks, args.images_per_s)
    rows = [{"by": by.__name__, **asdict(by(run, devices))} for devices in DEVICES for by in (cost, played)]
    result = {**asdict(run), "parts": run.parts, "minutes_of_a_part": round(run.part_s / 60, 1), "rows": rows}
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
