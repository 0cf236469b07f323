"""The paper's ablations on the corpus: each row trains a small network from nothing for a few hundred steps.

    python benchmarks/ablations.py --out runs/ablations --markdown docs/ablations.md --json docs/ablations.json

Rows are trained on simulated coarse masks of ccp's train split and measured on every fifth image of its val split,
with the fixed coarse masks and without the gate. A row that is finished is not trained again. Rows share the number of
steps, the batch, the seed and the optimiser; a row changes one thing of the first.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
BASE_PATCH = {"patch_size_px": 64, "padding_px": 16, "network_size_px": 96, "nms_threshold": 0.25}


@dataclass(frozen=True)
class Row:
    """One line of the table: what it changes in training, and in refining."""

    group: str
    name: str
    network: dict[str, Any] = field(default_factory=lambda: {"name": "light_unet_s"})
    patch: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    """Of the patch set: ``mix``, ``soft_share``, ``predictions``."""
    refine: dict[str, Any] = field(default_factory=dict)
    """Settings of the Refiner alone: a row with nothing else uses the first row's network."""

    @property
    def trains(self) -> bool:
        return not self.refine


def rows(predictions: Path | None) -> list[Row]:
    """The table. Groups follow the paper's (Hu et al., IJCV 2022, section 4.2)."""
    light = {"name": "light_unet_s"}
    out = [
        Row("reference", "64 px, padding 16, network 96, dense, NMS 0.25"),
        Row("mask channel", "image alone", network={**light, "arguments": {"mask_channel": False}}),
        Row("patch size", "32 px, padding 8", patch={"patch_size_px": 32, "padding_px": 8, "network_size_px": 48}),
        Row("patch size", "96 px, padding 24", patch={"patch_size_px": 96, "padding_px": 24, "network_size_px": 144}),
        Row("padding", "none", patch={"padding_px": 0, "network_size_px": 64}),
        Row("padding", "8 px", patch={"padding_px": 8, "network_size_px": 80}),
        Row("padding", "32 px", patch={"padding_px": 32, "network_size_px": 128}),
        Row("network size", "48 (half)", patch={"network_size_px": 48}),
        Row("network size", "144 (one and a half times)", patch={"network_size_px": 144}),
        Row("scheme", "pre-defined grid", patch={"scheme": "grid"}),
        Row("scheme", "instance-level patch, network 128", patch={"scheme": "instance", "network_size_px": 128}),
        Row("network", "Fast-SCNN", network={"name": "fast_scnn"}),
        Row("network", "light_unet_m", network={"name": "light_unet_m"}),
        Row("network", "FCN-ResNet-18", network={"name": "fcn_resnet18"}),
        Row("training masks", "morphology only", data={"mix": {"morphology": 0.86, "exact": 0.14}}),
        Row("training masks", "mask-head grids only", data={"mix": {"roi_grid": 0.86, "exact": 0.14}}),
        Row("training masks", "no exact ones", data={"mix": {"roi_grid": 0.6, "stride": 0.2, "warp": 0.2}}),
        *[Row("NMS threshold", f"{t:g}", refine={"nms_threshold": t}) for t in (0.0, 0.15, 0.35, 0.55)],
        Row("NMS threshold", "0.25, boundary pixels left out are not covered", refine={"cover": False}),
        Row("averaging", "flat window", refine={"window": "flat"}),
        Row("averaging", "logits instead of probabilities", refine={"average": "logit"}),
        Row("averaging", "with the mirrored patch", refine={"flip": True}),
    ]  # fmt: skip
    if predictions is not None:
        out.append(Row("training masks", "a real model's predictions", data={"predictions": str(predictions)}))
    return out


def slug(row: Row) -> str:
    return "".join(c if c.isalnum() else "_" for c in f"{row.group}-{row.name}")[:80]


def patch_set(row: Row, data: Path, out: Path, images: int, workers: int) -> Path:
    """The patch set that a row trains on; rows with the same patches share it."""
    from bpr_service.config import build
    from refiner_training.data.build_patches import PatchSetConfig, build_patch_set
    from refiner_training.data.instance_readers import CocoPairs

    ccp = data / "ccp"
    subset = out / f"train_{images}.json"
    if not subset.is_file():
        full = json.loads((ccp / "instances_train.json").read_text())
        full["images"] = full["images"][:images]
        kept = {image["id"] for image in full["images"]}
        full["annotations"] = [a for a in full["annotations"] if a["image_id"] in kept]
        subset.write_text(json.dumps(full))
    patch = {**BASE_PATCH, **row.patch, "cover": False}
    crop = patch["patch_size_px"] + 2 * patch["padding_px"]
    if patch.get("scheme") != "instance":
        patch["network_size_px"] = crop  # the set holds crops as they are; the stream resizes them
    extra = {k: v for k, v in row.data.items() if k != "predictions"}
    settings = {"patch": patch, "per_mask": 3, "seed": 1, **extra}
    key = json.dumps([settings, row.data.get("predictions")], sort_keys=True)
    folder = out / "patches" / hashlib.sha256(key.encode()).hexdigest()[:12]
    reader = CocoPairs(ccp / "images", subset, row.data.get("predictions"))
    build_patch_set(reader, folder, build(PatchSetConfig, settings), workers=workers)
    return folder


def train_row(row: Row, data: Path, out: Path, *, steps: int, images: int, threads: int) -> tuple[Path, float]:
    """Train a row's network: the model's folder and the seconds it took."""
    from bpr_service.config import build
    from refiner_training.config import TrainConfig
    from refiner_training.run.refiner import train

    patches = patch_set(row, data, out, images, threads)
    folder = out / "runs" / slug(row)
    config = build(
        TrainConfig,
        {
            "name": "ablation",
            "network": row.network,
            "patch": {**BASE_PATCH, **row.patch},
            "data": {"kind": "patches", "patches": str(patches)},
            "optim": {"lr": 0.002, "ema_decay": 0.99, "warmup_steps": 50},
            "run": {
                "steps": steps,
                "batch_size": 32,
                "precision": "bf16",
                "workers": 1,
                "threads": threads,
                "checkpoint_every": steps,
                "seed": 1,
            },
        },
    )
    start = perf_counter()
    return train(config, folder), perf_counter() - start


def measure_row(row: Row, model: Path, data: Path, subset: int) -> dict[str, float]:
    """Boundary error removed, masks worsened, and patches of a model on val."""
    from quality_measure import pairs
    from quality_sets import corpus_items

    from bpr_service.masks.images import read_image
    from bpr_service.refine.refiner import Refiner
    from refiner_training.metrics.change import collect, measure_triple

    refiner = Refiner.load(model, gate=False, **row.refine)
    triples, patches, seconds = [], 0, 0.0
    for item in corpus_items(data, ["ccp"], subset):
        image = read_image(item.image)
        coarse, truth = pairs(item)
        start = perf_counter()
        result = refiner.refine(image, coarse)
        seconds += perf_counter() - start
        patches += sum(report.patches for report in result.reports)
        triples += [measure_triple(*t) for t in zip(coarse, result.masks, truth, strict=True)]
    summary = collect(triples)["summary"]
    return {
        "removed": float(summary["share_removed"]),
        "worse": float(summary["worse_share"]),
        "iou": float(summary["iou_after"]),
        "iou_before": float(summary["iou_before"]),
        "patches": patches / max(len(triples), 1),
        "ms": 1e3 * seconds / max(len(triples), 1),
    }


def markdown(results: list[tuple[Row, dict[str, float]]]) -> str:
    """The table, each group named once. No times: rows may come from runs of different days."""
    lines = [
        "| | | (1 - F at 1 px) removed | masks worse | mean IoU | patches a mask |",
        "|---|---|---|---|---|---|",
    ]
    group = ""
    for row, r in results:
        lines.append(
            f"| {row.group if row.group != group else ''} | {row.name} | {100 * r['removed']:.1f} % "
            f"| {100 * r['worse']:.1f} % | {r['iou']:.4f} | {r['patches']:.1f} |"
        )
        group = row.group
    return "\n".join(lines)


def main(
    out: Annotated[Path, typer.Option(help="Patch sets, runs and results.")] = Path("runs/ablations"),
    data: Annotated[Path, typer.Option(help="The boundary corpus.")] = DATA,
    steps: int = 400,
    images: Annotated[int, typer.Option(help="Train images.")] = 300,
    subset: Annotated[int, typer.Option(help="Every N-th val image.")] = 5,
    threads: int = max((os.cpu_count() or 2) - 1, 1),
    predictions: Annotated[
        Path | None,
        typer.Option(help="COCO results of a model on ccp's train split, for the row that learns from them."),
    ] = None,
    only: Annotated[str, typer.Option(help="Groups, comma-separated; all by default.")] = "",
    as_json: Annotated[Path | None, typer.Option("--json")] = None,
    as_markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Put the table between this page's marks.")
    ] = None,
) -> None:
    """Train and measure every row; print the table."""
    import torch

    torch.set_num_threads(threads)
    (out / "rows").mkdir(parents=True, exist_ok=True)
    chosen = [r for r in rows(predictions) if not only or r.group in ("reference", *only.split(","))]
    results: list[tuple[Row, dict[str, float]]] = []
    reference: Path | None = None
    for row in chosen:
        file = out / "rows" / f"{slug(row)}.json"
        model, spent = reference, 0.0
        if row.trains:
            model, spent = train_row(row, data, out, steps=steps, images=images, threads=threads)
        assert model is not None
        reference = reference or model
        if not file.is_file():
            file.write_text(json.dumps({**measure_row(row, model, data, subset), "training_s": spent}))
        results.append((row, json.loads(file.read_text())))
        r = results[-1][1]
        typer.echo(f"{row.group:16} {row.name:52} removed {100 * r['removed']:5.1f} %  worse {100 * r['worse']:5.1f} %")
    table = markdown(results)
    typer.echo("\n" + table)
    if as_json:
        listed = [{"group": row.group, "name": row.name, **r} for row, r in results]
        as_json.write_text(json.dumps({"steps": steps, "images": images, "subset": subset, "rows": listed}, indent=1))
    if as_markdown:
        head, _, rest = as_markdown.read_text().partition("<!-- table -->\n")
        _, _, tail = rest.partition("<!-- end -->")
        as_markdown.write_text(f"{head}<!-- table -->\n{table}\n<!-- end -->{tail}")


if __name__ == "__main__":
    typer.run(main)
