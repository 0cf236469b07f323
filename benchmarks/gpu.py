"""The paper's two settings on an accelerator, image and RLEs in memory to RLEs out.

135 patches at 128 through HRNet-W18-small, and 332 at 256 through FCN-ResNet-50.

    python benchmarks/gpu.py                            every backend and precision; needs a CUDA device
    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --device cpu --shrink 16   the same code on the processor, a sixteenth of the patches

Weights are random: time does not depend on them. The paper (Tang et al., CVPR 2021, section 4.4) gives 211 ms for the
first, on an RTX 2080 Ti. "peak" is a bfloat16 product of two large matrices, measured here; "of peak" is the network's
arithmetic at the pace of "network" over it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bpr_service.bench.baseline import scene
from bpr_service.bench.limits import gflop_a_patch, until_done
from bpr_service.config import RefineConfig, build
from bpr_service.errors import BprError
from bpr_service.masks.mask import Mask
from bpr_service.network.model import Model
from bpr_service.network.registry import build_network
from bpr_service.network.weights import ModelCard, NetworkCard
from bpr_service.refine.patches import place_patches
from bpr_service.refine.refiner import Refiner

SETTINGS = (
    {"network": "fcn_hrnet_w18s", "network_size_px": 128, "nms_threshold": 0.25, "patches": 135, "aim_ms": 10.0},
    {"network": "fcn_resnet50", "network_size_px": 256, "nms_threshold": 0.55, "patches": 332, "aim_ms": 70.0},
)
WAYS = (("eager", "fp32"), ("eager", "bf16"), ("graphs", "bf16"), ("compile", "bf16"))


def median_ms(call: Callable[[], Any], device: str, repeat: int) -> float:
    """Median milliseconds of a call, until the device has done it all."""
    whole, times = until_done(call, device), []
    for _ in range(repeat + 3):  # the first record, compile and warm up
        start = time.perf_counter()
        whole()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[3:])


def peak_tflops(device: str, side: int) -> float:
    """TFLOP/s of a bfloat16 product of two side x side matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / median_ms(lambda: a @ b, device, 10) / 1e9


def request(config: RefineConfig, patches: int) -> tuple[Any, list[dict[str, Any]], int]:
    """A 1024 x 2048 image and as many RLEs as have about so many patches; how many they have."""
    image, rles = scene(200, seed=0)
    counts = [len(place_patches(Mask.from_rle(rle), config.patch)) for rle in rles]
    n = int(np.searchsorted(np.cumsum(counts), patches)) + 1
    return image, rles[:n], sum(counts[:n])


def measure(setting: dict[str, Any], backend: str, precision: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    patch = {"padding_px": 0, "cover": False, **{k: setting[k] for k in ("network_size_px", "nms_threshold")}}
    config = build(RefineConfig, {**patch, "backend": backend, "precision": precision, "batch_size": 4096})
    card = ModelCard(
        name=setting["network"], version="0", network=NetworkCard(name=setting["network"]), patch=config.patch
    )
    torch.manual_seed(0)
    model = Model(build_network(setting["network"]), card, device=args.device)
    refiner = Refiner(model, config)
    image, rles, count = request(config, max(setting["patches"] // args.shrink, 1))

    def whole() -> dict[str, float]:
        result = refiner.refine(image, [Mask.from_rle(rle) for rle in rles])
        for mask in result.masks:
            mask.to_rle()
        return result.timings_ms

    size = config.patch.network_size_px
    crops: Any = np.random.default_rng(0).integers(0, 256, (count, size, size, 4)).astype(np.uint8)
    if refiner.resides is not None:
        crops = torch.from_numpy(crops).to(refiner.resides)
    request_ms = median_ms(whole, refiner.device, args.repeat)
    network_ms = median_ms(lambda: refiner.logits(crops), refiner.device, args.repeat)
    tflop = gflop_a_patch(refiner.model.network, size) * count / 1e3
    return {
        "network": setting["network"],
        "network_size_px": size,
        "patches": count,
        "masks": len(rles),
        "backend": backend,
        "precision": precision,
        "request_ms": round(request_ms, 2),
        "network_ms": round(network_ms, 2),
        "aim_ms": setting["aim_ms"],
        "tflops": round(tflop / network_ms * 1e3, 2),
        "steps_ms": whole(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--shrink", type=int, default=1, help="a fraction of the patches, for a try")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = args.device
    try:
        name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "processor"
    except (AssertionError, RuntimeError):
        parser.error(f"no device {args.device} here; --device cpu --shrink 16 tries the same code on the processor")
    peak = peak_tflops(device, 8192 if device.startswith("cuda") else 1024)
    print(f"{name}: {peak:.1f} TFLOP/s of a bfloat16 product\n")
    heads = f"{'network':16}{'patches':>8}  {'backend':9}{'precision':11}"
    print(f"{heads}{'request ms':>11}{'network ms':>11}{'of peak':>9}")
    rows = []
    for setting in SETTINGS:
        for backend, precision in WAYS:
            try:
                row = measure(dict(setting), backend, precision, args)
            except BprError as error:
                print(f"{setting['network']:24}  {backend:9}{precision:11} {error}")
                continue
            row["share_of_peak"] = round(row["tflops"] / peak, 3)
            rows.append(row)
            print(
                f"{row['network']:16}{row['patches']:8}  {backend:9}{precision:11}{row['request_ms']:11.2f}"
                f"{row['network_ms']:11.2f}{row['share_of_peak']:9.1%}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps({"device": name, "peak_tflops": round(peak, 1), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
