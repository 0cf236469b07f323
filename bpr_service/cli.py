"""The ``bpr`` command: parse, call, print.

Nothing heavy is imported before a command runs, so ``bpr --help`` answers at once. Exit codes: 0 done, 1 some items
failed (each named in the report), 2 the call is wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bpr_service import __version__, audit_command, command_options
from bpr_service.command_examples import show_examples
from bpr_service.errors import BprError
from bpr_service.extras import missing
from bpr_service.jobs import batch_commands, job_commands
from bpr_service.runtime import model_commands
from bpr_service.server import server_commands

app = typer.Typer(
    name="bpr",
    help="Exact boundaries for the masks of any segmentation model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_MASKS, _SERVICE, _HERE = "Refine", "Serve and run jobs", "This machine"


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


@app.command(rich_help_panel=_MASKS)
def demo(
    out: Annotated[Path, typer.Option(help="Where the JSON and the pictures go.")] = Path("demo"),
    preset: command_options.Preset = "balanced",
    model: command_options.ModelFolder = None,
    device: command_options.Device = "cpu",
) -> None:
    """Refine the bundled example and show what changed; needs nothing else."""
    from bpr_service.commands import run_demo

    run_demo(out, preset=preset, model=model, device=device)


@app.command(rich_help_panel=_MASKS)
@command_options.takes_files()
def refine(
    image: Annotated[
        Path,
        typer.Argument(
            help="The photograph, or a folder of them; - is standard input.", callback=command_options.there("an image")
        ),
    ],
    mask: Annotated[
        Path,
        typer.Argument(
            help="Its coarse masks: a picture, the file of any format of bpr batch, or a folder; - as above.",
            callback=command_options.there("a mask file"),
        ),
    ],
    out: Annotated[
        str, typer.Option("-o", "--out", help="Where they go, in the form they came in; - is standard output.")
    ],
    task: command_options.Task = "instance",
    format_: Annotated[
        str | None, typer.Option("--format", help="Format of the masks; default: looks into the file.")
    ] = None,
    image_id: Annotated[str | None, typer.Option(help="Which image of a data set's file the photograph is.")] = None,
    preset: command_options.Preset = "balanced",
    model: command_options.ModelFolder = None,
    device: command_options.Device = "cpu",
    ignore_label: Annotated[
        int | None, typer.Option(help="Semantic: a label that is never rewritten; default 255.")
    ] = None,
    segments: Annotated[Path | None, typer.Option(help="Panoptic: JSON with segments_info.")] = None,
    gate: Annotated[bool, typer.Option(help="Do no harm: keep a mask where no gain is expected.")] = True,
    picture: Annotated[Path | None, typer.Option(help="Write a before/after picture here.")] = None,
    settings: command_options.Set = None,
    *,
    files: Any,
) -> None:
    """Refine the masks of one image, or of a folder of images: bpr refine PHOTOS MASKS -o OUT."""
    from bpr_service.refine_command import Arguments, run_refine

    arguments = Arguments(image, mask, out, task, format_, image_id, ignore_label, segments, picture)
    settings = [*(settings or ()), *([] if gate else ["gate=false"])]
    run_refine(arguments, files, preset=preset, model=model, device=device, settings=settings)


@app.command(rich_help_panel=_HERE)
def bench(
    preset: command_options.Preset = "balanced",
    model: command_options.ModelFolder = None,
    device: command_options.Device = "cpu",
    data: Annotated[
        Path | None, typer.Option(help="The boundary corpus; the bundled photographs where it is left out.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes every core.")] = 0,
    backend: Annotated[
        str,
        typer.Option(help="eager, compile, onnxruntime, openvino, graphs (CUDA) or auto: the quickest that is here."),
    ] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16, int8 or auto.")] = "auto",
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


@app.command(rich_help_panel=_HERE)
def doctor(model: command_options.ModelFolder = None) -> None:
    """Versions, devices, the models and their hashes."""
    from bpr_service.commands import run_doctor

    run_doctor(model)


healthcheck = typer.Typer(help="What a container's health check runs: exit code 0 or 1.", no_args_is_help=True)
healthcheck.command("server")(server_commands.check_server)
healthcheck.command("worker")(job_commands.check_worker)

app.add_typer(batch_commands.batch, name="batch", rich_help_panel=_MASKS)
app.add_typer(audit_command.audit, name="audit", rich_help_panel=_MASKS)
app.command(rich_help_panel=_SERVICE)(server_commands.serve)
app.command(rich_help_panel=_SERVICE)(server_commands.keys)
app.add_typer(job_commands.jobs, name="jobs", rich_help_panel=_SERVICE)
app.command("worker", rich_help_panel=_SERVICE)(job_commands.worker)
app.add_typer(model_commands.app, name="models", rich_help_panel=_SERVICE)
app.add_typer(healthcheck, name="healthcheck", rich_help_panel=_SERVICE)

EXAMPLES = {
    "demo": "--out demo",
    "refine": "photo.jpg masks.json -o refined.json --picture before_after.png",
    "batch instance": "--images photos --predictions results.json --dataset instances.json --out refined.json",
    "batch semantic": "--images photos --predictions labels --out refined --report report.json",
    "batch panoptic": "--images photos --predictions pan.json --panoptic-dir pan --out refined",
    "audit instance": "--images photos --annotations instances.json --out report.json --page audit.html",
    "audit semantic": "--images photos --annotations labels --out report.json --page audit.html",
    "audit panoptic": "--images photos --annotations pan.json --panoptic-dir pan --out report.json",
    "audit apply": "report.json decisions.json --out mended.json",
    "audit estimate": "report.json decisions.json",
    "serve": "--port 8000 --presets balanced,fast --api-keys-file keys.json",
    "keys": "alice --file keys.json --scopes refine,jobs",
    "worker": "--device cuda --workers 4",
    "jobs submit": "request.yaml --watch",
    "jobs list": "--state failed",
    "jobs show": "JOB",
    "jobs watch": "JOB",
    "jobs log": "JOB",
    "jobs cancel": "JOB",
    "jobs resume": "JOB",
    "jobs prune": "--older-than 30",
    "models list": "balanced",
    "models show": "balanced@active",
    "models import": "runs/mine/model --name balanced --activate",
    "models activate": "balanced@4a880409fa71",
    "models rollback": "balanced",
    "models verify": "balanced@active",
    "models export": "balanced -o balanced.onnx",
    "healthcheck server": "--timeout-s 2",
    "healthcheck worker": "",
    "bench": "--preset fast --json",
    "doctor": "",
}
show_examples(app, "bpr", EXAMPLES)


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except BprError as error:
        print(f"bpr: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        if (of_extra := missing(error)) is None:
            raise
        print(f"bpr: {of_extra}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:  # a disk that fills up, a mount that goes away: nothing was written
        where = f"{error.filename}: " if error.filename else ""
        print(f"bpr: {where}{error.strerror or error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
