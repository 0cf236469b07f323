"""How good the shipped models are, and how good others are on the same masks, in one run.

    python benchmarks/quality.py --model balanced --peers guided,grabcut,crf --workers 4 --json quality.json
    python benchmarks/quality.py --sets all --model fast --subset 5

Reads the val splits of the boundary corpus (``--data``) and their fixed coarse masks (`quality_domains` lists the sets
of other domains); prints the measures of every method with their 95 % intervals and, where there is one, the target;
with ``--json`` also slices by object size and coarse IoU. Real predictions are measured too: ``--instances
NAME=RESULTS.json`` (COCO results for ccp's val images), ``--labels NAME=FOLDER`` (label PNGs of CamVid's val images).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from quality_domains import DOMAIN_SETS, DOMAINS, domain_items
from quality_measure import measure_item, summarise_set
from quality_sets import SETS, Item, corpus_items, instance_items, semantic_items
from quality_stats import intervals, slices

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"

Rows = list[tuple[str, str, str, float | None]]
TABLE: dict[str, Rows] = {
    # what is printed, the measure, how it is shown, the target
    "instance": [
        ("(1 - F@1px) removed", "share_removed", "percent", None),
        ("masks worse", "worse_share", "percent", None),
        ("masks better", "better_share", "percent", None),
        ("mean IoU", "iou_after", "plain", None),
        ("band error", "band_error_after", "percent", None),
    ],
    "semantic": [
        ("mIoU", "mIoU", "gain", 2.5),
        ("class F@1px", "AF_present", "gain", 12.0),
        ("class F@1px, absent = 1", "AF", "gain", None),
    ],
    "panoptic": [("PQ", "PQ", "gain", 3.3), ("boundary PQ", "boundary_PQ", "gain", 5.0)],
}
TARGETS: dict[tuple[str, str], float] = {
    ("ccp", "share_removed"): 55.0,
    ("ccp", "worse_share"): 4.0,
    ("bsds", "share_removed"): 32.0,
    ("bsds", "worse_share"): 8.0,
    ("blocks", "share_removed"): 64.0,
    ("blocks", "worse_share"): 1.5,
    ("exact", "iou_after"): 0.997,
    ("exact", "worse_share"): 5.0,
    ("blank", "worse_share"): 0.0,
    ("ccp_x3", "share_removed"): 40.0,
    ("ccp_x3", "worse_share"): 6.0,
    **{(name, "share_removed"): 45.0 for name in DOMAINS},
    **{(name, "worse_share"): 5.0 for name in DOMAINS},
    **{(f"{name}_exact", "worse_share"): 10.0 for name in DOMAINS},
    **{(f"{name}_deeplab", "share_removed"): 40.0 for name in ("davis", "penn")},
    **{(f"{name}_deeplab", "worse_share"): 2.0 for name in ("davis", "penn")},
    **{(f"{name}_soft", "share_removed"): 20.0 for name in ("davis", "penn")},
    **{(f"{name}_soft", "worse_share"): 3.0 for name in ("davis", "penn")},
    **{(f"{name}_unet", "worse_share"): 8.0 for name in ("glas", "lung", "smear")},
}
LESS_IS_BETTER = ("worse_share", "band_error_after")
RIGHT_ALREADY = ("exact", "blank", *(f"{name}_exact" for name in DOMAINS))
HIDDEN = dict.fromkeys(RIGHT_ALREADY, ("share_removed", "better_share", "band_error_after"))

_METHODS: dict[str, Any] = {}


class Ours:
    """The refiner, with the interface of the peers."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        from bpr_service.refine.refiner import Refiner

        self.refiner = Refiner.load(model, **options)

    def instances(self, image: Any, masks: Any) -> Any:
        return self.refiner.refine(image, masks).masks

    def semantic(self, image: Any, label_map: Any) -> Any:
        return self.refiner.refine_semantic(image, label_map).label_map

    def panoptic(self, image: Any, segments: Any, infos: Any) -> Any:
        return self.refiner.refine_panoptic(image, segments, infos).segment_map


def make_methods(models: list[str], peers: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """The coarse masks, the peers and our models, by name."""
    from quality_peers import PEERS, Coarse

    methods: dict[str, Any] = {"coarse": Coarse()}
    methods |= {name: PEERS[name]() for name in peers}
    for model in models:
        methods[Path(model).name if Path(model).is_dir() else model] = Ours(model, options)
    return methods


def _start(models: list[str], peers: list[str], options: dict[str, Any]) -> None:
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _METHODS.update(make_methods(models, peers, options))


def _work(item: Item) -> tuple[Item, dict[str, dict[str, Any]]]:
    return item, measure_item(item, _METHODS)


def measure(
    items: list[Item], models: list[str], peers: list[str], options: dict[str, Any], workers: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measures by set and method, image after image in ``workers`` processes of one thread each.

    Each method's measures, with their intervals under ``interval`` (`quality_stats.intervals`) and an instance set's
    ``slices``.
    """
    gathered: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    groups: dict[str, list[str]] = defaultdict(list)
    kinds = {item.set: item.kind for item in items}
    for done, (item, results) in enumerate(_run(items, models, peers, options, workers), 1):
        groups[item.set] += [item.group or item.image.stem] * len(next(iter(results.values()))["rows"])
        for name, result in results.items():
            entry = gathered[item.set].setdefault(name, {"rows": [], "seconds": 0.0, "masks": 0})
            entry["rows"] += result["rows"]
            entry["seconds"] += result["seconds"]
            entry["masks"] += result["masks"]
        if sys.stderr.isatty():
            print(f"\r{done}/{len(items)} images", end="", file=sys.stderr)
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for name, methods in gathered.items():
        kind, of_method = kinds[name], {method: entry["rows"] for method, entry in methods.items()}
        found = intervals(kind, of_method, groups[name])
        out[name] = {}
        for method, entry in methods.items():
            values: dict[str, Any] = dict(summarise_set(kind, entry["rows"]))
            values["ms_per_mask"] = 1e3 * entry["seconds"] / max(entry["masks"], 1)
            values["interval"] = found[method]
            if kind == "instance":
                values["slices"] = slices(entry["rows"])
            out[name][method] = values
    return out


def _run(
    items: list[Item], models: list[str], peers: list[str], options: dict[str, Any], workers: int
) -> Iterator[Any]:
    if workers <= 1:
        _start(models, peers, options)
        yield from map(_work, items)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start, (models, peers, options)) as pool:
        yield from pool.map(_work, items)


# ---- the table ------------------------------------------------------------------------------------------------------


def as_shown(style: str, value: float, base: float) -> float:
    """A measure as the table shows it: percent, points above the coarse masks, or as it is."""
    return {"percent": 100 * value, "gain": 100 * (value - base), "plain": value}[style]


def table(results: dict[str, dict[str, dict[str, Any]]], kinds: dict[str, str]) -> list[list[str]]:
    """Rows of text: set, measure, each method with half the width of its interval, target."""
    methods = list(next(iter(results.values())))
    rows = [["set", "measure", *methods, "target"]]
    for name, of_method in results.items():
        for label, key, style, target in TABLE[kinds[name]]:
            if key in HIDDEN.get(name, ()):
                continue
            wanted = TARGETS.get((name, key), target)
            cells = [_cell(of_method[m], key, style, of_method["coarse"]) for m in methods]
            sign = "<=" if key in LESS_IS_BETTER else ">="
            rows.append([name, label, *cells, f"{sign} {wanted:g}" if wanted is not None else ""])
        rows.append([name, "ms a mask", *[f"{of_method[m]['ms_per_mask']:.1f}" for m in methods], ""])
    return rows


def _cell(values: dict[str, Any], key: str, style: str, coarse: dict[str, Any]) -> str:
    if values is coarse:
        return {"percent": f"{100 * values[key]:.1f}%", "gain": f"{100 * values[key]:.2f}"}.get(
            style, f"{values[key]:.4f}"
        )
    value, base = as_shown(style, values[key], coarse[key]), values["interval"]
    half = (base["high"][key] - base["low"][key]) / 2 * (1 if style == "plain" else 100)
    return {"percent": f"{value:.1f}% ±{half:.1f}", "gain": f"{value:+.2f} ±{half:.2f}"}.get(
        style, f"{value:.4f} ±{half:.4f}"
    )


def print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for k, row in enumerate(rows):
        print(
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )
        if k == 0:
            print("  ".join("-" * w for w in widths))


def _named(pairs: list[str]) -> list[tuple[str, Path]]:
    named = [pair.partition("=") for pair in pairs]
    return [(name, Path(path)) for name, _, path in named]


def main(
    model: Annotated[list[str] | None, typer.Option(help="Preset, model or folder; may be repeated.")] = None,
    peers: Annotated[str, typer.Option(help="Of guided, grabcut, crf; comma-separated, or none.")] = "none",
    sets: Annotated[
        str, typer.Option(help=f"Of {', '.join((*SETS, *DOMAIN_SETS))}; comma-separated; or home, away, all.")
    ] = "home",
    data: Annotated[Path, typer.Option(help="The boundary corpus.")] = DATA,
    subset: Annotated[int, typer.Option(min=1, help="Take every N-th image.")] = 1,
    gate: Annotated[bool, typer.Option(help="Do no harm.")] = True,
    flip: Annotated[bool, typer.Option(help="Also refine each patch mirrored.")] = False,
    option: Annotated[list[str] | None, typer.Option(help="Another setting of the refiner: KEY=VALUE as JSON.")] = None,
    instances: Annotated[list[str] | None, typer.Option(help="NAME=RESULTS.json for ccp's val images.")] = None,
    labels: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER of label PNGs for CamVid's val images.")] = None,
    workers: Annotated[int, typer.Option(min=1)] = max((os.cpu_count() or 2) // 2, 1),
    out: Annotated[Path | None, typer.Option("--json", help="Also write the measures here.")] = None,
) -> None:
    """Print the measures of every method on the val splits."""
    options: dict[str, Any] = {"gate": gate, "flip": flip}
    for pair in option or ():
        key, _, value = pair.partition("=")
        options[key] = json.loads(value)
    named = {"home": SETS, "away": DOMAIN_SETS, "all": (*SETS, *DOMAIN_SETS), "": ()}.get(sets, tuple(sets.split(",")))
    items = corpus_items(data, [s for s in named if s in SETS], subset)
    for name in named:
        items += domain_items(data, name)[::subset] if name not in SETS else []
    ccp, camvid = data / "ccp", data / "camvid" / "val"
    for name, path in _named(instances or []):
        items += list(instance_items(name, ccp / "instances_val.json", path, ccp / "images"))[::subset]
    for name, path in _named(labels or []):
        items += list(semantic_items(name, camvid / "labels", path, camvid / "images"))[::subset]
    start = time.perf_counter()
    results = measure(
        items, model or ["balanced"], [p for p in peers.split(",") if p not in ("", "none")], options, workers
    )
    rows = table(results, {item.set: item.kind for item in items})
    print_table(rows)
    print(f"\n{len(items)} images, {time.perf_counter() - start:.0f} s; options {options}; every {subset}. image")
    print("Gains are points above the coarse masks, whose own values stand in their column; ± half a 95 % interval.")
    if out is not None:
        out.write_text(json.dumps({"options": options, "subset": subset, "results": results}, indent=1))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
