"""Quality against patches and time: the presets, and other settings of the refiner, on the same val masks in one run.

    python benchmarks/budget.py --workers 3 --json docs/budget.json
    python benchmarks/budget.py --setting 'sparse=balanced {"nms_threshold": 0.1}'

For every setting: patches through its network and processor time of the whole call, both as ratios to ``balanced``,
mean boundary F at 1 px of the refined instance masks, and what of the boundary error was removed and how many masks
became worse.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from quality_measure import pairs
from quality_sets import Item, corpus_items

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
REFERENCE = "balanced"

_REFINERS: dict[str, Any] = {}


def parse(text: str) -> tuple[str, str, dict[str, Any]]:
    """``NAME=PRESET {options}`` as its parts."""
    name, _, rest = text.partition("=")
    preset, _, options = rest.partition(" ")
    return name, preset, json.loads(options or "{}")


def _start(settings: list[tuple[str, str, dict[str, Any]]]) -> None:
    import cv2
    import torch

    from bpr_service.refine.refiner import Refiner

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    picture = np.zeros((128, 128, 3), np.uint8)
    square = np.zeros((128, 128), np.uint8)
    square[30:90, 30:90] = 1
    for name, preset, options in settings:
        _REFINERS[name] = Refiner.load(preset, **options)
        _REFINERS[name].refine(picture, [square])  # compiles what is compiled at the first call


def _work(item: Item) -> tuple[str, dict[str, dict[str, Any]]]:
    from bpr_service.masks.images import read_image
    from refiner_training.metrics.change import measure_triple

    image = read_image(item.image)
    coarse, truth = pairs(item)
    out = {}
    for name, refiner in _REFINERS.items():
        start = time.thread_time()
        result = refiner.refine(image, coarse)
        seconds = time.thread_time() - start
        rows = [measure_triple(*triple) for triple in zip(coarse, result.masks, truth, strict=True)]
        out[name] = {"seconds": seconds, "patches": sum(r.patches for r in result.reports), "rows": rows}
    return item.set, out


def main(
    setting: Annotated[list[str] | None, typer.Option(help="NAME=PRESET {options as JSON}; may be repeated.")] = None,
    sets: Annotated[str, typer.Option(help="Of ccp, bsds; comma-separated.")] = "ccp,bsds",
    data: Annotated[Path, typer.Option(help="The boundary corpus.")] = DATA,
    subset: Annotated[int, typer.Option(min=1, help="Take every N-th image.")] = 1,
    option: Annotated[str, typer.Option(help="Options of every setting, as JSON.")] = "{}",
    workers: Annotated[int, typer.Option(min=1)] = 2,
    out: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Print quality against patches and time."""
    from refiner_training.metrics.change import collect

    common = json.loads(option)
    named = [parse(s) for s in setting or ()] or [(p, p, {}) for p in ("fast", "lean", "best")]
    chosen = [(REFERENCE, REFERENCE, common)] + [(n, p, {**common, **o}) for n, p, o in named if n != REFERENCE]
    gathered: dict[str, dict[str, dict[str, Any]]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start, (chosen,)) as pool:
        for set_name, results in pool.map(_work, corpus_items(data, sets.split(","), subset)):
            for name, result in results.items():
                entry = gathered.setdefault(set_name, {}).setdefault(name, {"seconds": 0.0, "patches": 0, "rows": []})
                for key in entry:
                    entry[key] += result[key]
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for set_name, of_setting in gathered.items():
        base = of_setting[REFERENCE]
        figures[set_name] = {}
        print(f"{set_name:<6}{'setting':<22}{'patches':>9}{'time':>7}{'F@1px':>9}{'removed':>9}{'worse':>8}")
        for name, entry in of_setting.items():
            summary = collect(entry["rows"])["summary"]
            row = {
                "patches_ratio": entry["patches"] / base["patches"],
                "time_ratio": entry["seconds"] / base["seconds"],
                "boundary_F": float(np.mean([r[7] for r in entry["rows"]])),
                "share_removed": float(summary["share_removed"]),
                "worse_share": float(summary["worse_share"]),
            }
            figures[set_name][name] = row
            print(
                f"{'':<6}{name:<22}{row['patches_ratio']:>9.2f}{row['time_ratio']:>7.2f}{row['boundary_F']:>9.4f}"
                f"{100 * row['share_removed']:>8.1f}%{100 * row['worse_share']:>7.1f}%"
            )
    if out is not None:
        out.write_text(json.dumps({"options": common, "subset": subset, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
