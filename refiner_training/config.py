"""Settings of a training run: one YAML file, validated before any long work begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, Field, model_validator

from bpr_service.config import Settings, build, with_parts
from bpr_service.errors import ConfigError, FormatError
from bpr_service.recipe import NetworkRecipe, Recipe
from refiner_training.data.simulate import ALL_KINDS, DEFAULT_MIX

_S = TypeVar("_S", bound=BaseModel)


UNSTATED = "none stated"
"""How the note on a source's terms begins where its authors state none."""


class NetworkConfig(NetworkRecipe):
    """The network of a recipe, and what its weights start from."""

    start_from: Path | None = None
    """A model version to take the weights from, for fine-tuning."""
    encoder_weights: Path | None = None
    """A file of its encoder's weights alone, as timm, torchvision or `efficientnet-lite-pytorch` has them."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.start_from is not None and self.encoder_weights is not None:
            raise ValueError("start_from holds the encoder's weights too; leave it or encoder_weights out")
        return self


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


class TrainConfig(Recipe):
    """One training run: a recipe, and what it trains on."""

    name: str
    network: NetworkConfig = NetworkConfig()
    data: SimulatedData | PatchData = Field(discriminator="kind")
    validation: SimulatedData | PatchData | None = Field(default=None, discriminator="kind")
    notes: dict[str, str] = Field(default_factory=dict)
    """Free text for the model card: data and its terms, what the model is for."""


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """A refiner's configuration from a YAML file; see `read_settings`."""
    return read_settings(TrainConfig, path, overrides)


def read_settings(kind: type[_S], path: Path, overrides: Mapping[str, Any] | None = None) -> _S:
    """Read and check a YAML file; paths in it are relative to the working directory.

    ``base: OTHER.yaml`` in it names a file beside it, whose values hold where this one has none.

    Args:
        kind: the settings that it holds.
        path: the file.
        overrides: dotted names and values, as ``{"run.steps": 100}``.

    Raises:
        FormatError: no file, or no YAML.
        ConfigError, UnknownName: a name that does not exist, or a value of the wrong type.
    """
    return build(kind, with_parts(_values(path), overrides or {}))


def _values(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a YAML file says, over what its ``base`` says."""
    if not path.is_file():
        raise FormatError(str(path), expected="a YAML file", got="none", fix="check the path")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        got = " ".join(str(error).split())
        raise FormatError(str(path), expected="YAML", got=got, fix="mend the file") from None
    if not isinstance(values, dict):
        fix = "see refiner_training/configs"
        raise ConfigError(str(path), expected="keys and values", got=type(values).__name__, fix=fix)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str) or path.resolve() in above:
        got = repr(base) if not isinstance(base, str) else "a circle"
        raise ConfigError(f"{path}: base", expected="the name of another file", got=got, fix="name a complete one")
    return _over(_values(path.parent / base, (*above, path.resolve())), values)


def _over(below: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested ``values`` laid over those ``below``; a list takes the place of a list."""
    result = dict(below)
    for name, value in values.items():
        under = below.get(name)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = _over(under, value)
        result[name] = value
    return result
