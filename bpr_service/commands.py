"""What ``bpr demo``, ``bpr refine``, ``bpr bench`` and ``bpr doctor`` do."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bpr_service.config import RefineConfig, build, parse_settings
from bpr_service.errors import ConfigError, FormatError, UnknownName
from bpr_service.examples import NAMES, load_example
from bpr_service.formats.mask_file import read_mask_file
from bpr_service.masks.images import read_image
from bpr_service.masks.label_maps import read_label_map, read_panoptic_png, write_atomic, write_label_map
from bpr_service.masks.label_maps import write_panoptic_png as write_ids
from bpr_service.masks.mask import Mask
from bpr_service.masks.picture import before_after, write_picture
from bpr_service.refine.refiner import Refiner
from bpr_service.refine.tasks import MaskReport

TASKS = ("instance", "semantic", "panoptic")
PACKAGES = ("torch", "torchvision", "timm", "segmentation-models-pytorch", "numpy", "opencv-python-headless", "numba")


def run_demo(out: Path, *, preset: str, model: Path | None, device: str) -> None:
    """Refine the bundled photographs; one JSON and one picture each, and a table of what changed."""
    refiner = Refiner.load(preset, model=model, device=device)
    try:
        examples = [load_example(name) for name in NAMES]
    except ImportError:
        raise ConfigError(
            "bpr demo",
            expected="scikit-image, which ships the photographs",
            got="none",
            fix='install "bpr-service[demo]"',
        ) from None
    out.mkdir(parents=True, exist_ok=True)
    refiner.refine(examples[0].image[:64, :64], [])
    table = _table("photograph", "object", "status", "confidence", "patches", "pixels added", "pixels removed")
    started = time.perf_counter()
    for example in examples:
        coarse = [Mask.from_rle(instance["segmentation"]) for instance in example.instances]
        result = refiner.refine(example.image, coarse)
        instances = [
            {**instance, "segmentation": mask.to_rle(), "bbox": mask.bbox, "area": mask.area}
            for instance, mask in zip(example.instances, result.masks, strict=True)
        ]
        write_atomic(out / f"{example.name}.json", (json.dumps({"instances": instances}, indent=1) + "\n").encode())
        write_picture(str(out / f"{example.name}.png"), before_after(example.image, coarse, result.masks))
        for instance, report in zip(example.instances, result.reports, strict=True):
            _add(table, (example.name, instance["label"]), report)
    seconds = time.perf_counter() - started
    console = Console()
    console.print(table)
    console.print(f"model {refiner.model.name} on {refiner.runs_on}, {seconds:.1f} s; pictures and JSON in {out}/")


def run_refine(
    image: Path,
    mask: Path,
    out: Path,
    *,
    task: str,
    preset: str,
    model: Path | None,
    device: str,
    ignore_label: int,
    segments: Path | None,
    gate: bool,
    picture: Path | None,
    settings: Iterable[str] = (),
) -> None:
    """Refine one image's masks and write them as they came; nothing is written when anything is wrong."""
    if task not in TASKS:
        raise UnknownName("task", task, TASKS)
    if not image.is_file():
        raise FormatError(str(image), expected="an image", got="no such file", fix="check the path")
    options = {"gate": gate, **parse_settings(settings)}
    build(RefineConfig, options)
    refiner = Refiner.load(preset, model=model, device=device, **options)
    pixels = read_image(image, max_pixels=refiner.config.max_pixels)
    if task == "instance":
        reports, pair = _refine_instances(refiner, pixels, mask, out)
    elif task == "semantic":
        labels = read_label_map(mask, max_pixels=refiner.config.max_pixels)
        semantic = refiner.refine_semantic(pixels, labels, ignore_label)
        write_label_map(out, semantic.label_map)
        reports, pair = semantic.reports, _as_masks(labels, semantic.label_map)
    else:
        reports, pair = _refine_panoptic(refiner, pixels, mask, segments, out)
    if picture is not None:
        write_picture(str(picture), before_after(pixels, *pair))
    table = _table("mask", "status", "confidence", "patches", "pixels added", "pixels removed")
    for report in reports:
        _add(table, (str(report.index if report.label is None else report.label),), report)
    console = Console(stderr=True)
    console.print(table)
    console.print(f"model {refiner.model.name} on {refiner.runs_on}; wrote {out}")


def _refine_instances(
    refiner: Refiner, pixels: Any, mask: Path, out: Path
) -> tuple[list[MaskReport], tuple[list[Mask], list[Mask]]]:
    height, width = pixels.shape[:2]
    file = read_mask_file(mask, height, width, max_pixels=refiner.config.max_pixels)
    result = refiner.refine(pixels, file.masks)
    file.write(out, result.masks)
    return result.reports, (file.masks, result.masks)


def _refine_panoptic(
    refiner: Refiner, pixels: Any, mask: Path, segments: Path | None, out: Path
) -> tuple[list[MaskReport], tuple[list[Mask], list[Mask]]]:
    if segments is None:
        raise ConfigError(
            "panoptic", expected="--segments JSON with segments_info", got="none", fix="add it: the PNG holds ids only"
        )
    try:
        document = json.loads(segments.read_text())
    except (OSError, ValueError) as error:
        raise FormatError(str(segments), expected="JSON with segments_info", got=str(error), fix="mend it") from None
    infos = document.get("segments_info") if isinstance(document, dict) else document
    if not isinstance(infos, list):
        raise FormatError(str(segments), expected="segments_info", got="none", fix="as in COCO panoptic annotations")
    ids = read_panoptic_png(mask, max_pixels=refiner.config.max_pixels)
    result = refiner.refine_panoptic(pixels, ids, infos)
    write_ids(out, result.segment_map)
    new = {**document, "segments_info": result.segments_info} if isinstance(document, dict) else result.segments_info
    write_atomic(out.with_suffix(".json"), (json.dumps(new) + "\n").encode())
    for segment in result.vanished:
        print(f"bpr: segment {segment} has no pixel left", file=sys.stderr)
    return result.reports, _as_masks(ids, result.segment_map)


def _as_masks(before: Any, after: Any) -> tuple[list[Mask], list[Mask]]:
    """One mask a label, before and after, for the picture."""
    import numpy as np

    labels = [label for label in np.union1d(before, after) if label != 0]
    return [Mask.from_array(before == label) for label in labels], [Mask.from_array(after == label) for label in labels]


def run_doctor(model: Path | None) -> None:
    """Print versions, devices and models; exit with 2 when a model is damaged."""
    import torch

    from bpr_service import __version__
    from bpr_service.network.weights import bundled_models, find_model, load_model, read_card

    table = _table("what", "found")
    table.add_row("bpr-service", __version__)
    table.add_row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in PACKAGES:
        try:
            table.add_row(package, version(package))
        except PackageNotFoundError:
            table.add_row(package, "[red]missing[/red]")
    capability = torch.backends.cpu.get_cpu_capability()
    table.add_row("cpu", f"{torch.get_num_threads()} threads, {capability}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            table.add_row(f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        table.add_row("cuda", "none")
    for name in [str(model)] if model else bundled_models():
        card = read_card(find_model(name))
        load_model(name)
        table.add_row(
            f"model {card.name}@{card.version}", f"{card.network.name}, sha256 {card.sha256[:16]}... verified"
        )
    Console().print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column.startswith(("pixels", "patches")) else "left")
    return table


def _add(table: Table, names: Sequence[str], report: MaskReport) -> None:
    status = report.status if report.reason is None else f"{report.status}: {report.reason}"
    confidence = "" if report.confidence is None else f"{report.confidence:.2f}"
    table.add_row(*names, status, confidence, str(report.patches), f"{report.added_px:,}", f"{report.removed_px:,}")


def run_bench(
    preset: str, data: Path | None, *, threads: int, compare: Path | None, as_json: bool, **settings: Any
) -> None:
    """Measure, print, and exit with 1 where a step lost 10 % against ``compare``."""
    import torch

    from bpr_service.bench.run import bench, read_baseline, rows, slower

    earlier = read_baseline(compare) if compare is not None else None
    if threads:
        torch.set_num_threads(threads)
    result = bench(preset, data, **settings)
    lost = slower(result, earlier) if earlier is not None else []
    if as_json:
        print(json.dumps({**result, "slower": lost} if earlier is not None else result, indent=1))
    else:
        table = _table("step", "ms an image", "share", "limit, ms")
        for row in rows(result):
            table.add_row(*row)
        console = Console()
        console.print(table)
        for name, value in {**result["workload"], **result["ratios"], **result["machine"]}.items():
            console.print(f"{name:24} {value if value is not None else 'not measured'}", highlight=False)
        for line in lost:
            console.print(f"slower: {line}", highlight=False)
    if lost:
        raise SystemExit(1)
