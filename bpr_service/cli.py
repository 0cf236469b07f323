"""The ``bpr`` command: parse, call, print.

Nothing heavy is imported before a command runs, so ``bpr --help`` answers at once. Exit codes: 0 done, 1 some items
failed (each named in the report), 2 the call is wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bpr_service import __version__
from bpr_service.errors import BprError
from bpr_service.jobs import batch_commands, job_commands
from bpr_service.runtime import model_commands
from bpr_service.server import commands as server_commands

app = typer.Typer(
    name="bpr",
    help="Exact boundaries for the masks of any segmentation model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Preset = Annotated[str, typer.Option(help="fast, lean, balanced or best.")]
Model = Annotated[Path | None, typer.Option(help="A model version's folder, instead of the preset's model.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bpr {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the JSON and the pictures go.")] = Path("demo"),
    preset: Preset = "balanced",
    model: Model = None,
    device: Device = "cpu",
) -> None:
    """Refine the bundled example and show what changed; needs nothing else."""
    from bpr_service.commands import run_demo

    run_demo(out, preset=preset, model=model, device=device)


@app.command()
def refine(
    image: Annotated[Path, typer.Argument(help="The photograph.")],
    mask: Annotated[Path, typer.Argument(help="Its coarse masks: PNG, or JSON with RLE or polygons.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where the refined masks go, in the format they came in.")],
    task: Annotated[str, typer.Option(help="instance, semantic or panoptic.")] = "instance",
    preset: Preset = "balanced",
    model: Model = None,
    device: Device = "cpu",
    ignore_label: Annotated[int, typer.Option(help="Semantic: a label that is never rewritten.")] = 255,
    segments: Annotated[Path | None, typer.Option(help="Panoptic: JSON with segments_info.")] = None,
    gate: Annotated[bool, typer.Option(help="Do no harm: keep a mask where no gain is expected.")] = True,
    picture: Annotated[Path | None, typer.Option(help="Write a before/after picture here.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE instead of the preset's, as backend=card.")
    ] = None,
) -> None:
    """Refine the masks of one image."""
    from bpr_service.commands import run_refine

    run_refine(
        image,
        mask,
        out,
        task=task,
        preset=preset,
        model=model,
        device=device,
        ignore_label=ignore_label,
        segments=segments,
        gate=gate,
        picture=picture,
        settings=settings or (),
    )


@app.command()
def bench(
    preset: Preset = "balanced",
    model: Model = None,
    device: Device = "cpu",
    data: Annotated[
        Path | None, typer.Option(help="The boundary corpus; the bundled photographs where it is left out.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes every core.")] = 0,
    backend: Annotated[
        str,
        typer.Option(help="eager, compile, onnxruntime, openvino, graphs (CUDA); card: what the card chose."),
    ] = "eager",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or int8.")] = "fp32",
    int8: Annotated[bool, typer.Option(help="Also quantise, and measure that.")] = True,
    compare: Annotated[
        Path | None, typer.Option(help="An earlier result: exit with 1 where a step costs 10 % more.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time each step on a fixed workload, beside what the machine must pay."""
    from bpr_service.commands import run_bench

    settings = {"backend": backend, "precision": precision, "int8": int8}
    run_bench(preset, data, model=model, device=device, threads=threads, compare=compare, as_json=as_json, **settings)


@app.command()
def doctor(model: Model = None) -> None:
    """Versions, devices, the models and their hashes."""
    from bpr_service.commands import run_doctor

    run_doctor(model)


healthcheck = typer.Typer(help="What a container's health check runs: exit code 0 or 1.", no_args_is_help=True)
healthcheck.command("server")(server_commands.check_server)
healthcheck.command("worker")(job_commands.check_worker)

app.add_typer(healthcheck, name="healthcheck")
app.add_typer(batch_commands.batch, name="batch")
app.add_typer(job_commands.jobs, name="jobs")
app.command("worker")(job_commands.worker)
app.add_typer(model_commands.app, name="models")
app.command()(server_commands.serve)
app.command()(server_commands.keys)


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except BprError as error:
        print(f"bpr: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
