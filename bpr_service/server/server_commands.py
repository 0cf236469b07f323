"""``bpr serve`` and ``bpr keys``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port (8000); 0 takes a free one.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    devices: Annotated[
        str | None, typer.Option(help="A process for each, behind one port: cuda:0,cuda:1 (or cpu,cpu).")
    ] = None,
    presets: Annotated[str | None, typer.Option(help="Presets to keep warm, the default first: balanced,fast.")] = None,
    model_store: Annotated[str | None, typer.Option(help="Model store; its active versions are served.")] = None,
    max_batch_patches: Annotated[int | None, typer.Option(help="Patches a batch (64; 32 on a CPU).")] = None,
    max_batch_wait_ms: Annotated[float | None, typer.Option(help="Wait for a fuller batch (5).")] = None,
    max_requests: Annotated[int | None, typer.Option(help="Requests admitted at a time (64).")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the network; 0 takes every core.")] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="eager, compile, onnxruntime, openvino, graphs (CUDA) or auto: the quickest that is here."),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16, int8 or auto.")] = None,
    api_keys_file: Annotated[Path | None, typer.Option(help="JSON list of keys, see `bpr keys`.")] = None,
    segmenter: Annotated[
        Path | None, typer.Option(help="A segmenter of `bpr-train export-segmenter`: offer /v1/segment.")
    ] = None,
    jobs: Annotated[bool | None, typer.Option(help="Offer /v1/jobs.")] = None,
    otel: Annotated[bool | None, typer.Option(help="Send OpenTelemetry traces.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Serve refinement over HTTP. Every setting also is a BPR_* variable; see docs/api.md."""
    from bpr_service.config import get_preset
    from bpr_service.server.settings import ServerSettings

    settings = ServerSettings.load(
        host=host,
        port=port,
        device=device,
        devices=tuple(devices.split(",")) if devices else None,
        presets=tuple(presets.split(",")) if presets else None,
        model_store=model_store,
        max_batch_patches=max_batch_patches,
        max_batch_wait_ms=max_batch_wait_ms,
        max_requests=max_requests,
        threads=threads,
        backend=backend,
        precision=precision,
        api_keys_file=api_keys_file,
        segmenter=segmenter,
        jobs=jobs,
        otel=otel,
        log_level=log_level,
    )
    for name in settings.presets:
        get_preset(name)  # before anything heavy is imported
    if settings.devices:
        from bpr_service.server.process.fleet import run_fleet

        raise typer.Exit(run_fleet(settings))
    from bpr_service.server.process.run import run

    run(settings)


def check_server(
    timeout_s: Annotated[float, typer.Option(help="How long to wait for the answer.")] = 4.0,
) -> None:
    """Exit with 0 where the server of this machine is ready (BPR_HOST, BPR_PORT), else with 1."""
    import os
    import urllib.request

    host, port = os.environ.get("BPR_HOST", "127.0.0.1"), os.environ.get("BPR_PORT", "8000")
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/readyz", timeout=timeout_s) as answer:
            typer.echo(answer.read().decode())
    except (OSError, ValueError) as error:  # refused, timed out, 503; a port that is no number
        typer.echo(f"not ready: {error}", err=True)
        raise typer.Exit(1) from None


def keys(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    file: Annotated[Path, typer.Option(help="The key's hash is added to this file.")] = Path("keys.json"),
    scopes: Annotated[str, typer.Option(help="What it may do: refine, jobs, admin.")] = "refine,jobs",
    per_minute: Annotated[int | None, typer.Option(help="Requests a minute; unlimited where left out.")] = None,
) -> None:
    """Make an API key: it is shown once, and only its hash is kept."""
    from bpr_service import storage
    from bpr_service.errors import ConflictError
    from bpr_service.server.http.auth import new_key, read_keys

    known = read_keys(file) if file.exists() else []
    if name in {key.name for key in known}:
        raise ConflictError("that name has a key", got=name, fix="choose another name, or take it out of the file")
    key, kept = new_key(name, tuple(scopes.split(",")), per_minute)  # type: ignore[arg-type]
    listed: list[dict[str, Any]] = [entry.model_dump(mode="json") for entry in [*known, kept]]
    storage.write_bytes(file, json.dumps(listed, indent=2).encode())
    file.chmod(0o600)
    typer.echo(key)
