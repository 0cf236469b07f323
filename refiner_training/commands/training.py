"""``bpr-train scenes | patches | refiner | export``: from data to a model version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bpr_service.errors import ConfigError, UnknownName

if TYPE_CHECKING:
    from refiner_training.data.readers import PairReader
    from refiner_training.data.scenes.store import Scene

FORMATS = ("coco", "cityscapes", "labels", "panoptic", "regions")
SCENES = ("coco", "ids", "videos", "labels", "regions")

Workers = Annotated[int, typer.Option(min=1, help="Processes.")]


def scenes(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The scene store.")],
    source: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=FORMAT:TRUTH:IMAGES[:COARSE]",
            help="A source: coco (annotation JSON), ids (PNGs of object ids, 0 none), videos (the same, named "
            "VIDEO_FRAME.png), labels (PNGs of classes) or regions (STEM_K.png). COARSE: a real network's masks, for "
            "coco a results JSON with the key gt, for ids and videos a folder of PNGs. Repeatable.",
        ),
    ],
    ignore_label: Annotated[int, typer.Option(help="Label that is no class.")] = 255,
) -> None:
    """Store images and ground truth for training on simulated or on real coarse masks."""
    from itertools import chain

    from refiner_training.data.scenes.store import write_scenes

    streams = [_scenes_of(text, ignore_label) for text in source]
    manifest = write_scenes(out, chain(*streams))
    typer.echo(f"{manifest['images']} images, {manifest['masks']} masks in {out}")


def _scenes_of(text: str, ignore_label: int) -> Iterator[Scene]:
    """The scenes of one ``--source``, checked as far as it goes without reading them."""
    from refiner_training.data.scenes.sources import coco_scenes, id_scenes, label_scenes, region_scenes

    name, _, rest = text.partition("=")
    kind, *places = rest.split(":")
    if len(places) not in (2, 3) or not name:
        raise ConfigError("--source", expected="NAME=FORMAT:TRUTH:IMAGES", got=repr(text), fix="give all four")
    if kind not in SCENES:
        raise UnknownName("format of a source", kind, SCENES)
    paths = [Path(place) for place in places]
    for path in paths:
        if not path.exists():
            raise ConfigError(f"--source {name}", expected=f"{path}", got="no such file or folder", fix="check it")
    if kind in ("labels", "regions") and len(paths) == 3:
        raise ConfigError(f"--source {name}", expected=f"{kind}:TRUTH:IMAGES", got=rest, fix="leave out the third path")
    if kind == "coco":
        return coco_scenes(paths[0], paths[1], name, *paths[2:])
    if kind in ("ids", "videos"):
        return id_scenes(paths[0], paths[1], name, *paths[2:], videos=kind == "videos")
    if kind == "labels":
        return label_scenes(paths[0], paths[1], name, ignore_label)
    return region_scenes(paths[0], paths[1], name)


def patches(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The patch set.")],
    images: Annotated[Path, typer.Option(metavar="DIR", help="The images.")],
    truth: Annotated[Path, typer.Option(metavar="PATH", help="Ground truth: a JSON file or a folder.")],
    format: Annotated[str, typer.Option(help=", ".join(FORMATS))] = "coco",
    predictions: Annotated[
        Path | None, typer.Option(metavar="PATH", help="What to learn from; simulated where there is none.")
    ] = None,
    panoptic_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Panoptic: PNGs of the truth.")] = None,
    predictions_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Panoptic: PNGs predicted.")] = None,
    ignore_label: Annotated[int, typer.Option(help="Labels: the one that is no class.")] = 255,
    recipe: Annotated[
        Path | None, typer.Option(metavar="CONFIG.yaml", help="Cut the patches that this recipe trains on.")
    ] = None,
    nms_threshold: Annotated[float, typer.Option(min=0, max=0.99, help="The paper trains with 0.25.")] = 0.25,
    patch_size_px: Annotated[int | None, typer.Option(min=8, help="Default the recipe's, or 64.")] = None,
    padding_px: Annotated[int | None, typer.Option(min=0, help="Default the recipe's, or 16.")] = None,
    per_mask: Annotated[int, typer.Option(min=0, help="At most so many patches a mask; 0 takes all.")] = 0,
    share: Annotated[float, typer.Option(help="Share of the patches that is kept.")] = 1.0,
    seed: int = 0,
    workers: Workers = 1,
    resume: Annotated[bool, typer.Option(help="Keep the shards that are finished.")] = True,
) -> None:
    """Cut patches from predictions and ground truth, as the paper does."""
    from bpr_service.config import build
    from refiner_training.data.build_patches import PatchSetConfig, build_patch_set

    reader = open_pairs(format, images, truth, predictions, panoptic_dir, predictions_dir, ignore_label)
    patch = _patch(recipe, {"patch_size_px": patch_size_px, "padding_px": padding_px})
    patch |= {"nms_threshold": nms_threshold, "cover": False}
    full = format in ("labels", "panoptic")
    settings = {"patch": patch, "full_maps": full, "per_mask": per_mask, "share": share, "seed": seed}
    manifest = build_patch_set(reader, out, build(PatchSetConfig, settings), workers=workers, resume=resume)
    skipped = manifest.get("skipped", [])
    typer.echo(f"{manifest['patches']} patches of {manifest['images']} images in {out}")
    for entry in skipped:
        typer.echo(f"skipped {entry}", err=True)
    if skipped:
        raise typer.Exit(1)


def _patch(recipe: Path | None, asked: dict[str, int | None]) -> dict[str, Any]:
    """Size, padding and scheme of the patches: the recipe's, or what is asked for; never two that differ."""
    from bpr_service.config import PatchConfig
    from refiner_training.config import load_config

    base = PatchConfig() if recipe is None else load_config(recipe).patch
    for name, value in asked.items():
        if recipe is not None and value not in (None, getattr(base, name)):
            flag = "--" + name.replace("_", "-")
            expected, fix = f"{getattr(base, name)}, as {recipe} has it", "leave it out, or change the recipe"
            raise ConfigError(flag, expected=expected, got=str(value), fix=fix)
    given = {name: value for name, value in asked.items() if value is not None}
    sizes = {"patch_size_px": base.patch_size_px, "padding_px": base.padding_px, **given}
    stored = sizes["patch_size_px"] + 2 * sizes["padding_px"]
    return {**sizes, "network_size_px": stored, "scheme": base.scheme}


def open_pairs(
    format: str,
    images: Path,
    truth: Path,
    predictions: Path | None,
    panoptic_dir: Path | None,
    predictions_dir: Path | None,
    ignore_label: int,
) -> PairReader:
    """The pairs of coarse and true masks of a data set.

    Raises:
        UnknownName, ConfigError, FormatError: no such format, or it lacks what it needs.
    """
    from refiner_training.data import instance_readers, map_readers

    if format == "coco":
        return instance_readers.CocoPairs(images, truth, predictions)
    if format == "cityscapes":
        return instance_readers.CityscapesPairs(images, truth, predictions)
    if format == "labels":
        return map_readers.LabelPairs(images, truth, predictions, ignore_label=ignore_label)
    if format == "regions":
        return instance_readers.RegionPairs(images, truth)
    if format != "panoptic":
        raise UnknownName("format", format, FORMATS)
    if panoptic_dir is None:
        raise ConfigError("panoptic", expected="--panoptic-dir", got="none", fix="name the folder of the truth's PNGs")
    return map_readers.PanopticPairs(images, truth, panoptic_dir, predictions, predictions_dir)


def refiner(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The recipe.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder; default runs/NAME.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As run.steps=100.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from last.ckpt where there is one.")] = True,
    json_progress: Annotated[bool, typer.Option(help="JSON lines on stdout instead of a bar.")] = False,
) -> None:
    """Train a refiner and export it as a model version."""
    import json

    from bpr_service.config import parse_settings
    from refiner_training.config import load_config

    checked = load_config(config, parse_settings(set_ or ()))
    from refiner_training.run.refiner import train

    progress: Any = "json" if json_progress else "bar"
    model = train(checked, out or Path("runs") / checked.name, resume=resume, progress=progress)
    typer.echo(json.dumps({"event": "exported", "path": str(model)}) if json_progress else f"exported {model}")


def export(
    run: Annotated[Path | None, typer.Argument(metavar="RUN_DIR", help="A training run.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Instead: a version to measure into a new one, --out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default RUN_DIR/model.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Another checkpoint than best or last.")] = None,
    version: Annotated[str | None, typer.Option(help="Default the step and a hash of the weights.")] = None,
    measure: Annotated[bool, typer.Option(help="Measure what runs the network best here, for the card.")] = True,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="PATCHES",
            help="Also quantise to int8, on a patch set or, with `data`, on the recipe's training data.",
        ),
    ] = None,
    half: Annotated[bool, typer.Option(help="Round the weights to half precision: half the room.")] = False,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads that are measured with; 0 takes torch's.")] = 0,
) -> None:
    """Write the model version of a run's best checkpoint, and measure what runs it best here."""
    from refiner_training.run.export import export_model, export_run, run_config

    if (run is None) == (model is None):
        raise ConfigError("export", expected="RUN_DIR or --model", got="both" if run else "neither", fix="pass one")
    if calibrate and not measure:
        raise ConfigError("--calibrate", expected="measuring", got="--no-measure", fix="leave one of them out")
    if threads:
        import torch

        torch.set_num_threads(threads)
    if run is not None:
        found = export_run(
            run,
            run_config(run),
            out=out,
            checkpoint=checkpoint,
            version=version,
            measure=measure,
            calibrate=calibrate,
            half=half,
        )
    else:
        if out is None or checkpoint is not None or not measure:
            raise ConfigError(
                "export --model", expected="--out, and neither --checkpoint nor --no-measure", fix="see --help"
            )
        found = export_model(str(model), out, version=version, calibrate=calibrate, half=half)
    typer.echo(f"exported {found}")
    if measure:
        from bpr_service.network.candidates import table
        from bpr_service.network.weights import read_card

        runtime = read_card(found).runtime
        typer.echo(table(runtime) if runtime else "nothing measured")
