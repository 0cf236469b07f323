"""The commands ``bpr-train segmenter`` and ``bpr-train predict``: parse, call, print. Heavy imports wait inside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bpr_service.errors import ConfigError

Arch = Annotated[str, typer.Option(help="mask_rcnn, blendmask, yolact or deeplabv3plus.")]
Head = Annotated[str, typer.Option(help="plain (the baseline), bmask, bsm, beis or b2inst.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: --set run.steps=100.")]


def segmenter(
    config: Annotated[Path | None, typer.Argument(help="A YAML file of configs/segmenter.")] = None,
    arch: Arch = "mask_rcnn",
    head: Head = "plain",
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME_ARCH_HEAD when left out.")] = None,
    init_from: Annotated[
        Path | None, typer.Option(help="Start from these weights: another run's folder, or a file (model.weights).")
    ] = None,
    settings: Set = None,
    resume: Annotated[bool, typer.Option(help="Go on from the folder's last checkpoint.")] = True,
    json_progress: Annotated[bool, typer.Option(help="JSON lines on stdout instead of a bar.")] = False,
    smoke: Annotated[bool, typer.Option(help="Two steps and one prediction on synthetic data, in seconds.")] = False,
) -> None:
    """Train a segmenter: an architecture with one of its heads."""
    if smoke:
        from refiner_training.commands.smoke import run_smoke

        typer.echo(run_smoke(arch, head))
        return
    if config is None:
        raise ConfigError("no configuration", expected="CONFIG.yaml", got="none", fix="give one, or try --smoke")
    from bpr_service.config import parse_settings
    from refiner_training.run.segmenter import train_segmenter
    from refiner_training.segmenters.config import load_segmenter_config

    changed = parse_settings(settings or ()) | ({"model.weights": str(init_from)} if init_from else {})
    loaded = load_segmenter_config(config, changed)
    folder = out or Path("runs") / f"{loaded.name}_{arch}_{head}"
    progress: Any = "json" if json_progress else "bar"
    typer.echo(train_segmenter(arch, head, loaded, folder, resume=resume, progress=progress))


def export_segmenter(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A segmenter's run, or a checkpoint.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default RUN/segmenter.")] = None,
    size: Annotated[int | None, typer.Option(help="Shorter side of the input in px (YOLACT: its side).")] = None,
    max_size: Annotated[int | None, typer.Option(help="The longer side is never over this.")] = None,
    score_threshold: Annotated[float | None, typer.Option(help="The detector's own, before its NMS.")] = None,
    detections: Annotated[int | None, typer.Option(help="Most instances of an image.")] = None,
) -> None:
    """Write a segmenter as ONNX with its card, for `bpr serve --segmenter`, and compare both."""
    from bpr_service.config import build
    from refiner_training.predict import Options
    from refiner_training.run.export_segmenter import export_segmenter as export

    values = {"size_px": size, "max_size_px": max_size, "score_threshold": score_threshold, "detections": detections}
    typer.echo(export(run, out, changed=build(Options, values).applied))


def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of bpr-train segmenter.")],
    images: Annotated[Path, typer.Argument(help="The folder of images.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="JSON file (coco, panoptic) or folder (labels).")],
    dataset: Annotated[Path | None, typer.Option(help="A COCO file whose images give ids and names.")] = None,
    form: Annotated[str | None, typer.Option("--format", help="coco, labels or panoptic.")] = None,
    min_score: Annotated[float, typer.Option(help="Leave out instances that score less.")] = 0.0,
    panoptic_score: Annotated[float, typer.Option(help="Likewise for panoptic segments of instances.")] = 0.5,
    scores: Annotated[Path | None, typer.Option(help="A folder for confidence PNGs of label maps.")] = None,
    size: Annotated[int | None, typer.Option(help="Shorter side of the input in px (YOLACT: its side).")] = None,
    max_size: Annotated[int | None, typer.Option(help="The longer side is never over this.")] = None,
    score_threshold: Annotated[float | None, typer.Option(help="The detector's own, before its NMS.")] = None,
    detections: Annotated[int | None, typer.Option(help="Most instances of an image.")] = None,
    batch: Annotated[int, typer.Option(help="Images that go through the network together.")] = 1,
    precision: Annotated[str, typer.Option(help="32, bf16 or 16.")] = "32",
    flip: Annotated[bool, typer.Option("--flip", help="Also predict the mirrored image, and merge.")] = False,
    scales: Annotated[str, typer.Option(help="Also at other sizes, merged: 0.75,1,1.25.")] = "1",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; several share the work: cuda:0,cuda:1.")] = "cpu",
    resume: Annotated[bool, typer.Option(help="Skip images that are done.")] = True,
) -> None:
    """Write a segmenter's predictions, ready for `bpr batch` and `bpr-train patches`."""
    from bpr_service.config import build
    from bpr_service.errors import UnknownName
    from refiner_training.predict import Options
    from refiner_training.predict import predict as run

    known: Any = form
    if form not in (None, "coco", "labels", "panoptic"):
        raise UnknownName("format", form, ("coco", "labels", "panoptic"))
    values = {
        "min_score": min_score, "panoptic_score": panoptic_score, "size_px": size, "max_size_px": max_size,
        "score_threshold": score_threshold, "detections": detections, "batch": batch, "precision": precision,
        "flip": flip, "scales": scales.split(","), "scores": scores, "devices": device.split(","), "resume": resume,
    }  # fmt: skip
    options = build(Options, values)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("predict", total=None)
            done = run(
                checkpoint, images, out, dataset=dataset, form=known, options=options,
                progress=lambda at, total: bar.update(task, completed=at, total=total),
            )  # fmt: skip
    else:
        done = run(checkpoint, images, out, dataset=dataset, form=known, options=options)
    typer.echo(f"{done} images predicted: {out}")
