"""Settings of a training run: one YAML file, validated before any long work begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, model_validator

from bpr_service.config import PatchConfig, Settings, build
from bpr_service.errors import ConfigError, FormatError
from refiner_training.data.simulate import ALL_KINDS, DEFAULT_MIX

Precision = Annotated[Literal["32", "bf16", "16"], BeforeValidator(lambda value: str(value))]
"""32 is a number in YAML, bf16 is text; both are taken."""


UNSTATED = "none stated"
"""How the note on a source's terms begins where its authors state none."""


class NetworkConfig(Settings):
    """A refinement network of ``bpr_service.network.registry`` and its arguments."""

    name: str = "light_unet_s"
    arguments: dict[str, Any] = Field(default_factory=dict)
    start_from: Path | None = None
    """A model version to take the weights from, for fine-tuning."""


class SimulatedData(Settings):
    """Patches cut on the fly from a scene store, their coarse masks simulated from the ground truth, or real ones."""

    kind: Literal["simulated"] = "simulated"
    scenes: Path
    sources: dict[str, float]
    """Share of each source of the store."""
    leave_out: tuple[str, ...] = ()
    """Sources that are not trained on after all, to measure on what was never seen."""
    stated_terms_only: bool = False
    """Leave out the sources whose terms, in the recipe's notes, are "none stated"."""
    mix: dict[str, float] = Field(default_factory=lambda: dict(DEFAULT_MIX))
    """Share of each kind of coarse-mask error."""
    source_mix: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Another mix for the masks of one source: label maps come from other models than instances do."""
    soft_share: float = Field(default=0.25, ge=0, le=1)
    """Share of masks given to the network as probabilities."""
    scale_share: float = Field(default=0.5, ge=0, le=1)
    """Share of masks whose patches are cut at another scale than 1."""
    scales: tuple[float, float] = (0.25, 4.0)
    """Least and greatest zoom of those: network px a picture px."""
    real_share: float = Field(default=0.7, ge=0, le=1)
    """Share of the masks that have a real network's mask for which it is taken."""
    small_exact: float = Field(default=0.0, ge=0, le=1)
    """Share of the masks under 32 x 32 px that are right already."""
    fuzz_px: dict[str, float] = Field(default_factory=dict)
    """Of sources whose annotated edge is a judgement: what is right within so many px is right."""
    appearance_share: float = Field(default=0.0, ge=0, le=1)
    """Share of masks whose picture is made grey, inverted, of other colours, flat, blurred or noisy."""
    plain_share: float = Field(default=0.0, ge=0, le=1)
    """Share of masks whose background is made plain."""
    blank_share: float = Field(default=0.0, ge=0, le=1)
    """Share of masks whose picture shows nothing, and which are to stay as they are."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name, mix in {"mix": self.mix, **{f"source_mix.{s}": m for s, m in self.source_mix.items()}}.items():
            unknown = sorted(set(mix) - set(ALL_KINDS))
            if unknown:
                raise ValueError(f"{name} holds {unknown[0]!r}; the known kinds are {', '.join(sorted(ALL_KINDS))}")
        for name in ("source_mix", "leave_out", "fuzz_px"):
            strange = sorted(set(getattr(self, name)) - set(self.sources))
            if strange:
                raise ValueError(f"{name} names {strange[0]!r}; the sources are {', '.join(sorted(self.sources))}")
        if not 0 < self.scales[0] <= 1 <= self.scales[1]:
            raise ValueError(f"scales are {self.scales}; the least is above 0 and up to 1, the greatest 1 or more")
        return self

    def used(self, notes: dict[str, str]) -> dict[str, float]:
        """The sources that are drawn from, with their shares; `notes` hold the terms (``terms.NAME``).

        Raises:
            ConfigError: none is left.
        """
        unstated = {n for n in self.sources if notes.get(f"terms.{n}", UNSTATED).startswith(UNSTATED)}
        out = {*self.leave_out, *(unstated if self.stated_terms_only else ())}
        left = {name: share for name, share in self.sources.items() if name not in out and share > 0}
        if not left:
            raise ConfigError(
                "data.sources",
                expected="a source to train on",
                got=f"{', '.join(sorted(self.sources)) or 'none'}, all left out",
                fix="leave fewer out with data.leave_out and data.stated_terms_only, or write down the terms",
            )
        return left


class PatchData(Settings):
    """Patches of a patch set built by ``bpr-train patches``."""

    kind: Literal["patches"] = "patches"
    patches: Path


class OptimConfig(Settings):
    """Optimiser and schedule. The paper: SGD 0.01, momentum 0.9, weight decay 5e-4, poly 0.9 (section 4.1)."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.02, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    poly_power: float = 0.9
    warmup_steps: int = Field(default=200, ge=0)
    gradient_clip: float = Field(default=1.0, ge=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Weight averaging; 0 turns it off."""


class LossConfig(Settings):
    """Binary cross-entropy, heavier in the boundary band."""

    band_px: int = Field(default=5, ge=0)
    band_weight: float = Field(default=4.0, ge=0)
    """What a pixel within ``band_px`` of the true or the coarse boundary weighs above one far from both."""
    padding_weight: float = Field(default=0.25, ge=0)
    """What a pixel of the context weighs, which is never pasted back."""
    confidence_weight: float = Field(default=0.25, ge=0)
    """What the second output's loss weighs beside the first's: the log-odds that the decision of a pixel is wrong."""


class RunConfig(Settings):
    """How the run is done."""

    steps: int = Field(default=10_000, ge=1)
    batch_size: int = Field(default=64, ge=1)
    """Patches a process and step."""
    precision: Precision = "bf16"
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = Field(default=1, ge=1)
    """Processes of one machine; more than one are started by torchrun."""
    nodes: int = Field(default=1, ge=1)
    sync_batchnorm: bool = True
    workers: int = Field(default=1, ge=0)
    threads: int = Field(default=0, ge=0)
    """Processor threads of one process; 0 leaves torch's own choice."""
    seed: int = 0
    checkpoint_every: int = Field(default=500, ge=1)
    validate_every: int = Field(default=1000, ge=1)
    validation_batches: int = Field(default=20, ge=0)
    patience: int = Field(default=0, ge=0)
    """Validations without gain after which the run stops; 0 never stops early."""


class TrainConfig(Settings):
    """One training run."""

    name: str
    network: NetworkConfig = NetworkConfig()
    patch: PatchConfig = PatchConfig()
    data: SimulatedData | PatchData = Field(discriminator="kind")
    validation: SimulatedData | PatchData | None = Field(default=None, discriminator="kind")
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    run: RunConfig = RunConfig()
    notes: dict[str, str] = Field(default_factory=dict)
    """Free text for the model card: data and its terms, what the model is for."""


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """``["run.steps=100"]`` -> ``{"run.steps": 100}``: what ``--set`` takes. Values are YAML.

    Raises:
        ConfigError: an entry without a key or "=".
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise ConfigError("--set", expected="KEY=VALUE", got=repr(pair), fix="for example --set run.steps=100")
        values[key] = yaml.safe_load(text)
    return values


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read and check a YAML file; paths in it are relative to the working directory.

    Args:
        overrides: dotted keys and values, as ``{"run.steps": 100}``.

    Raises:
        FormatError: no file, or no YAML.
        ConfigError, UnknownName: a key that does not exist, or a value of the wrong type.
    """
    if not path.is_file():
        raise FormatError(str(path), expected="a YAML file", got="none", fix="check the path")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise FormatError(str(path), expected="YAML", got=str(error).replace("\n", " "), fix="mend the file") from None
    if not isinstance(values, dict):
        raise ConfigError(str(path), expected="keys and values", got=type(values).__name__, fix="see configs/")
    for dotted, value in (overrides or {}).items():
        place = values
        *parents, last = dotted.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(
                    f"--set {dotted}", expected="a setting with parts", got=repr(place), fix=f"{parent} is a value"
                )
        place[last] = value
    return build(TrainConfig, values)
