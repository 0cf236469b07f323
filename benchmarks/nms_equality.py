"""Kept patches against torchvision's NMS, and what the covering pass adds, on real masks.

    python benchmarks/nms_equality.py --data ../shared/data

Masks: every instance of CCP val, ground truth and coarse, and every class of CamVid val, labels and coarse. For each
threshold: whether kept boxes and their order are the same, patches a mask, the share of boundary pixels that NMS leaves
in no patch, and the patches that covering them adds. Exits with 1 where anything differs or is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import nms

from bpr_service.config import PatchConfig
from bpr_service.masks.mask import Mask, read_label_map
from bpr_service.refine.boundary import boundary_pixels
from bpr_service.refine.labels.regions import LabelRegions
from bpr_service.refine.patches import left_out, place_patches, squares, suppress, window_positions

THRESHOLDS = (0.0, 0.15, 0.25, 0.55, 0.65)


def masks(data: Path) -> Iterator[tuple[str, Mask]]:
    """Every mask, with the name of its set."""
    truth: dict[str, Any] = json.loads((data / "ccp" / "instances_val.json").read_text())
    for annotation in truth["annotations"]:
        yield "ccp val", Mask.from_rle(annotation["segmentation"])
    for result in json.loads((data / "coarse" / "ccp_val.json").read_text()):
        yield "ccp val, coarse", Mask.from_rle(result["segmentation"])
    for name, folder in (("camvid val", "camvid/val/labels"), ("camvid val, coarse", "coarse/camvid_val")):
        for path in sorted((data / folder).glob("*.png")):
            for region in LabelRegions(read_label_map(path), 255):
                yield name, region


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[1] / "../shared/data")
    parser.add_argument("--size", type=int, default=64, help="patch size, px")
    args = parser.parse_args()
    torch.set_num_threads(1)
    counts: dict[tuple[str, float], np.ndarray] = {}
    failures = 0
    for name, mask in masks(args.data):
        boundary = boundary_pixels(mask)
        if len(boundary) == 0:
            continue
        xs, ys = window_positions(boundary, mask.height, mask.width, args.size)
        boxes = squares(xs, ys, args.size)
        order = torch.linspace(1.0, 0.5, len(boundary), dtype=torch.float32)
        if (order.diff() >= 0).any():
            raise SystemExit("too many boundary pixels for distinct float32 scores")
        candidates = torch.from_numpy(boxes).float()
        for threshold in THRESHOLDS:
            kept = suppress(xs, ys, args.size, threshold)
            same = np.array_equal(kept, nms(candidates, order, threshold).numpy())
            config = PatchConfig(patch_size_px=args.size, nms_threshold=threshold)
            placed = place_patches(mask, config)
            missing = int(left_out(boundary, placed).sum())
            failures += (not same) + (missing > 0)
            row = counts.setdefault((name, threshold), np.zeros(6, np.int64))
            gaps = int(left_out(boundary, boxes[kept]).sum())
            row += (1, same, len(boundary), kept.size, gaps, placed.shape[0] - kept.size)
    print(f"{'set':20} {'NMS':>5} {'masks':>6} {'equal':>6} {'patches/mask':>13} {'left out':>9} {'added/mask':>11}")
    for (name, threshold), (n, same, pixels, kept_n, gaps, added) in counts.items():
        share = 100.0 * gaps / pixels
        print(f"{name:20} {threshold:5.2f} {n:6} {same:6} {kept_n / n:13.2f} {share:8.3f}% {added / n:11.3f}")
    print("every kept patch equal, every boundary pixel covered" if not failures else f"{failures} failures")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
