"""How good the shipped models are, and how good others are on the same masks, in one run.

    python benchmarks/quality.py --model balanced --peers guided,grabcut,crf --workers 4 --json quality.json
    python benchmarks/quality.py --sets all --model fast --subset 5

Reads the val splits of the boundary corpus (``--data``) and their fixed coarse masks (`quality_domains` lists the sets
of other domains); prints the measures of every method with their 95 % intervals and, where there is one, the target;
then slices by object size and coarse IoU, wrong pixels by their distance from the coarse boundary, and what the
confidence is worth: calibration error, rank correlation, risk-coverage.

Real predictions are measured too: ``--instances NAME=RESULTS.json`` (COCO results for ccp's val images),
``--labels NAME=FOLDER`` (label PNGs of CamVid's val images).
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

import numpy as np
import typer
from quality_domains import DOMAIN_SETS, domain_items
from quality_measure import measure_item, summarise_set
from quality_sets import SETS, Item, corpus_items, instance_items, semantic_items
from quality_stats import by_distance, confidence_of, intervals, slices
from quality_tables import more_tables, print_table, table

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"

_METHODS: dict[str, Any] = {}


class Ours:
    """The refiner, with the interface of the peers."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        from bpr_service.refine.refiner import Refiner

        self.refiner = Refiner.load(model, **options)

    def instances(self, image: Any, masks: Any) -> Any:
        result = self.refiner.refine(image, masks)
        self.confidences = [np.nan if r.confidence is None else r.confidence for r in result.reports]
        return result.masks

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
                values["confidence"] = confidence_of(entry["rows"])
                values["wrong_px"] = by_distance(entry["rows"])
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
    for more in more_tables(results, {item.set: item.kind for item in items}):
        print()
        print_table(more)
    print(f"\n{len(items)} images, {time.perf_counter() - start:.0f} s; options {options}; every {subset}. image")
    print("Gains are points above the coarse masks, whose own values stand in their column; ± half a 95 % interval.")
    if out is not None:
        out.write_text(json.dumps({"options": options, "subset": subset, "results": results}, indent=1))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
