"""What an audit of many masks takes: memory by the number of masks, and how long its page takes to open.

    python benchmarks/audit_scale.py memory --masks 100000
    python benchmarks/audit_scale.py page --masks 10000
    python benchmarks/audit_scale.py throughput

``memory`` ranks, judges and reports masks with drawn measures, a process for each number, and gives the slope.
``page`` writes the page of masks over crops of the bundled photographs and opens it in Chromium. Beside the time on the
clock it gives the processor time of the browser's pages, which other work on the machine does not change.
``throughput`` audits and refines the bundled photographs in turn, as a part of a run does, by processor time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
UNIT_MASKS = 8
SIDE_PX = 640
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


@app.command()
def memory(
    masks: Annotated[int, typer.Option(min=1000)] = 100_000,
    only: Annotated[bool, typer.Option("--only", help="Measure this number alone, in this process.")] = False,
) -> None:
    """Peak memory of the report of so many masks, and the slope from a tenth of them."""
    if only:
        print(json.dumps(_ranked(masks)))
        return
    found = []
    for count in (masks // 10, masks):
        command = [sys.executable, __file__, "memory", "--masks", str(count), "--only"]
        found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(
            f"{count} masks: {found[-1]['mb']:.0f} MB at most, {found[-1]['cpu_s']:.1f} s of processor time", flush=True
        )
    slope = (found[1]["mb"] - found[0]["mb"]) * 1e6 / (masks - masks // 10)
    print(f"{slope:.0f} bytes a mask, {found[0]['mb'] + slope * (10**6 - masks // 10) / 1e6:.0f} MB for a million")


def _ranked(masks: int) -> dict[str, float]:
    import resource

    from bpr_service.audit.measures import INPUTS
    from bpr_service.audit.ranking import Ranking
    from bpr_service.audit.report import Findings, Summary, write_report
    from bpr_service.audit.sample import draw, told
    from bpr_service.audit.suspicion import judge_of
    from bpr_service.network.weights import find_model, read_card

    rng, judge = np.random.default_rng(0), judge_of(read_card(find_model("balanced")))
    card = read_card(find_model("balanced")).audit
    assert card is not None
    middle, spread = np.array(card.mean, np.float32), np.array(card.scale, np.float32)
    with tempfile.TemporaryDirectory() as folder, Ranking(Path(folder)) as ranking:
        for first in range(0, masks, UNIT_MASKS):
            rows = [_row(first // UNIT_MASKS, k, rng) for k in range(UNIT_MASKS)]
            values = (middle + spread * rng.normal(0, 1, (UNIT_MASKS, len(INPUTS)))).astype(np.float32)
            ranking.add(b"".join(json.dumps(row).encode() + b"\n" for row in rows), values.tobytes())
        ranking.judge(judge)
        drawn = draw(ranking.suspicion, 500)
        sample = told(drawn, [ranking.row(index)["key"] for index in drawn.indices.tolist()])
        write_report(str(Path(folder) / "r.json"), {"sample": sample}, Findings(), ranking, Summary({1: "thing"}))
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"mb": used.ru_maxrss / 1e3, "cpu_s": used.ru_utime + used.ru_stime}


def _row(unit: int, position: int, rng: np.random.Generator) -> dict[str, Any]:
    line = rng.integers(0, 2000, (12, 2)).tolist()
    return {
        "key": [unit, position], "id": UNIT_MASKS * unit + position, "image_id": unit, "image": f"{unit:012d}.jpg",
        "category_id": 1, "size": [480, 640], "bbox": [1, 2, 3, 4], "area": 1000, "kinds": [],
        "where": [{"box": [1, 2, 3, 4], "line": line, "px": 2.5, "length_px": 31}] * 2,
        "replacement": {"size": [480, 640], "counts": "x" * 300},
    }  # fmt: skip


@app.command()
def page(
    masks: Annotated[int, typer.Option(min=100)] = 10_000,
    out: Annotated[Path | None, typer.Option(help="Keep the page here.")] = None,
) -> None:
    """Seconds until the page of so many masks shows its list, its first mask and that mask's picture."""
    with tempfile.TemporaryDirectory() as folder:
        address = out or Path(folder) / "page.html"
        started = time.process_time()
        _write(Path(folder), address, masks)
        print(f"{masks} masks: {address.stat().st_size / 1e6:.0f} MB, written in {time.process_time() - started:.0f} s")
        print(json.dumps(_opened(address)))


def _write(folder: Path, address: Path, masks: int) -> None:
    from PIL import Image

    from bpr_service.audit.measures import INPUTS
    from bpr_service.audit.page.build import write_page
    from bpr_service.audit.ranking import Ranking
    from bpr_service.audit.suspicion import judge_of
    from bpr_service.examples import NAMES, load_example
    from bpr_service.formats import Paths, open_predictions
    from bpr_service.network.weights import find_model, read_card

    rng = np.random.default_rng(0)
    photographs = [np.asarray(load_example(name).image) for name in NAMES]
    blobs = [_blob(rng).to_rle() for _ in range(200)]
    (folder / "images").mkdir()
    of_image, entries, records = 50, [], []
    for i in range(masks // of_image):
        picture = photographs[i % len(photographs)]
        y, x = (int(rng.integers(0, max(side - 480, 1))) for side in picture.shape[:2])
        part = np.asarray(Image.fromarray(picture[y : y + 480, x : x + 480]).resize((SIDE_PX, SIDE_PX)))
        Image.fromarray(part).save(folder / "images" / f"{i}.jpg", quality=90)
        entries.append({"id": i, "file_name": f"{i}.jpg", "height": SIDE_PX, "width": SIDE_PX})
        for _ in range(of_image):
            records.append(
                {"id": len(records), "image_id": i, "category_id": 1, "segmentation": blobs[int(rng.integers(200))]}
            )
    categories = [{"id": 1, "name": "thing"}]
    document = {"images": entries, "annotations": records, "categories": categories}
    (folder / "ann.json").write_text(json.dumps(document))
    file = open_predictions("instance", "coco", Paths(str(folder / "images"), str(folder / "ann.json")))
    units = list(file.scan())
    judge = judge_of(read_card(find_model("balanced")))
    with Ranking(folder) as ranking:
        for unit in units:
            rows = [_row(unit.number, row[0], rng) for row in unit.source]
            for row in rows:
                row.update(replacement=blobs[int(rng.integers(200))], size=[SIDE_PX, SIDE_PX], image=unit.image)
            lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
            ranking.add(lines, rng.normal(0, 1, (len(rows), len(INPUTS))).astype(np.float32).tobytes())
        ranking.judge(judge)
        head = {
            "id": "0",
            "title": f"{masks} masks",
            "images": "images",
            "annotations": "ann.json",
            "categories": {1: "thing"},
        }
        write_page(
            str(address), ranking, ranking.order, file, lambda numbers: (u for u in units if u.number in numbers), head,
            max_pixels=1 << 27, folder=folder,
        )  # fmt: skip


def _blob(rng: np.random.Generator) -> Any:
    """A mask with a wavy outline, 40 to 200 px across."""
    import cv2

    from bpr_service.masks.mask import Mask

    radius, (x, y) = rng.uniform(20, 100), rng.uniform(110, SIDE_PX - 110, 2)
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    waves = 1 + 0.1 * np.sin(angle * int(rng.integers(2, 9))) + 0.03 * np.sin(angle * 23)
    points = np.stack([x + radius * waves * np.cos(angle), y + radius * waves * np.sin(angle)], 1)
    array = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    cv2.fillPoly(array, [points.astype(np.int32)], 1)
    return Mask.from_array(array)


def _opened(address: Path) -> dict[str, float]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        before = _renderer_s()
        tab.goto(f"file://{address.resolve()}", timeout=120_000)
        marks = "Object.fromEntries(performance.getEntriesByType('mark').map((m) => [m.name, m.startTime / 1000]))"
        shown = {f"{name}_s": round(value, 2) for name, value in tab.evaluate(marks).items()}
        whole = tab.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart")
        spent_s = _renderer_s() - before
        browser.close()
    return {**shown, "whole_s": whole / 1000, "processor_s": round(spent_s, 2)}


def _renderer_s() -> float:
    """Processor seconds of all pages that Chromium shows on this machine."""
    spent = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if "--type=renderer" in (process / "cmdline").read_text():
                fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
                spent += int(fields[11]) + int(fields[12])
        except OSError:
            continue  # it ended
    return spent / os.sysconf("SC_CLK_TCK")


@app.command()
def throughput(
    preset: Annotated[str, typer.Option()] = "balanced",
    times: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Masks a second of processor time of `bpr audit`, beside those of `bpr batch`; the median of some passes."""
    import torch

    from bpr_service.examples import NAMES, load_example
    from bpr_service.formats import Paths, open_predictions
    from bpr_service.jobs.refine.unit import audit_unit, refine_unit
    from bpr_service.masks.label_maps import encode_png
    from bpr_service.refine.refiner import Refiner

    torch.set_num_threads(1)
    refiner = Refiner.load(preset)
    with tempfile.TemporaryDirectory() as folder:
        root, entries, records = Path(folder), [], []
        for i, name in enumerate(NAMES):
            example = load_example(name)
            (root / f"{i}.png").write_bytes(encode_png(example.image))
            height, width = example.image.shape[:2]
            entries.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
            for one in example.instances:
                records.append({**one, "image_id": i, "id": len(records)})
        (root / "ann.json").write_text(json.dumps({"images": entries, "annotations": records, "categories": []}))
        file = open_predictions("instance", "coco", Paths(folder, str(root / "ann.json")))
        units = list(file.scan())
        spent: dict[str, list[float]] = {"batch": [], "audit": []}
        for work in (refine_unit, audit_unit) * (times + 1):
            started = time.process_time()
            for unit in units:
                if failed := work(refiner, file, unit, None).failed:
                    raise SystemExit(failed[0])
            spent["batch" if work is refine_unit else "audit"].append(time.process_time() - started)
    for name, seconds in spent.items():
        print(f"{name}: {len(records) / np.median(seconds[1:]):.2f} masks a second")
    print(f"audit over batch: {np.median(spent['batch'][1:]) / np.median(spent['audit'][1:]):.2f}")


if __name__ == "__main__":
    app()
