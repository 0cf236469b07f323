"""What refinement costs around the network, against a fair baseline, step by step.

    python benchmarks/steps.py                 one thread; milliseconds of processor time, and ratios
    python benchmarks/steps.py --nms 0.55

What is compared: ``bpr_service.bench.baseline``. Exits with 1 where the results differ.
"""

from __future__ import annotations

import argparse
import sys

import cv2
import torch

from bpr_service.bench.baseline import STEPS, compare
from bpr_service.errors import ConflictError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nms", type=float, default=0.55)
    parser.add_argument("--masks", type=int, default=18)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        n, ms = compare(args.masks, args.nms, args.repeat, args.seed)
    except ConflictError as error:
        print(error)
        return 1
    print(f"{args.masks} masks, {n} patches at NMS {args.nms}, median of {args.repeat} runs, ms")
    print(f"{'step':16} {'baseline':>9} {'ours':>9} {'ratio':>7}")
    for step in STEPS:
        print(f"{step:16} {ms['baseline'][step]:9.2f} {ms['ours'][step]:9.2f} "
              f"{ms['baseline'][step] / ms['ours'][step]:7.1f}")  # fmt: skip
    total = {name: sum(parts.values()) for name, parts in ms.items()}
    ratio = total["baseline"] / total["ours"]
    print(f"{'total':16} {total['baseline']:9.2f} {total['ours']:9.2f} {ratio:7.1f}   (results equal)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
