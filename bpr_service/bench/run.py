"""``bpr bench``: the time of each step on a fixed workload, beside its limit, and the ratios that should not drift."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.bench.baseline import STEPS as BASELINE_STEPS
from bpr_service.bench.baseline import compare
from bpr_service.bench.limits import gflop_a_patch, machine, patches_per_s
from bpr_service.bench.workload import Request, workload
from bpr_service.config import RefineConfig
from bpr_service.errors import ConfigError, FormatError
from bpr_service.masks.images import read_image
from bpr_service.masks.mask import Mask
from bpr_service.network.model import Model
from bpr_service.refine.refiner import Refiner

STEPS = ("decode", "boundary_nms", "crop", "network", "reassemble", "encode")
TIMINGS = {"patches": "boundary_nms", "crops": "crop", "network": "network", "reassembly": "reassemble"}
LOST = 1.10
"""A step that costs this much more of the wall than in the baseline is flagged."""


def bench(
    preset: str,
    data: Path | None,
    *,
    model: Path | None = None,
    device: str = "cpu",
    repeat: int = 3,
    int8: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Measure; see `docs/performance.md` for what the keys mean.

    Raises:
        UnknownName, ConfigError, ModelError, DeviceError: as `Refiner.load`.
        FormatError: a folder `data` without the corpus.
    """
    refiner = Refiner.load(preset, model=model, device=device, **settings)
    loaded = refiner.model
    assert isinstance(loaded, Model)
    source, requests = workload(data)
    limits = machine(refiner.device)
    _, ms = compare(18, 0.55, repeat=repeat + 2, seed=0)  # before the network has left the heap in pieces
    crops = np.concatenate([_crops(refiner, request) for request in requests])
    _one(refiner, requests[0])  # compiles and warms up
    runs = [[_one(refiner, request) for request in requests] for _ in range(repeat)]
    parts = {step: float(np.median([[ms[step] for ms in run] for run in runs])) for step in STEPS}
    wall_ms = float(np.median([[ms["wall"] for ms in run] for run in runs]))
    patches = len(crops) / len(requests)
    pure = patches_per_s(loaded.forward(refiner.config), crops, refiner.config.batch_size, refiner.device)
    gflop = gflop_a_patch(loaded.network, refiner.config.patch.network_size_px)
    floors = {
        "network": 1e3 * patches / pure,
        "crop": _copy_ms(2 * crops.nbytes / len(requests), limits),
        "reassemble": _copy_ms(2 * crops.nbytes / len(requests), limits),
    }
    versus = {step: ms["baseline"][step] / ms["ours"][step] for step in BASELINE_STEPS}
    codec = [BASELINE_STEPS[0], BASELINE_STEPS[-1]]
    return {
        "workload": {
            "images": source,
            "size": [1024, 2048],
            "preset": preset,
            "model": refiner.model.name,
            "device": refiner.runs_on,
            "masks": round(float(np.mean([len(request.rles) for request in requests])), 1),
            "patches": round(patches, 1),
        },
        "steps": {
            step: {
                "ms": round(parts[step], 2),
                "share": round(parts[step] / wall_ms, 4),
                "limit_ms": round(floors[step], 2) if step in floors else None,
            }
            for step in STEPS
        }
        | {"wall": {"ms": round(wall_ms, 2), "share": 1.0, "limit_ms": None}},
        "ratios": {
            "network_share_of_wall": round(parts["network"] / wall_ms, 4),
            "network_share_of_peak": round(pure * gflop / limits["gemm_gflops"], 4),
            "int8_over_fp32": _int8(loaded, refiner.config, crops) if int8 else None,
            "extract_vs_baseline": round(versus[BASELINE_STEPS[1]], 2),
            "crop_vs_baseline": round(versus[BASELINE_STEPS[2]], 2),
            "reassemble_vs_baseline": round(versus[BASELINE_STEPS[3]], 2),
            "codec_vs_baseline": round(
                sum(ms["baseline"][step] for step in codec) / sum(ms["ours"][step] for step in codec), 2
            ),
        },
        "machine": {**limits, "patches_per_s": round(pure, 1), "gflop_a_patch": round(gflop, 3)},
    }


def _one(refiner: Refiner, request: Request) -> dict[str, float]:
    """Milliseconds of each step of one request, JPEG and RLEs in, RLEs out."""
    begin = time.perf_counter()
    image = read_image(request.jpeg)
    masks = [Mask.from_rle(rle) for rle in request.rles]
    decoded = time.perf_counter()
    result = refiner.refine(image, masks)
    refined = time.perf_counter()
    for mask in result.masks:
        mask.to_rle()
    end = time.perf_counter()
    ms = {TIMINGS[name]: value for name, value in result.timings_ms.items()}
    return ms | {"decode": 1e3 * (decoded - begin), "encode": 1e3 * (end - refined), "wall": 1e3 * (end - begin)}


def _crops(refiner: Refiner, request: Request) -> NDArray[np.uint8]:
    """(P, S, S, 4) uint8: the patches of a request."""
    prepared = refiner.prepare(read_image(request.jpeg), [Mask.from_rle(rle) for rle in request.rles])
    crops = prepared.crops(0, prepared.n_patches)
    return np.asarray(crops if isinstance(crops, np.ndarray) else crops.cpu())


def _copy_ms(size_bytes: float, limits: Mapping[str, Any]) -> float:
    """Milliseconds that reading or writing so many bytes takes at the measured pace of a copy."""
    return size_bytes / (float(limits["copy_gb_per_s"]) * 1e6)


def _int8(model: Model, config: RefineConfig, crops: NDArray[np.uint8]) -> float | None:
    """Patches a second in int8 over float32, both with OpenVINO; None where it is not installed or not a CPU."""
    from bpr_service.network.backends import open_backend
    from bpr_service.network.int8 import int8_forward

    if model.device != "cpu":
        return None
    size, batch = config.patch.network_size_px, config.batch_size
    try:
        fp32 = open_backend("openvino", "fp32", model.network, model.device, size)
        quantised = int8_forward(model.network, size, crops)
    except (ImportError, ConfigError):
        return None
    return round(
        patches_per_s(quantised, crops, batch, model.device) / patches_per_s(fp32, crops, batch, model.device), 3
    )


def read_baseline(path: Path) -> dict[str, Any]:
    """A result of `bench` from a file. Raises FormatError."""
    try:
        value: dict[str, Any] = json.loads(path.read_text())
        value["steps"]["wall"]["ms"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            str(path), expected="what bpr bench --json printed", got=str(error), fix="make it with bpr bench --json"
        ) from None
    return value


def slower(result: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """Steps that cost over 10 % more than in a baseline.

    On the same machine, of the time itself; on another one, of the step's share of the wall, which moves less.
    """
    same = result["machine"]["processor"] == baseline["machine"]["processor"]
    same = same and result["machine"]["threads"] == baseline["machine"]["threads"]
    key = "ms" if same else "share"
    found = []
    for step in STEPS:
        now, before = result["steps"][step][key], baseline["steps"][step][key]
        if before and now / before > LOST:
            found.append(f"{step}: {now / before:.2f} times the baseline's {'time' if same else 'share'}")
    return found


def rows(result: Mapping[str, Any]) -> Sequence[tuple[str, str, str, str]]:
    """The table's rows: step, milliseconds, share, limit."""
    return [
        (
            step.replace("_", " + "),
            f"{part['ms']:.1f}",
            f"{100 * part['share']:.1f} %",
            f"{part['limit_ms']:.1f}" if part["limit_ms"] is not None else "",
        )
        for step, part in result["steps"].items()
    ]
