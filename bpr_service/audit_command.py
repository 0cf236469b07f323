"""``bpr audit``: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bpr_service import command_options
from bpr_service.jobs import batch_commands as batch

if TYPE_CHECKING:
    from bpr_service.jobs.refine.batch import Result

audit = typer.Typer(help="Find the wrong masks of a data set.", no_args_is_help=True)

Annotations = Annotated[str, typer.Option(help="What bpr batch takes as --predictions, of any format.")]
Out = Annotated[str, typer.Option(help="The report: JSON, the most suspicious mask first.")]
Page = Annotated[str | None, typer.Option(help="Write the page that shows the worst masks here: one HTML file.")]
PageMasks = Annotated[int, typer.Option(help="Masks of the page.", min=1, max=20_000)]
FailOver = Annotated[
    float | None, typer.Option(help="Exit with 1 where a mask is more suspicious than this.", min=0.0, max=1.0)
]
Sample = Annotated[
    int, typer.Option(help="Draw so many masks for a person to look at, to estimate the share of wrong ones.", min=0)
]


@audit.command()
def instance(
    images: batch.Images,
    annotations: Annotations,
    out: Out,
    dataset: Annotated[str | None, typer.Option(help="File with the 'images', where --annotations has none.")] = None,
    format_: batch.Format = None,
    page: Page = None,
    page_masks: PageMasks = 1000,
    fail_over: FailOver = None,
    sample: Sample = 0,
    preset: command_options.Preset = "balanced",
    model: command_options.Model = None,
    device: command_options.Device = "cpu",
    workers: batch.Workers = 2,
    resume: batch.Resume = False,
    work: batch.Work = None,
    part: batch.Part = None,
    merge: batch.Merge = False,
    settings: command_options.Set = None,
) -> None:
    """Audit instance masks: coco (default), lvis, cityscapes, yolo, ids, png."""
    values = {"task": "instance", "images": images, "predictions": annotations, "out": out, "dataset": dataset,
              "format": format_, "page_out": page, "page_masks": page_masks, "sample": sample, "preset": preset,
              "model": model, "settings": settings}  # fmt: skip
    drive = {"device": device, "workers": workers, "resume": resume, "work": work, "part": part, "merge": merge}
    _run(values, drive, fail_over)


@audit.command()
def semantic(
    images: batch.Images,
    annotations: Annotations,
    out: Out,
    ignore_label: Annotated[int | None, typer.Option(help="The label that is no mask; default: the format's.")] = None,
    format_: batch.Format = None,
    page: Page = None,
    page_masks: PageMasks = 1000,
    fail_over: FailOver = None,
    sample: Sample = 0,
    preset: command_options.Preset = "balanced",
    model: command_options.Model = None,
    device: command_options.Device = "cpu",
    workers: batch.Workers = 2,
    resume: batch.Resume = False,
    work: batch.Work = None,
    part: batch.Part = None,
    merge: batch.Merge = False,
    settings: command_options.Set = None,
) -> None:
    """Audit label maps, each label of an image as a mask: png (default), cityscapes, cityscapes-train-ids, ade, voc."""
    values = {"task": "semantic", "images": images, "predictions": annotations, "out": out, "format": format_,
              "ignore_label": ignore_label, "page_out": page, "page_masks": page_masks, "sample": sample,
              "preset": preset, "model": model, "settings": settings}  # fmt: skip
    drive = {"device": device, "workers": workers, "resume": resume, "work": work, "part": part, "merge": merge}
    _run(values, drive, fail_over)


@audit.command()
def panoptic(
    images: batch.Images,
    annotations: Annotations,
    panoptic_dir: Annotated[str, typer.Option(help="Folder of its PNGs.")],
    out: Out,
    dataset: Annotated[str | None, typer.Option(help="File with the 'images', where --annotations has none.")] = None,
    page: Page = None,
    page_masks: PageMasks = 1000,
    fail_over: FailOver = None,
    sample: Sample = 0,
    preset: command_options.Preset = "balanced",
    model: command_options.Model = None,
    device: command_options.Device = "cpu",
    workers: batch.Workers = 2,
    resume: batch.Resume = False,
    work: batch.Work = None,
    part: batch.Part = None,
    merge: batch.Merge = False,
    settings: command_options.Set = None,
) -> None:
    """Audit panoptic segments."""
    values = {"task": "panoptic", "images": images, "predictions": annotations, "out": out, "dataset": dataset,
              "panoptic_dir": panoptic_dir, "page_out": page, "page_masks": page_masks, "sample": sample,
              "preset": preset, "model": model, "settings": settings}  # fmt: skip
    drive = {"device": device, "workers": workers, "resume": resume, "work": work, "part": part, "merge": merge}
    _run(values, drive, fail_over)


@audit.command()
def apply(
    report: Annotated[str, typer.Argument(help="The report of the audit.")],
    decisions: Annotated[str, typer.Argument(help="The decisions that its page saved.")],
    out: Annotated[str, typer.Option("-o", "--out", help="The same annotations with the taken masks replaced.")],
    images: Annotated[str | None, typer.Option(help="Where the images lie; default: where the report says.")] = None,
    annotations: Annotated[str | None, typer.Option(help="The annotations; default: those of the report.")] = None,
    dataset: Annotated[str | None, typer.Option(help="As for the audit; default: that of the report.")] = None,
    panoptic_dir: Annotated[str | None, typer.Option(help="As for the audit; default: that of the report.")] = None,
) -> None:
    """Write the annotations again with the masks that were taken, and nothing else, replaced."""
    from bpr_service.audit.decisions import apply as write
    from bpr_service.audit.decisions import read_decisions, read_report

    taken = {key: what for key, what in read_decisions(decisions).items() if what == "take"}
    head, rows = read_report(report, taken)
    head = head.at(images=images, annotations=annotations, dataset=dataset, panoptic_dir=panoptic_dir)
    typer.echo(f"{out}: {write(head, rows, out)} masks replaced")


@audit.command()
def estimate(
    report: Annotated[str, typer.Argument(help="The report of an audit with --sample.")],
    decisions: Annotated[str, typer.Argument(help="The decisions about its sample.")],
) -> None:
    """Say from a sample that was looked at which share of all masks is wrong."""
    from bpr_service.audit.decisions import read_decisions, read_report, share_of_wrong

    found = share_of_wrong(read_report(report, {})[0], read_decisions(decisions))
    typer.echo(f"wrong: {found.share:.2%} of all masks (95 % interval {found.low:.2%} to {found.high:.2%})")


def _run(values: dict[str, Any], drive: dict[str, Any], fail_over: float | None) -> None:
    from bpr_service.audit.report import suspects
    from bpr_service.config import parse_settings
    from bpr_service.formats.targets import check_target
    from bpr_service.jobs.refine.batch import Batch, run_batch
    from bpr_service.jobs.requests import AuditRequest, parse_request

    request = parse_request({"kind": "audit", **values, "settings": parse_settings(values["settings"] or ())})
    assert isinstance(request, AuditRequest)
    check_target(request.out, "--out")
    if request.page_out is not None:
        check_target(request.page_out, "--page")
    result = run_batch(request, Batch(**{**drive, "part": batch.share_of(drive["part"])}))
    _print(result, request)
    if result.totals is None:
        raise typer.Exit(0)
    over = suspects(request.out, fail_over) if fail_over is not None else 0
    if over:
        typer.echo(f"  {over} masks are more suspicious than {fail_over:g}", err=True)
    raise typer.Exit(1 if over else result.exit_code)


def _print(result: Result, request: Any) -> None:
    totals = result.totals
    if totals is None:
        typer.echo(f"a share of {request.out}: {result.images} images {batch.pace(result)}")
        return
    typer.echo(
        f"{request.out}: {totals.refined} masks of {totals.images} images {batch.pace(result)}; "
        f"{totals.failed_count} cannot be read"
    )
    batch.print_failed(totals, "cannot be read", "the report")
