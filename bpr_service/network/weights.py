"""Model versions: a folder with ``model.safetensors`` and ``card.json``, checked when it is loaded.

Nothing is ever unpickled: weights are safetensors, the card is JSON. A version may also hold the network quantised to
int8, as OpenVINO writes it: ``int8.xml`` and ``int8.bin``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from bpr_service.config import PatchConfig, Precision, Runner, Settings
from bpr_service.errors import BprError, ConfigError, ModelError, UnknownName
from bpr_service.network.devices import torch_for

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS_FILE, CARD_FILE = "model.safetensors", "card.json"
INT8_FILES = ("int8.xml", "int8.bin")
MODELS = Path(__file__).resolve().parent.parent / "models"
"""The models that come with the package, a folder each."""


class NetworkCard(Settings):
    """A network of :mod:`bpr_service.network.registry` and the arguments it is built with."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Candidate(Settings):
    """A way to run the network, and how it did."""

    backend: Runner
    precision: Precision
    patches_per_s: float | None = None
    pixels_equal: float | None = None
    """Share of pixels whose logit has the sign that eager float32 gives it."""
    missing: str = ""  # why there are no figures: what is not installed, or what went wrong


class Chosen(Settings):
    """The quickest candidate of those that change almost no pixel."""

    backend: Runner
    precision: Precision


class RuntimeCard(Settings):
    """What runs the network best on a processor, measured by :mod:`bpr_service.network.candidates` at export."""

    processor: str
    threads: int
    patches: str
    """What the pixels were compared on."""
    candidates: list[Candidate]
    chosen: Chosen


class Int8Card(Settings):
    """The quantised network of a version."""

    calibration: str  # what the ranges were measured on
    sha256: dict[str, str] = Field(default_factory=dict)
    """Of each of `INT8_FILES`; written by `save_model`."""


class EstimateCard(Settings):
    """The perceptron that estimates what a refinement is worth (:mod:`bpr_service.refine.estimate`).

    Letters: F features, K hidden units.
    """

    features: list[str]
    mean: list[float]
    scale: list[float]
    hidden: list[list[float]]
    """(F + 1, K); the last row is the bias."""
    out: list[list[float]]
    """(K + 1, 4); the last row is the bias."""
    least_gain: float = Field(ge=-1.0, le=1.0)
    """Least expected gain of a mask's change for it to be taken."""
    fitted_on: str = ""
    """The masks it was fitted on, and the command."""


class AuditCard(Settings):
    """The perceptron that says whether a mask is wrong, its layout told in :mod:`bpr_service.audit.suspicion`."""

    inputs: list[str]
    kinds: list[str]
    mean: list[float]
    scale: list[float]
    hidden: list[list[float]]
    out: list[list[float]]
    fitted_on: str = ""


class ModelCard(Settings):
    """What a model version is, where it comes from and how good it is."""

    name: str
    version: str
    network: NetworkCard
    patch: PatchConfig
    """The patches it was trained on; a Refiner uses them unless told otherwise."""
    scales: tuple[float, float] = (1.0, 1.0)
    """Least and greatest scale it was trained at: image pixels of a patch over those of `patch`."""
    outputs: Literal[1, 2] = 1
    """Maps the network gives: the foreground logit, and an auxiliary map where there are two."""
    gate: float = Field(default=0.0, ge=0.0, le=1.0)
    """Least mean certainty of a mask's changes for them to be taken (:mod:`bpr_service.refine.assess`)."""
    estimate: EstimateCard | None = None
    """What a refinement is worth, and whether it is taken; without it, `gate` decides."""
    audit: AuditCard | None = None
    normalisation: dict[str, list[float]] = Field(default_factory=dict)
    """``mean`` and ``std`` of RGB; must be those of :mod:`bpr_service.network.normalise`."""
    data: list[dict[str, Any]] = Field(default_factory=list)
    """What it was trained on, with the terms of each source."""
    recipe: dict[str, Any] = Field(default_factory=dict)
    figures: dict[str, Any] = Field(default_factory=dict)
    """What was measured, with the command that measures it."""
    license: str = ""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """Of the weights file; written by `save_model`."""
    runtime: RuntimeCard | None = None
    """What ``backend="auto"`` goes by; None where nothing was measured."""
    int8: Int8Card | None = None
    """None where the version holds no quantised network."""


class Int8Files(NamedTuple):
    """A quantised network as OpenVINO writes it: the contents of `INT8_FILES`."""

    xml: bytes
    bin: bytes


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A network in evaluation mode, on the CPU, its card, and the folder both were read from."""

    network: nn.Module
    card: ModelCard
    folder: Path


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.parent.name for p in MODELS.glob(f"*/{CARD_FILE}"))


def find_model(path_or_name: str | Path) -> Path:
    """The folder of a model version: a path, or the name of a bundled model; :class:`UnknownName` lists these."""
    path = Path(path_or_name)
    if path.is_dir():
        return path
    if str(path_or_name) in bundled_models():
        return MODELS / str(path_or_name)
    raise UnknownName("model", str(path_or_name), bundled_models() or ["(none is bundled: pass a folder)"])


def read_card(folder: Path) -> ModelCard:
    """The card of a model version; :class:`ModelError` when it is missing or damaged."""
    try:
        return ModelCard.model_validate_json((folder / CARD_FILE).read_bytes())
    except OSError as cause:
        raise ModelError(
            f"{folder} is not a model version",
            expected=f"{CARD_FILE} and {WEIGHTS_FILE}",
            got=f"no {CARD_FILE} ({cause.strerror})",
            fix="export the model again",
        ) from None
    except ValidationError as cause:
        first = cause.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        raise ModelError(
            f"{folder / CARD_FILE} is damaged",
            expected="a model card",
            got=f"{place}: {first['msg']}",
            fix="export the model again",
        ) from None


def load_model(path_or_name: str | Path) -> LoadedModel:
    """Load a model version, checked: SHA-256 of each file, then every tensor's name and shape.

    Raises:
        UnknownName: neither a folder nor a bundled model.
        ModelError: the card or the weights are missing, damaged, changed, or of another network.
        ConfigError: torch is not installed.
    """
    folder = find_model(path_or_name)
    card = read_card(folder)
    check_files(folder, card)
    return LoadedModel(load_network(folder, card), card, folder)


def check_files(folder: Path, card: ModelCard) -> None:
    """Raise ModelError where a file of a version has not the SHA-256 of its card, or wants other inputs."""
    _check_normalisation(folder, card)
    _read(folder, WEIGHTS_FILE, card.sha256, "weights")
    if card.int8 is not None:
        read_int8(folder, card)


def load_network(folder: Path, card: ModelCard) -> nn.Module:
    """The network of a version in torch, in evaluation mode, on the CPU. Raises as `load_model`."""
    torch_for(f"the network of {card.name}@{card.version}")
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state = load(_read(folder, WEIGHTS_FILE, card.sha256, "weights"))
    except SafetensorError as cause:
        raise ModelError(
            f"{folder / WEIGHTS_FILE}", expected="safetensors", got=str(cause), fix="export the model again"
        ) from None
    return _fill(folder, card, state)


def read_int8(folder: Path | None, card: ModelCard) -> Int8Files:
    """The quantised network of a version, checked against its card.

    Raises:
        ConfigError: the version has none, or it was not read from a folder (None).
        ModelError: a file is missing or was changed.
    """
    if folder is None or card.int8 is None:
        raise ConfigError(
            "precision int8",
            expected="a model that holds a quantised network",
            got=f"{card.name}@{card.version}, which has none",
            fix="make one with bpr-train export --calibrate, or take fp32 or bf16",
        )
    known = card.int8.sha256
    return Int8Files(*(_read(folder, name, known.get(name, ""), "quantised network") for name in INT8_FILES))


def _read(folder: Path, name: str, sha256: str, what: str) -> bytes:
    """A file of a version with the SHA-256 that the card gives it, else :class:`ModelError`."""
    try:
        data = (folder / name).read_bytes()
    except OSError as cause:
        raise ModelError(
            f"{folder} has no {what}", expected=name, got=str(cause.strerror), fix="fetch or export the model again"
        ) from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise ModelError(
            f"{folder / name} is not the file its card speaks of",
            expected=f"SHA-256 {sha256 or '(the card has none)'}",
            got=digest,
            fix="fetch or export the model again",
        )
    return data


def _fill(folder: Path, card: ModelCard, state: Mapping[str, Tensor]) -> nn.Module:
    """The card's network with `state` in it; :class:`ModelError` names what does not fit."""
    from bpr_service.network.registry import build_network

    arguments = {**card.network.arguments, "outputs": card.outputs}
    try:
        network = build_network(card.network.name, **arguments)
    except BprError as cause:
        raise ModelError(f"{folder / CARD_FILE} names a network that cannot be built: {cause}") from None
    wanted = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in state.items()}
    wrong = sorted(n for n in wanted.keys() | given.keys() if wanted.get(n) != given.get(n))
    if wrong:
        name = wrong[0]
        raise ModelError(
            f"{folder / WEIGHTS_FILE} does not fit network {card.network.name} ({len(wrong)} tensors)",
            expected=f"{name} {wanted.get(name, 'absent')}",
            got=f"{given.get(name, 'none')}",
            fix="check the card's network and arguments",
        )
    network.load_state_dict(dict(state))
    return network.eval()


def _check_normalisation(folder: Path, card: ModelCard) -> None:
    from bpr_service.network.normalise import IMAGE_MEAN, IMAGE_STD

    used = {"mean": list(IMAGE_MEAN), "std": list(IMAGE_STD)}
    if card.normalisation and card.normalisation != used:
        raise ModelError(
            f"{folder / CARD_FILE}: another normalisation",
            expected=str(used),
            got=str(card.normalisation),
            fix="train the model with this package's normalisation",
        )


def save_model(
    folder: str | Path, network: nn.Module, card: ModelCard, int8: Int8Files | None = None, calibration: str = ""
) -> ModelCard:
    """Write a model version: its files, then the card with their SHA-256. Returns that card.

    Each file is whole or not there; the card comes last, so a folder with a card has its weights. A tensor whose
    values all are half-precision numbers is stored as such: what is loaded is the same. `int8` is the
    quantised network and `calibration` what its ranges were measured on; without one, none is left in the folder.
    """
    from safetensors.torch import save

    from bpr_service import storage
    from bpr_service.network.normalise import IMAGE_MEAN, IMAGE_STD

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    state = {name: _stored(t.detach().cpu().contiguous()) for name, t in network.state_dict().items()}
    data = save(state)
    full = card.with_options(
        sha256=hashlib.sha256(data).hexdigest(),
        normalisation={"mean": list(IMAGE_MEAN), "std": list(IMAGE_STD)},
        int8=None,
    )
    storage.write_bytes(target / WEIGHTS_FILE, data)
    for name in INT8_FILES:
        (target / name).unlink(missing_ok=True)
    if int8 is not None:
        digests = {name: hashlib.sha256(part).hexdigest() for name, part in zip(INT8_FILES, int8, strict=True)}
        full = full.with_options(int8={"calibration": calibration, "sha256": digests})
        for name, part in zip(INT8_FILES, int8, strict=True):
            storage.write_bytes(target / name, part)
    text = json.dumps(full.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    storage.write_bytes(target / CARD_FILE, text.encode())
    return full


def _stored(values: Tensor) -> Tensor:
    """A tensor in half precision where that changes none of its values, else as it is."""
    import torch

    if values.dtype != torch.float32:
        return values
    halves = values.half()
    return halves if torch.equal(halves.float(), values) else values
