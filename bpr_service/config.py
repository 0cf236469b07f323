"""Settings of the refiner: frozen, validated when built, no torch.

Patch terms follow the paper (Tang et al., CVPR 2021, section 3.2; Hu et al., IJCV 2022, Tables 3 to 7).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from bpr_service.errors import ConfigError, UnknownName

Scheme = Literal["dense", "sparse", "grid", "instance"]
Window = Literal["hann", "flat"]
Average = Literal["probability", "logit"]
Runner = Literal["eager", "compile", "onnxruntime", "openvino", "graphs"]
"""What can run a network."""
Backend = Literal[Runner, "auto"]
"""A runner, or whichever is quickest here: see `bpr_service.network.choice`."""
Precision = Literal["fp32", "bf16", "int8"]
"""What a network can be computed in."""
AnyPrecision = Literal[Precision, "auto"]
"""A precision, or the one that goes with the backend: see `bpr_service.network.choice`."""

MAX_PIXELS = 1 << 27
"""Pixels of an image or mask that are accepted unless a caller says otherwise (11,585 x 11,585)."""


class Settings(BaseModel):
    """Base of every settings class: frozen, and a field that is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def with_options(self, **options: Any) -> Self:
        """A copy with `options` changed, validated as a whole; :class:`ConfigError` names the field at fault."""
        return build(type(self), {**self.model_dump(), **options})


_S = TypeVar("_S", bound=BaseModel)


def build(kind: type[_S], values: Mapping[str, Any]) -> _S:
    """``kind(**values)``, with pydantic's complaint turned into one :class:`ConfigError`."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or kind.__name__
        if first["type"] == "extra_forbidden":
            raise UnknownName("setting", name, _fields_at(kind, first["loc"][:-1])) from None
        raise ConfigError(
            f"setting {name}",
            expected=first["msg"][:1].lower() + first["msg"][1:],
            got=repr(first["input"])[:80],
            fix=f"see the fields of {kind.__name__}",
        ) from None


def _fields_at(kind: type[BaseModel], parents: Iterable[Any]) -> set[str]:
    """Names of the settings that `kind` has below `parents`."""
    for part in parents:
        inner = kind.model_fields[part].annotation if part in kind.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        kind = inner
    return {*kind.model_fields, *(PatchConfig.model_fields if kind is RefineConfig else ())}


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """``["run.steps=100", "nms_threshold=0.55"]`` -> a dict of names and values: what every ``--set`` takes.

    Values are JSON or YAML, as in a recipe.

    Raises:
        ConfigError: an entry without a name or "=", or a value that neither can read.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            fix = "for example --set nms_threshold=0.55"
            raise ConfigError("--set", expected="NAME=VALUE", got=repr(pair), fix=fix)
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = _from_yaml(name, text)
    return values


def _from_yaml(name: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        got = " ".join(str(error).split())
        raise ConfigError(f"--set {name}", expected="a value in YAML", got=got, fix="quote it") from None


def with_parts(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested `values` with dotted names replaced: ``{"run.steps": 100}`` sets ``values["run"]["steps"]``.

    Raises:
        ConfigError: a dotted name goes through a value that has no parts.
    """
    result = dict(values)
    for dotted, value in overrides.items():
        name, _, rest = dotted.partition(".")
        inner = result.get(name) if rest else None
        if inner is not None and not isinstance(inner, Mapping):
            fix = f"{name} is a value: set it as a whole"
            raise ConfigError(f"--set {dotted}", expected="a setting with parts", got=repr(inner), fix=fix)
        result[name] = with_parts(inner or {}, {rest: value}) if rest else value
    return result


class PatchConfig(Settings):
    """Where patches lie and how large they are.

    ``patch_size_px`` is the square that is pasted back; ``padding_px`` is context around it that the network
    sees and that is never pasted; both are in image pixels. The square with its padding is resized to
    ``network_size_px``.
    """

    patch_size_px: int = Field(default=64, ge=8, le=1024)
    padding_px: int = Field(default=16, ge=0, le=512)
    network_size_px: int = Field(default=96, ge=16, le=1024)
    nms_threshold: float = Field(default=0.25, ge=0.0, lt=1.0)
    scheme: Scheme = "dense"
    cover: bool = True
    """Add patches until every boundary pixel lies in one (below an NMS threshold of 1/3 some would lie in
    none).
    """

    @property
    def crop_size_px(self) -> int:
        """Side of the square that is cut out of the image: the patch and its padding."""
        return self.patch_size_px + 2 * self.padding_px

    def at(self, scale: float) -> PatchConfig:
        """Patches `scale` times as large in the image, their padding too; what the network sees stays as large.

        Raises:
            ConfigError: a size out of bounds.
        """
        size = round(self.patch_size_px * scale)
        return self.with_options(patch_size_px=size, padding_px=self.padding_of(size))

    def padding_of(self, size_px: int) -> int:
        """Padding, px, of a patch of `size_px`: its share of the crop is the same at every scale.

        A box of scheme ``instance`` is of any size, and its padding of one.
        """
        if self.scheme == "instance":
            return self.padding_px
        return round(self.padding_px * size_px / self.patch_size_px)


class RefineConfig(Settings):
    """Everything :class:`bpr_service.Refiner` can be told."""

    patch: PatchConfig = PatchConfig()
    window: Window = "hann"
    """How much a pixel of a patch counts in the average: less near the patch's edge ("hann"), or all the
    same.
    """
    average: Average = "probability"
    """What is averaged where patches overlap."""
    flip: bool = False
    """Also refine each patch mirrored and average the two (about twice the time)."""
    batch_size: int = Field(default=32, ge=1, le=4096)
    backend: Backend = "auto"
    """What runs the network (`bpr_service.network.backends`); ``auto`` takes the quickest that is installed, by the
    figures in the model's card. The answer names what ran.
    """
    precision: AnyPrecision = "auto"
    """What the network computes in; ``int8`` needs backend openvino and a model that was exported with it. ``auto`` is
    float32 where a backend is named; where none is, int8 or bf16 too, if they leave 99.9 % of pixels as they are.
    """
    scale: PositiveFloat | Literal["auto"] = "auto"
    """Image pixels of a patch over those of ``patch``; the model's card says at which scales it was trained. ``auto``
    is 1, and more where a picture was enlarged (`bpr_service.refine.scale`).
    """
    tries: tuple[PositiveFloat, ...] = Field(default=(1.0,), min_length=1, max_length=4)
    """Refine each instance at each of these times its scale, as far as the model was trained for them, and keep the
    result that the model's estimate expects the best boundary of.
    """
    specks_px: int = Field(default=64, ge=0)
    """Islands and holes of an instance that are smaller than this, and that the coarse mask had not, are taken back."""
    gate: bool = True
    """Do no harm: keep the coarse mask where the model itself expects no gain."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _lift(cls, values: Any) -> Any:
        """Accept the fields of `PatchConfig` beside the others: ``RefineConfig(nms_threshold=0.55)``."""
        if not isinstance(values, Mapping):
            return values
        own = {k: v for k, v in values.items() if k not in PatchConfig.model_fields}
        lifted = {k: v for k, v in values.items() if k in PatchConfig.model_fields}
        if lifted:
            patch = own.get("patch", {})
            base = patch.model_dump() if isinstance(patch, PatchConfig) else dict(patch)
            own["patch"] = {**base, **lifted}
        return own


class Preset(NamedTuple):
    """A named point on the line from fast to best."""

    name: str
    model: str
    options: dict[str, Any]
    """What differs from the `PatchConfig` of the model's card."""
    whole_crop: bool = False
    """Paste the crop with its padding: larger squares, so fewer, at the same cost each."""
    tries: tuple[float, ...] = (1.0,)
    """See `RefineConfig`."""

    def patch(self, card: PatchConfig) -> PatchConfig:
        """The patches of this preset for a model whose card says `card`."""
        whole = {"patch_size_px": card.crop_size_px, "padding_px": 0} if self.whole_crop else {}
        return card.with_options(**whole, **self.options)


PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        Preset("fast", "fast", {"nms_threshold": 0.15}),
        Preset("lean", "balanced", {"scheme": "sparse"}, whole_crop=True),
        Preset("balanced", "balanced", {"nms_threshold": 0.25}),
        Preset("best", "balanced", {"nms_threshold": 0.25}, tries=(1.0, 0.5)),
    )
}


def get_preset(name: str) -> Preset:
    """The preset called `name`; :class:`UnknownName` lists the known ones."""
    if name not in PRESETS:
        raise UnknownName("preset", name, PRESETS)
    return PRESETS[name]
