"""``bpr models``: parse, call, print."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bpr_service.runtime.model_store import ModelStore, ModelVersion

app = typer.Typer(help="Model versions: list, import, activate, roll back, verify, export.", no_args_is_help=True)

Store = Annotated[str | None, typer.Option(help="Folder or address of the store; default: BPR_MODEL_STORE.")]
Ref = Annotated[str, typer.Argument(help="NAME, NAME@active, NAME@candidate or NAME@ID.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _store(address: str | None) -> ModelStore:
    from bpr_service.runtime.model_store import ModelStore

    return ModelStore(address)


def _line(version: ModelVersion) -> str:
    return f"{version.ref:<32} {version.created:<26} {', '.join(version.aliases)}".rstrip()


def _print(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="Only this name.")] = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """List the versions in the store."""
    versions = _store(store).list(name)
    if as_json:
        _print([version.to_json() for version in versions])
        return
    for version in versions:
        typer.echo(_line(version))
    if not versions:
        typer.echo("no versions in the store; bpr doctor lists the bundled models", err=True)


@app.command()
def show(ref: Ref, store: Store = None) -> None:
    """Print one version: files and hashes, provenance, card."""
    models = _store(store)
    version = models.get(ref)
    _print({**version.to_json(), "card": models.card(version.ref)})


@app.command("import")
def import_(
    folder: Annotated[str, typer.Argument(help="An exported model: model.safetensors and card.json.")],
    name: Annotated[str, typer.Option(help="The name it becomes a version of.")],
    parent: Annotated[str | None, typer.Option(help="The version it was trained from.")] = None,
    activate: Annotated[bool, typer.Option("--activate", help="Make it the active version.")] = False,
    store: Store = None,
) -> None:
    """Register an exported model; the same weights are the same version."""
    models = _store(store)
    version = models.add(folder, name, {"source": folder, "parent": parent})
    version = models.activate(version.ref) if activate else models.get(version.ref)
    typer.echo(_line(version))


@app.command()
def activate(ref: Ref, store: Store = None) -> None:
    """Make a version the active one of its name."""
    typer.echo(_line(_store(store).activate(ref)))


@app.command()
def rollback(name: Annotated[str, typer.Argument(help="The model's name.")], store: Store = None) -> None:
    """Make the version before the active one active again."""
    typer.echo(_line(_store(store).rollback(name)))


@app.command()
def verify(
    ref: Annotated[str | None, typer.Argument(help="One version; default: all of them.")] = None, store: Store = None
) -> None:
    """Read every byte again and compare with the recorded SHA-256; exit code 1 when one differs."""
    from bpr_service.errors import ModelError

    models = _store(store)
    failed = False
    for version in [models.get(ref)] if ref else models.list():
        try:
            models.verify(version.ref)
            typer.echo(f"{version.ref}: as it was written")
        except ModelError as error:
            failed = True
            typer.echo(str(error), err=True)
    raise typer.Exit(1 if failed else 0)


@app.command()
def export(
    ref: Annotated[str, typer.Argument(help="NAME@..., a model's folder, or the name of a bundled model.")],
    out: Annotated[str, typer.Option("-o", "--out", help="The ONNX file.")],
    store: Store = None,
) -> None:
    """Export to ONNX and check that the outputs are equal."""
    from pathlib import Path

    from bpr_service.network.weights import bundled_models
    from bpr_service.runtime.onnx_export import export_onnx

    local = Path(ref).is_dir() or ref in bundled_models()
    _print(export_onnx(ref if local else _store(store).fetch(ref), out))
