"""What ``bpr demo``, ``bpr bench`` and ``bpr doctor`` do."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bpr_service import storage
from bpr_service.errors import ConfigError
from bpr_service.examples import NAMES, load_example
from bpr_service.masks.mask import Mask
from bpr_service.masks.picture import before_after, write_picture
from bpr_service.refine.refiner import Refiner
from bpr_service.results import MaskReport

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "segmentation-models-pytorch",
    "openvino",
    "numpy",
    "opencv-python-headless",
    "numba",
)


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Where standard error is a terminal: `what` is being done, and for how long; call it to say what is next."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as shown:
        task = shown.add_task(what)
        yield lambda text: shown.update(task, description=text)


def run_demo(out: Path, *, preset: str, model: Path | None, device: str) -> None:
    """Refine the bundled photographs; one JSON and one picture each, and a table of what changed."""
    console = Console()
    with working("reading the model") as say:
        table, line = _demo(out, Refiner.load(preset, model=model, device=device), say)
    console.print(table)
    console.print(line)


def _demo(out: Path, refiner: Refiner, say: Callable[[str], None]) -> tuple[Table, str]:
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
    table = table_of(
        "photograph", "object", "status", "confidence", "scale", "patches", "pixels added", "pixels removed"
    )
    started = time.perf_counter()
    for example in examples:
        say(f"refining {example.name}")
        coarse = [Mask.from_rle(instance["segmentation"]) for instance in example.instances]
        result = refiner.refine(example.image, coarse)
        instances = [
            {**instance, "segmentation": mask.to_rle(), "bbox": mask.bbox, "area": mask.area}
            for instance, mask in zip(example.instances, result.masks, strict=True)
        ]
        text = json.dumps({"instances": instances}, indent=1) + "\n"
        storage.write_bytes(out / f"{example.name}.json", text.encode())
        write_picture(str(out / f"{example.name}.png"), before_after(example.image, coarse, result.masks))
        for instance, report in zip(example.instances, result.reports, strict=True):
            add_row(table, (example.name, instance["label"]), report)
    seconds = time.perf_counter() - started
    return table, f"model {refiner.model.name} on {refiner.runs_on}, {seconds:.1f} s; pictures and JSON in {out}/"


def run_doctor(model: Path | None) -> None:
    """Print versions, devices and models; exit with 2 when a model is damaged."""
    from bpr_service import __version__
    from bpr_service.config import RefineConfig
    from bpr_service.extras import installed
    from bpr_service.network.backends import label
    from bpr_service.network.candidates import processor
    from bpr_service.network.choice import settle
    from bpr_service.network.devices import threads, torch_for
    from bpr_service.network.weights import bundled_models, check_files, find_model, read_card

    table = table_of("what", "found")
    table.add_row("bpr-service", __version__)
    table.add_row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in PACKAGES:
        try:
            table.add_row(package, version(package))
        except PackageNotFoundError:
            table.add_row(package, "[red]missing[/red]")
    table.add_row("cpu", f"{threads()} threads, {processor()}")
    torch = torch_for("doctor") if installed("torch") else None
    if torch is not None and torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            table.add_row(f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        table.add_row("cuda", "none")
    for name in [str(model)] if model else bundled_models():
        card = read_card(find_model(name))
        check_files(find_model(name), card)
        runs = settle(RefineConfig(patch=card.patch), card, "cpu")
        table.add_row(
            f"model {card.name}@{card.version}",
            f"{card.network.name}, sha256 {card.sha256[:16]}... verified; runs on "
            f"{label('cpu', runs.backend, runs.precision)}",
        )
    Console().print(table)


def table_of(*columns: str) -> Table:
    """A table that keeps its words whole in 80 columns."""
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for column in columns:
        right = column.startswith(("pixels", "patches"))
        words = {"status": 10, "confidence": 10}  # "unchanged:", and the reason on the lines below
        table.add_column(column, justify="right" if right else "left", min_width=words.get(column))
    return table


def add_row(table: Table, names: Sequence[str], report: MaskReport) -> None:
    """Add to a table of masks what became of one."""
    status = report.status if report.reason is None else f"{report.status}: {report.reason}"
    confidence = "" if report.confidence is None else f"{report.confidence:.2f}"
    scale = "" if report.scale is None else f"{report.scale:g}"
    table.add_row(
        *names, status, confidence, scale, str(report.patches), f"{report.added_px:,}", f"{report.removed_px:,}"
    )


def run_bench(
    preset: str, data: Path | None, *, threads: int, compare: Path | None, as_json: bool, **settings: Any
) -> None:
    """Measure, print, and exit with 1 where a step lost 10 % against ``compare``."""
    from bpr_service.bench.run import bench, read_baseline, rows, slower
    from bpr_service.network.devices import set_threads

    earlier = read_baseline(compare) if compare is not None else None
    if threads:
        set_threads(threads)
    result = bench(preset, data, **settings)
    lost = slower(result, earlier) if earlier is not None else []
    if as_json:
        print(json.dumps({**result, "slower": lost} if earlier is not None else result, indent=1))
    else:
        table = table_of("step", "ms an image", "share", "limit, ms")
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
