"""A training run's best network as a model version: ``model.safetensors`` and ``card.json``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpr_service.errors import ConfigError, FormatError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from refiner_training.config import PatchData, SimulatedData, TrainConfig

LICENSE = "Apache-2.0 (the weights; the training data has the terms that `data` names)"


def run_config(folder: Path) -> TrainConfig:
    """The configuration a run was started with.

    Raises:
        FormatError: the folder is no training run.
    """
    from refiner_training.config import load_config

    if not (folder / "config.yaml").is_file():
        raise FormatError(
            f"{folder}", expected="a training run with config.yaml", got="none", fix="pass the --out of a training"
        )
    return load_config(folder / "config.yaml")


def export_run(
    folder: Path,
    config: TrainConfig,
    *,
    out: Path | None = None,
    checkpoint: Path | None = None,
    figures: dict[str, Any] | None = None,
    version: str | None = None,
) -> Path:
    """Write the model version of a run: the averaged network of ``best.ckpt``, else of ``last.ckpt``.

    Args:
        folder: the run's folder.
        config: its configuration; data, terms and notes of the card come from it.
        out: where to; default ``folder / "model"``.
        checkpoint: another checkpoint.
        figures: what was measured, for the card, beside what validation gave.
        version: default the step and the first digits of the weights' SHA-256.

    Returns:
        The model version's folder.

    Raises:
        FormatError: no checkpoint. ModelError: a checkpoint of another network.
    """
    from bpr_service.core.network import build_network
    from bpr_service.core.weights import ModelCard, NetworkCard, save_model

    path = checkpoint or next((p for p in (folder / "best.ckpt", folder / "last.ckpt") if p.is_file()), None)
    if path is None or not path.is_file():
        raise FormatError(
            f"{path or folder}", expected="a checkpoint: best.ckpt or last.ckpt", got="none", fix="train first"
        )
    state, step, measured = read_weights(path)
    network = build_network(config.network.name, **config.network.arguments)
    wanted = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in state.items()}
    if wanted != given:
        odd = sorted(n for n in wanted.keys() | given.keys() if wanted.get(n) != given.get(n))[0]
        raise ModelError(
            f"{path} is not of network {config.network.name} {config.network.arguments}",
            expected=f"{odd} {wanted.get(odd, 'absent')}",
            got=str(given.get(odd, "none")),
            fix="export it with the configuration it was trained with",
        )
    network.load_state_dict(state)
    digest = hashlib.sha256(b"".join(state[n].float().numpy().tobytes() for n in sorted(state))).hexdigest()[:8]
    card = ModelCard(
        name=config.name,
        version=version or f"{step}-{digest}",
        network=NetworkCard(name=config.network.name, arguments=dict(config.network.arguments)),
        patch=config.patch,
        outputs=int(config.network.arguments.get("outputs", 1)),  # type: ignore[arg-type]
        data=data_of(config),
        recipe={"config": config.model_dump(mode="json"), "step": step, "checkpoint": path.name},
        figures={**({"validation": measured} if measured else {}), **(figures or {})},
        license=config.notes.get("license", LICENSE),
    )
    target = out or folder / "model"
    save_model(target, network.eval(), card)
    return target


def read_weights(path: Path) -> tuple[dict[str, Tensor], int, dict[str, float]]:
    """Weights (the averaged ones where there are any), step and validation measures of a checkpoint.

    Raises:
        ModelError: the file cannot be read, or is no checkpoint of a refiner.
    """
    checkpoint = read_checkpoint(path)
    state = checkpoint["state_dict"]
    prefix = "average." if any(name.startswith("average.") for name in state) else "network."
    weights = {name[len(prefix) :]: t for name, t in state.items() if name.startswith(prefix)}
    measured: dict[str, float] = {}
    for callback in checkpoint.get("callbacks", {}).values():
        if isinstance(callback, dict) and callback.get("monitor") and callback.get("best_model_score") is not None:
            measured[str(callback["monitor"])] = round(float(callback["best_model_score"]), 6)
    return weights, int(checkpoint["global_step"]), measured


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a refiner's training; only ever one of our own, since reading it can run code."""
    import torch

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as cause:  # torch raises whatever its unpickler meets
        raise ModelError(
            f"{path}", expected="a readable checkpoint", got=f"{type(cause).__name__}: {cause}", fix="remove it"
        ) from cause
    config = checkpoint.get("hyper_parameters", {}).get("config") if isinstance(checkpoint, dict) else None
    if config is None or "state_dict" not in checkpoint:
        raise ModelError(
            f"{path}", expected="a checkpoint of a refiner", got="another one", fix="pass one that this trainer wrote"
        )
    found: dict[str, Any] = checkpoint
    return found


def data_of(config: TrainConfig) -> list[dict[str, Any]]:
    """What a configuration trains on, source by source, with the terms that its store or its notes give."""
    data: SimulatedData | PatchData = config.data
    if data.kind == "patches":
        manifest = _manifest(data.patches)
        kept = ("reader", "images", "patches", "pairs", "images_skipped", "terms")
        return [{"patches": str(data.patches), **{k: manifest[k] for k in kept if k in manifest}}]
    manifest = _manifest(data.scenes)
    terms = manifest.get("terms", {})
    total = sum(data.sources.values()) or 1.0
    return [
        {
            "source": source,
            "share": round(share / total, 4),
            "images": manifest.get("sources", {}).get(source, 0),
            "terms": terms.get(source) or config.notes.get(f"terms.{source}", "not recorded"),
            "coarse_masks": "simulated from the ground truth",
        }
        for source, share in data.sources.items()
    ]


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def check_same_network(path: Path, config: TrainConfig) -> int:
    """The step a checkpoint stands at.

    Raises:
        ConfigError: it was made by another network, or with other patches.
    """
    from bpr_service.config import build
    from refiner_training.config import TrainConfig

    checkpoint = read_checkpoint(path)
    saved = build(TrainConfig, checkpoint["hyper_parameters"]["config"])
    if saved.network != config.network or saved.patch != config.patch:
        raise ConfigError(
            str(path),
            expected=f"a checkpoint of {config.network.name} {config.network.arguments} with {config.patch}",
            got=f"{saved.network.name} {saved.network.arguments} with {saved.patch}",
            fix="give the run another folder, or --no-resume",
        )
    return int(checkpoint["global_step"])
