"""``bpr worker`` and ``bpr jobs``: parse, call, print.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bpr_service.command_options import Device

if TYPE_CHECKING:
    from bpr_service.jobs.engine import Job, JobEngine

jobs = typer.Typer(help="Durable work: submit, list, show, watch, log, cancel, resume.", no_args_is_help=True)
JobId = Annotated[str, typer.Argument(help="The job's id.")]
POLL_S = 1.0


def worker(
    device: Device = "cpu",
    workers: Annotated[int, typer.Option(help="Loader processes; 0: none.", min=0, max=64)] = 0,
    kind: Annotated[
        list[str] | None, typer.Option(help="Work on these jobs only: refine (and audit), train; default: all.")
    ] = None,
) -> None:
    """Work on jobs until told to stop. Settings are the BPR_JOBS_* variables."""
    from bpr_service.jobs.engine import JobEngine

    JobEngine().run_worker(device=device, workers=workers, kinds=kind or None)


def check_worker() -> None:
    """Exit with 0 where a worker of this machine gives signs of life, else with 1."""
    import socket

    from bpr_service.errors import BprError
    from bpr_service.jobs.engine import JobEngine

    try:
        typer.echo(JobEngine(patience_s=0.0).check_worker(socket.gethostname()))
    except BprError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def _engine() -> JobEngine:
    from bpr_service.jobs.engine import JobEngine

    return JobEngine()


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def _job_line(job: Job) -> str:
    progress = job.progress
    done, total = progress.get("done", 0), progress.get("total")
    share = f"{done}/{total}" if total else ""
    return f"{job.id:<28} {job.kind:<7} {job.state:<10} {share:<12} {job.message}".rstrip()


@jobs.command()
def submit(
    request: Annotated[str, typer.Argument(help="The request: a JSON or YAML file, '-' for stdin, or JSON text.")],
    job_id: Annotated[str | None, typer.Option("--id", help="The job's id; the same id is done once.")] = None,
    watch_: Annotated[bool, typer.Option("--watch", help="Wait for the end.")] = False,
) -> None:
    """Submit a refine, audit or train job."""
    job = _engine().submit(_read_request(request), job_id)
    typer.echo(job.id)
    if watch_:
        watch(job.id)


def _read_request(text: str) -> dict[str, Any]:
    import sys
    from pathlib import Path

    import yaml

    from bpr_service.errors import ConfigError

    if text == "-":
        text = sys.stdin.read()
    elif not text.lstrip().startswith("{"):
        path = Path(text)
        if not path.is_file():
            raise ConfigError("request", expected="a JSON or YAML file", got=text, fix="check the path")
        text = path.read_text()
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError("request", expected="JSON or YAML", got=str(error).replace("\n", " ")) from None
    if not isinstance(values, dict):
        raise ConfigError("request", expected="keys and values", got=type(values).__name__)
    return values


@jobs.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    state: Annotated[str | None, typer.Option(help="queued, running, done, failed or cancelled.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """List the newest jobs."""
    found = _engine().list(limit=limit, state=state)
    if as_json:
        _print_json([job.to_json() for job in found])
        return
    for job in found:
        typer.echo(_job_line(job))
    if not found:
        typer.echo("no jobs" if state is None else f"no jobs that are {state}", err=True)


@jobs.command()
def show(job_id: JobId) -> None:
    """Print a job with its request, progress and result."""
    _print_json(_engine().get(job_id).to_json())


@jobs.command()
def watch(job_id: JobId) -> None:
    """Print progress until the job ends; exit code 0 done, 1 failed or with failed items, 3 cancelled."""
    import time

    engine, last = _engine(), ""
    while True:
        job = engine.get(job_id)
        line = _job_line(job)
        if line != last:
            typer.echo(line)
            last = line
        if job.ended_for_good:
            failed_items = bool((job.result or {}).get("failed_count"))
            codes = {"done": 1 if failed_items else 0, "failed": 1, "cancelled": 3}
            raise typer.Exit(codes[job.state])
        time.sleep(POLL_S)


@jobs.command()
def prune(
    older_than: Annotated[float, typer.Option(help="Days since the end of a job.", min=0)] = 90.0,
    keep_mb: Annotated[float | None, typer.Option(help="What ended jobs may hold together, MB.", min=0)] = None,
) -> None:
    """Remove what ended jobs left: rows, plans, parts, logs. What they wrote to OUT stays."""
    keep = None if keep_mb is None else 1e6 * keep_mb
    removed = _engine().prune(older_than_s=86_400 * older_than, keep_bytes=keep)
    typer.echo(f"{len(removed)} jobs removed")
    for job_id in removed:
        typer.echo(f"  {job_id}")


@jobs.command()
def log(job_id: JobId) -> None:
    """Print a job's log."""
    typer.echo(_engine().log(job_id), nl=False)


@jobs.command()
def cancel(job_id: JobId) -> None:
    """Stop a job; what is done stays for a resume."""
    typer.echo(_job_line(_engine().cancel(job_id)))


@jobs.command()
def resume(job_id: JobId) -> None:
    """Go on with a job that was cancelled or has failed."""
    typer.echo(_job_line(_engine().resume(job_id)))
