"""A training run's best network as a model version: ``model.safetensors`` and ``card.json``.

At export the ways to run the network are measured on this machine, and it may be quantised to int8; both go into the
card (:mod:`bpr_service.network.candidates`). A version that exists is measured into a new one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bpr_service.errors import ConfigError, FormatError, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from bpr_service.network.weights import Int8Files, ModelCard
    from refiner_training.config import PatchData, SimulatedData, TrainConfig

LICENSE = "Apache-2.0 (the weights; the training data has the terms that `data` names)"
MEASURED = 128
"""Patches that the candidates' answers are compared on."""
RECIPE_DATA = "data"
"""What ``calibrate`` says for the training data of the recipe."""


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
    measure: bool = False,
    calibrate: str | None = None,
    half: bool = False,
) -> Path:
    """Write the model version of a run: the averaged network of ``best.ckpt``, else of ``last.ckpt``.

    A training does not measure: the machine that trains seldom is the one that serves.

    Args:
        folder: the run's folder.
        config: its configuration; data, terms and notes of the card come from it.
        out: where to; default ``folder / "model"``.
        checkpoint: another checkpoint.
        figures: what was measured, for the card, beside what validation gave.
        version: default the step and the first digits of the weights' SHA-256.
        measure: also measure what runs the network best: see `write_measured`.
        calibrate: also quantise, and measure: see there; with neither, nothing is measured.
        half: round the weights to half precision first, so that they are stored in half the room.

    Returns:
        The model version's folder.

    Raises:
        FormatError: no checkpoint, or no data to measure on. ModelError: a checkpoint of another network.
        ConfigError: data that does not fit the patches, or a quantiser that is not installed.
    """
    from bpr_service.network.registry import build_network
    from bpr_service.network.weights import ModelCard, NetworkCard, save_model
    from refiner_training.run.checkpoint import read_checkpoint, validation_of, weights_of

    path = checkpoint or next((p for p in (folder / "best.ckpt", folder / "last.ckpt") if p.is_file()), None)
    if path is None or not path.is_file():
        raise FormatError(
            f"{path or folder}", expected="a checkpoint: best.ckpt or last.ckpt", got="none", fix="train first"
        )
    content = read_checkpoint(path, "refiner")
    state, step = weights_of(content), int(content["global_step"])
    measured = validation_of(content)
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
    if half:
        network.half().float()
    digest = hashlib.sha256(b"".join(state[n].float().numpy().tobytes() for n in sorted(state))).hexdigest()[:8]
    card = ModelCard(
        name=config.name,
        version=version or f"{step}-{digest}",
        network=NetworkCard(name=config.network.name, arguments=dict(config.network.arguments)),
        patch=config.patch,
        scales=scales_of(config),
        outputs=int(config.network.arguments.get("outputs", 1)),  # type: ignore[arg-type]
        data=data_of(config),
        recipe={"config": config.model_dump(mode="json"), "step": step, "checkpoint": path.name},
        figures={**({"validation": measured} if measured else {}), **(figures or {})},
        license=config.notes.get("license", LICENSE),
    )
    target = out or folder / "model"
    if measure or calibrate:
        write_measured(target, network.eval(), card, config, calibrate)
    else:
        save_model(target, network.eval(), card)
    return target


def export_model(
    source: str, out: Path, *, version: str | None = None, calibrate: str | None = None, half: bool = False
) -> Path:
    """Measure a model version, quantise it where `calibrate` says on what, and write it as a new one.

    A quantised network that the source holds is kept unless a new one is made.

    Args:
        source: a model version's folder, or the name of a bundled model.
        out: a folder that holds no version: versions never change.
        version: default the source's with ``+measured``, or ``+int8``.
        calibrate: see `write_measured`.
        half: see `export_run`.

    Raises:
        UnknownName, ModelError: no such model, or a damaged one.
        ConfigError: `out` holds a version, or the source's card has no recipe to take patches from.
        FormatError: no data to measure on.
    """
    from bpr_service.config import build
    from bpr_service.network.weights import CARD_FILE, load_model, read_int8
    from refiner_training.config import TrainConfig

    loaded = load_model(source)
    card = loaded.card
    if (out / CARD_FILE).exists():
        raise ConfigError("--out", expected="a new folder", got=f"{out}, a model version", fix="name another folder")
    if calibrate in (None, RECIPE_DATA):
        if "config" not in card.recipe:
            raise ConfigError(
                f"{card.name}@{card.version}",
                expected="a card with the recipe, whose data has patches to measure on",
                got="none",
                fix="pass a patch set of training images: --calibrate PATCHES",
            )
        recipe = card.recipe["config"]
    else:
        recipe = {"name": card.name, "data": {"kind": "patches", "patches": calibrate}}
    config = build(TrainConfig, {**recipe, "patch": card.patch.model_dump()})
    kept = read_int8(loaded.folder, card) if card.int8 and not calibrate else None
    number = card.version.partition("+")[0]
    card = card.with_options(version=version or f"{number}+{'int8' if calibrate or kept else 'measured'}")
    network = loaded.network.half().float() if half else loaded.network
    write_measured(out, network, card, config, calibrate, kept)
    return out


def write_measured(
    out: Path,
    network: nn.Module,
    card: ModelCard,
    config: TrainConfig,
    calibrate: str | None = None,
    files: Int8Files | None = None,
) -> None:
    """Measure what runs a network best here, with torch's number of threads, and write the version with the record.

    Answers are compared on patches of the recipe's validation data, else on patches of the training data after those
    that the ranges were measured on.

    Args:
        out: the version's folder.
        network: in evaluation mode.
        card: of the version, without what is measured here.
        config: the recipe.
        calibrate: also quantise, with ranges measured on a patch set (its folder) or on the training data of the
            recipe (``data``).
        files: the quantised network that `card` speaks of, where none is to be made.
    """
    from bpr_service.network import candidates, int8
    from bpr_service.network.weights import save_model
    from refiner_training.config import PatchData
    from refiner_training.run.streams import VALIDATION_SEED, open_data

    own = calibrate in (None, RECIPE_DATA)
    data = config.data if own else PatchData(patches=Path(str(calibrate)))
    training: Any = open_data(data, config, seed=config.run.seed, augment=False)
    source = "the training data" if own else Path(str(calibrate)).name
    first = int8.CALIBRATION if calibrate or files else 0
    if config.validation is not None:
        validation: Any = open_data(config.validation, config, seed=config.run.seed + VALIDATION_SEED, augment=False)
        crops, what = _patches(validation, 0, MEASURED), f"{MEASURED} patches of the validation data"
    else:
        # A small patch set begins again, so that some patches are those of the ranges.
        other = first and (not isinstance(data, PatchData) or len(training.patches) >= first + MEASURED)
        crops, what = _patches(training, first, MEASURED), f"{MEASURED} {'other ' if other else ''}patches of {source}"
    calibration = card.int8.calibration if card.int8 else ""
    if calibrate:
        calibration = f"{int8.CALIBRATION} patches of {source}"
        files = int8.quantised_files(network, config.patch.network_size_px, _patches(training, 0, first))
    runtime = candidates.measure(network, crops, files, patches=what)
    save_model(out, network, card.with_options(runtime=runtime.model_dump()), files, calibration)


def _patches(stream: Any, first: int, count: int) -> NDArray[np.uint8]:
    """(count, S, S, 4) uint8: the patches of a stream of batches from the ``first``-th on."""
    index, skip = divmod(first, stream.batch(0)[0].shape[0])
    found: list[NDArray[np.uint8]] = []
    while sum(map(len, found)) < skip + count:
        found.append(stream.batch(index)[0].numpy())
        index += 1
    return np.concatenate(found)[skip : skip + count]


def scales_of(config: TrainConfig) -> tuple[float, float]:
    """The scales of patches that a configuration trains at: enlarged twice, a patch holds half as many px a side."""
    data: SimulatedData | PatchData = config.data
    if data.kind == "patches" or data.scale_share == 0:
        return 1.0, 1.0
    least, most = data.scales
    return 1 / most, 1 / least


def data_of(config: TrainConfig) -> list[dict[str, Any]]:
    """What a configuration trains on, source by source, with the terms that its store or its notes give."""
    data: SimulatedData | PatchData = config.data
    if data.kind == "patches":
        manifest = _manifest(data.patches)
        kept = ("reader", "images", "patches", "pairs", "images_skipped", "terms")
        return [{"patches": str(data.patches), **{k: manifest[k] for k in kept if k in manifest}}]
    manifest = _manifest(data.scenes)
    terms = manifest.get("terms", {})
    sources = data.used(config.notes)
    total = sum(sources.values())
    return [
        {
            "source": source,
            "share": round(share / total, 4),
            "images": manifest.get("sources", {}).get(source, 0),
            "terms": terms.get(source) or config.notes.get(f"terms.{source}", "not recorded"),
            "coarse_masks": "simulated from the ground truth",
        }
        for source, share in sources.items()
    ]


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    return found
