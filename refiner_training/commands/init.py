"""``bpr-train init``: look at a data set, write a recipe for it, and say what comes next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from bpr_service.config import get_preset
from bpr_service.errors import ConfigError

_FORMATS = {"coco": "coco", "labels": "labels", "regions": "regions"}
"""Formats that `bpr-train scenes` reads, by those of a truth."""


def init(
    images: Annotated[Path, typer.Option(metavar="DIR", help="The images.")],
    truth: Annotated[Path, typer.Option(metavar="PATH", help="Ground truth: a JSON file or a folder.")],
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Coarse masks of a model, of the truth's form; simulated without."),
    ] = None,
    format: Annotated[str | None, typer.Option(help="As bpr-train patches; default: looks into it.")] = None,
    panoptic_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Panoptic: PNGs of the truth.")] = None,
    predictions_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Panoptic: PNGs predicted.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The recipe.")] = Path("recipe.yaml"),
    name: Annotated[str, typer.Option(help="The run's name.")] = "mine",
    preset: Annotated[str, typer.Option(help="Whose model it goes on from: fast or balanced.")] = "balanced",
) -> None:
    """Look at images and masks, and write a recipe with comments."""
    from refiner_training.commands.training import open_pairs
    from refiner_training.look import look, recipe, write_recipe

    get_preset(preset)
    kind = format or form_of(truth)
    if kind == "panoptic" and panoptic_dir is None:
        panoptic_dir = truth.with_suffix("")
    reader = open_pairs(kind, images, truth, predictions, panoptic_dir, predictions_dir, 255)
    patches, scenes = f"runs/{name}_patches", f"runs/{name}_scenes"
    data: dict[str, object] = {"kind": "patches", "patches": patches}
    if predictions is None and kind in _FORMATS:
        data = {"kind": "simulated", "scenes": scenes, "sources": {name: 1.0}}
    found = look(reader)
    text, _ = recipe(found, name, preset=preset, data=data)
    write_recipe(out, text)
    typer.echo(text.split("\nname:")[0].replace("# ", ""))
    for line in found.broken[:10]:
        typer.echo(f"  cannot be read: {line}", err=True)
    typer.echo(f"\nwrote {out}; next:")
    if data["kind"] == "simulated":
        source = f"{name}={_FORMATS[kind]}:{truth}:{images}"
        typer.echo(f"  bpr-train scenes --out {scenes} --source {shlex.quote(source)}")
    else:
        given = {"--images": images, "--truth": truth, "--predictions": predictions, "--panoptic-dir": panoptic_dir,
                 "--predictions-dir": predictions_dir, "--recipe": out, "--out": patches}  # fmt: skip
        options = " ".join(f"{option} {shlex.quote(str(value))}" for option, value in given.items() if value)
        typer.echo(f"  bpr-train patches --format {kind} {options}")
    typer.echo(f"  bpr-train refiner {shlex.quote(str(out))}")


def form_of(truth: Path) -> str:
    """The format of a ground truth, by what lies there.

    Raises:
        ConfigError: it is none that is known.
    """
    if truth.is_dir():
        if next(truth.rglob("*_gtFine_instanceIds.png"), None) is not None:
            return "cityscapes"
        if next(truth.rglob("*.png"), None) is not None:
            return "labels"
    elif truth.is_file() and truth.suffix.lower() == ".json":
        from bpr_service.formats.records.stream import stream_json

        with truth.open("rb") as file:
            for event in stream_json(file, str(truth)):
                if event.kind == "item" and event.key == "annotations":
                    return "panoptic" if "segments_info" in event.value else "coco"
    fix = "name it with --format: see bpr-train patches --help"
    raise ConfigError(f"--truth {truth}", expected="COCO JSON, or a folder of PNGs", got="neither", fix=fix)
