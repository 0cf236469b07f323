"""Memory and time of semantic refinement as images and boundaries grow.

    python benchmarks/memory.py                                        a network that costs nothing
    python benchmarks/memory.py --model balanced --sides 512 1024      a real one

Label maps of 20 classes. First the side grows with the regions' size fixed; then, at one side, the regions
shrink, so the boundary grows while the image stays. Each row is a process of its own: "above maps" is its
peak resident memory less the image, the map, the refined map (one byte a pixel) and what it held before it
started. Seconds are the processor's, one thread, the quickest of three runs or more after the one whose peak
is taken. The last line of each table is the straight line through its rows, and how far apart the times for a
boundary pixel are.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = 20


def label_map(side: int, region: int) -> NDArray[np.uint8]:
    """(side, side) uint8: random labels on a grid of `region` px whose lines are bent."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, CLASSES, (side // region + 3, side // region + 3)).astype(np.uint8)
    at = np.arange(side)
    out = np.empty((side, side), np.uint8)
    bend = (region * 0.2 * np.sin(at / (region * 0.37))).astype(np.int64)
    for y in range(side):
        shift = int(region * 0.2 * np.sin(y / (region * 0.29)))
        out[y] = cells[(y + bend + region) // region, (at + shift + region) // region]
    return out


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure(folder: Path, model: str) -> dict[str, float]:
    """In a process of its own: refine the map in `folder`, and say what it took."""
    import cv2
    import torch
    from torch import Tensor, nn

    from bpr_service.config import RefineConfig
    from bpr_service.network.model import Model
    from bpr_service.network.weights import ModelCard, NetworkCard
    from bpr_service.refine.boundary import boundary_pixels
    from bpr_service.refine.labels.regions import LabelRegions
    from bpr_service.refine.refiner import Refiner

    class Free(nn.Module):
        """Gives the mask back, a little shifted."""

        def forward(self, patches: Tensor) -> Tensor:
            return torch.roll(patches[:, 3:4], 1, 3) * 4

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    config = RefineConfig(max_pixels=1 << 28)  # 16,384 x 16,384
    card = ModelCard(name="free", version="0", network=NetworkCard(name="none"), patch=config.patch)
    refiner = (
        Refiner(Model(Free(), card), config) if model == "free" else Refiner.load(model, max_pixels=config.max_pixels)
    )
    small = np.zeros((100, 2048), np.uint8)  # wide enough to be worked on in blocks
    small[30:60, 30:-30] = 1
    refiner.refine_semantic(np.zeros((100, 2048, 3), np.uint8), small)  # compile
    image, labels = np.load(folder / "image.npy"), np.load(folder / "labels.npy")
    loaded = resident()
    result = refiner.refine_semantic(image, labels)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < 1.0:
        start = process_time()
        refiner.refine_semantic(image, labels)
        taken.append(process_time() - start)
    pixels = sum(len(boundary_pixels(mask)) for mask in LabelRegions(labels, 255))
    return {
        "above_gb": (peak - loaded - result.label_map.nbytes) / 1e9,
        "seconds": min(taken),
        "boundary_px": pixels,
        "patches": sum(r.patches for r in result.reports),
        "changed_px": sum(r.added_px for r in result.reports),
    }


def row(side: int, region: int, model: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "labels.npy", label_map(side, region))
        np.save(folder / "image.npy", np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8))
        command = [sys.executable, __file__, "--child", name, "--model", model]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, float] = json.loads(done.stdout)
    print(
        f"{side:6} {region:7} {answer['boundary_px']:12.0f} {answer['patches']:9.0f} {answer['seconds']:9.2f}"
        f" {1e6 * answer['seconds'] / answer['boundary_px']:12.2f} {answer['above_gb']:16.2f}",
        flush=True,
    )
    return answer


def table(title: str, cases: list[tuple[int, int]], model: str) -> list[dict[str, float]]:
    print(f"\n{title}\n{'side':>6} {'region':>7} {'boundary px':>12} {'patches':>9} {'seconds':>9}", end="")
    print(f" {'us/boundary px':>12} {'above maps GB':>15}")
    rows = [row(side, region, model) for side, region in cases]
    x, y = (np.array([r[k] for r in rows]) for k in ("boundary_px", "seconds"))
    if len(rows) > 2:
        slope, fixed = np.polyfit(x, y, 1)
        fit = float(np.corrcoef(x, y)[0, 1] ** 2)
        print(f"seconds = {fixed:.2f} + {1e6 * slope:.2f}e-6 * boundary px, R^2 = {fit:.4f}", end="")
        print(f", slowest / quickest boundary px = {(y / x).max() / (y / x).min():.2f}")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--region", type=int, default=256)
    parser.add_argument("--model", default="free", help="a preset or model, or 'free': one that costs nothing")
    parser.add_argument("--limit-gb", type=float, default=0.25)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args: Any = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child, args.model)))
        return 0
    rows = table("the image grows", [(side, args.region) for side in args.sides], args.model)
    rows += table("the boundary grows", [(args.sides[1 % len(args.sides)], r) for r in (512, 256, 128, 64)], args.model)
    worst = max(r["above_gb"] for r in rows)
    print(f"\npeak above the maps: {worst:.2f} GB (limit {args.limit_gb:g})")
    return int(worst > args.limit_gb)


if __name__ == "__main__":
    sys.exit(main())
