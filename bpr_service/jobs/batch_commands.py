"""``bpr batch``: parse, call, print.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bpr_service import command_options

if TYPE_CHECKING:
    from bpr_service.formats import FileOptions
    from bpr_service.jobs.refine.batch import Drive, Result
    from bpr_service.jobs.refine.report import Totals

batch = typer.Typer(help="Refine a whole prediction file or folder.", no_args_is_help=True)


class EngineName(StrEnum):
    """What runs the parts."""

    local = "local"
    ray = "ray"


class ResultKind(StrEnum):
    """What OUT becomes."""

    file = "file"
    jsonl = "jsonl"
    parquet = "parquet"


Images = Annotated[
    str,
    typer.Option(
        help="Folder of the images; a path or an address (s3://...).",
        callback=command_options.there("a folder of images"),
    ),
]
Format = Annotated[str | None, typer.Option("--format", help="Format of the predictions.")]
Workers = Annotated[int, typer.Option(help="Loader processes that feed the device; 0: none.", min=0, max=64)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an earlier call was stopped.")]
Report = Annotated[str | None, typer.Option(help="Write a JSON report here.")]
Truth = Annotated[
    str | None,
    typer.Option(
        help="Ground truth; the report then has figures before and after.", callback=command_options.there("a truth")
    ),
]
Work = Annotated[str | None, typer.Option(help="Folder or address for unfinished work; default OUT.bpr-work.")]
Part = Annotated[str | None, typer.Option(metavar="I/N", help="Only share I of N, from 0; needs --work.")]
Merge = Annotated[bool, typer.Option("--merge", help="Only put the shares together; needs --work.")]
Engine = Annotated[EngineName, typer.Option(help="local, or ray: the actors of a cluster.")]
Address = Annotated[str | None, typer.Option(help="Ray's cluster; default: RAY_ADDRESS, else one started here.")]
Actors = Annotated[int | None, typer.Option(help="Devices of Ray's cluster; default: all it has.", min=1)]

_predictions = command_options.there("predictions")


@batch.command()
@command_options.takes_files("classes")
def instance(
    images: Images,
    predictions: Annotated[
        str,
        typer.Option(help="COCO or LVIS results, or a Cityscapes or YOLO folder.", callback=_predictions),
    ],
    out: Annotated[str, typer.Option(help="The refined predictions, in the same format.")],
    dataset: Annotated[str | None, typer.Option(help="Annotation file with the 'images' of the data set.")] = None,
    soft: Annotated[
        str | None,
        typer.Option(help="Folder of the masks' probabilities: ID.png by a record's id, or IMAGE_N.npy, N from 0."),
    ] = None,
    format_: Format = None,
    preset: command_options.Preset = "balanced",
    model: command_options.Model = None,
    device: command_options.Device = "cpu",
    workers: Workers = 2,
    resume: Resume = False,
    report: Report = None,
    truth: Truth = None,
    work: Work = None,
    part: Part = None,
    merge: Merge = False,
    result: Annotated[
        ResultKind, typer.Option(help="OUT as the input's one file, or a folder of parts: jsonl, parquet.")
    ] = ResultKind.file,
    engine: Engine = EngineName.local,
    address: Address = None,
    actors: Actors = None,
    settings: command_options.Set = None,
    *,
    files: Any,
) -> None:
    """Refine instance masks: coco (default), lvis, cityscapes, yolo."""
    values = {"task": "instance", "images": images, "predictions": predictions, "out": out, "dataset": dataset,
              "soft": soft, "format": format_, "result": result.value, "preset": preset, "model": model,
              "settings": settings}  # fmt: skip
    drive = {"device": device, "workers": workers, "resume": resume, "report": report,
               "ground_truth": truth, "work": work, "part": part, "merge": merge, "engine": engine,
               "address": address, "actors": actors}  # fmt: skip
    _run_batch(values, files, drive)


@batch.command()
@command_options.takes_files()
def semantic(
    images: Images,
    predictions: Annotated[
        str, typer.Option(help="Folder of one-channel PNGs, or NumPy files of probabilities.", callback=_predictions)
    ],
    out: Annotated[str, typer.Option(help="Folder of the refined files.")],
    ignore_label: Annotated[
        int | None, typer.Option(help="The label that is never rewritten; default: the format's.")
    ] = None,
    format_: Format = None,
    preset: command_options.Preset = "balanced",
    model: command_options.Model = None,
    device: command_options.Device = "cpu",
    workers: Workers = 2,
    resume: Resume = False,
    report: Report = None,
    truth: Truth = None,
    work: Work = None,
    part: Part = None,
    merge: Merge = False,
    engine: Engine = EngineName.local,
    address: Address = None,
    actors: Actors = None,
    settings: command_options.Set = None,
    *,
    files: Any,
) -> None:
    """Refine label maps: png (default), cityscapes, cityscapes-train-ids, ade, voc, soft (probabilities)."""
    values = {"task": "semantic", "images": images, "predictions": predictions, "out": out, "format": format_,
              "ignore_label": ignore_label, "preset": preset, "model": model,
              "settings": settings}  # fmt: skip
    drive = {"device": device, "workers": workers, "resume": resume, "report": report,
               "ground_truth": truth,
               "work": work, "part": part, "merge": merge, "engine": engine,
               "address": address, "actors": actors}  # fmt: skip
    _run_batch(values, files, drive)


@batch.command()
@command_options.takes_files("classes")
def panoptic(
    images: Images,
    predictions: Annotated[str, typer.Option(help="COCO panoptic JSON.", callback=_predictions)],
    panoptic_dir: Annotated[str, typer.Option(help="Folder of its PNGs.")],
    out: Annotated[str, typer.Option(help="Folder of the refined PNGs and panoptic.json.")],
    dataset: Annotated[str | None, typer.Option(help="File with the 'images' of the data set.")] = None,
    preset: command_options.Preset = "balanced",
    model: command_options.Model = None,
    device: command_options.Device = "cpu",
    workers: Workers = 2,
    resume: Resume = False,
    report: Report = None,
    truth: Truth = None,
    work: Work = None,
    part: Part = None,
    merge: Merge = False,
    engine: Engine = EngineName.local,
    address: Address = None,
    actors: Actors = None,
    settings: command_options.Set = None,
    *,
    files: Any,
) -> None:
    """Refine panoptic segments."""
    values = {"task": "panoptic", "images": images, "predictions": predictions, "out": out, "dataset": dataset,
              "panoptic_dir": panoptic_dir, "preset": preset, "model": model,
              "settings": settings}  # fmt: skip
    drive = {"device": device, "workers": workers, "resume": resume, "report": report,
               "ground_truth": truth, "work": work, "part": part, "merge": merge, "engine": engine,
               "address": address, "actors": actors}  # fmt: skip
    _run_batch(values, files, drive)


def _run_batch(values: dict[str, Any], files: FileOptions, options: dict[str, Any]) -> None:
    from bpr_service.config import parse_settings
    from bpr_service.jobs.refine.batch import Batch, run_batch
    from bpr_service.jobs.requests import RefineRequest, parse_request

    request = parse_request(
        {"kind": "refine", **values, **files.model_dump(), "settings": parse_settings(values["settings"] or ())}
    )
    assert isinstance(request, RefineRequest)
    drive = _drive(options)
    result = run_batch(request, Batch(**{**options, "part": share_of(options["part"])}), drive=drive)
    print_result(result, request.out)
    raise typer.Exit(result.exit_code)


def _drive(options: dict[str, Any]) -> Drive | None:
    """What ``--engine`` names; takes the options that are its own out of the others."""
    engine, address, actors = (options.pop(name) for name in ("engine", "address", "actors"))
    if engine == EngineName.local:
        return None
    from functools import partial

    from bpr_service.jobs.ray.driver import refine_on_ray

    own = {"device": options["device"], "workers": options["workers"]}
    return partial(refine_on_ray, address=address, actors=actors, **own)


def share_of(text: str | None) -> tuple[int, int] | None:
    """(I, N) of ``I/N``."""
    from bpr_service.errors import ConfigError

    if text is None:
        return None
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal()):
        raise ConfigError("--part", expected="I/N, as 0/8", got=repr(text), fix="count from 0")
    return int(number), int(of)


def pace(result: Result) -> str:
    """How long it took, and images a second where any were done."""
    rate = f", {result.images / result.seconds:.2f} images/s" if result.images and result.seconds else ""
    return f"in {result.seconds:.1f} s{rate}"


def print_failed(totals: Totals, word: str, where: str) -> None:
    """The first ten failures, each as a `word`, and `where` the others are."""
    for line in totals.failed[:10]:
        typer.echo(f"  {word}: {line}", err=True)
    if totals.failed_count > 10:
        typer.echo(f"  ... and {totals.failed_count - 10} more: see {where}", err=True)


def print_result(result: Result, out: str) -> None:
    """Print what a run did: images, masks and their pace."""
    totals = result.totals
    if totals is None:
        typer.echo(f"a share of {out}: {result.images} images {pace(result)}")
        return
    unchanged = sum(totals.unchanged.values())
    typer.echo(
        f"{out}: {totals.images} images {pace(result)}; "
        f"{totals.refined} masks refined, {unchanged} unchanged, {totals.failed_count} failed"
    )
    for reason, count in sorted(totals.unchanged.items()):
        typer.echo(f"  unchanged: {count} ({reason})")
    print_failed(totals, "failed", "--report")
    for line in totals.warnings[:10]:
        typer.echo(f"  warning: {line}", err=True)
