"""What a job is asked to do: frozen, validated when built, JSON-ready. Nothing heavy is imported."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from bpr_service.config import RefineConfig, Settings, build
from bpr_service.errors import ConfigError
from bpr_service.formats.options import FileOptions
from bpr_service.recipe import Recipe

Kind = Literal["refine", "audit", "train"]


class RefineRequest(FileOptions):
    """Refine a prediction file. Paths are local, fsspec addresses, or (in a job) ``ROOT:relative/path``."""

    kind: Literal["refine", "audit"] = "refine"
    task: Literal["instance", "semantic", "panoptic"]
    images: str
    predictions: str
    out: str
    format: str | None = None
    dataset: str | None = None
    panoptic_dir: str | None = None
    soft: str | None = None
    """Instances: a folder of the probabilities that the masks were cut from, one file a mask."""
    ignore_label: int | None = None
    """Semantic: the label that is never rewritten; None takes the format's own."""
    preset: str = "balanced"
    model: str | None = None
    """A folder, a bundled model, or NAME@... of the model store; None takes the preset's."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Fields of `RefineConfig` or `PatchConfig` that differ from the preset's."""
    result: Literal["file", "jsonl", "parquet"] = "file"
    """What ``out`` becomes: the file or folder of the format; or a folder of parts, for formats with JSON records."""
    part_images: int = Field(default=16, ge=1, le=10_000)
    """Images of the smallest part that one worker takes at a time; long files have larger parts."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Where the run writes."""
        return (self.out,)

    @property
    def files(self) -> FileOptions:
        """How the file is read and written."""
        return FileOptions(**self.model_dump(include=set(FileOptions.model_fields)))

    @field_validator("settings")
    @classmethod
    def _known(cls, settings: dict[str, Any]) -> dict[str, Any]:
        build(RefineConfig, settings)
        return settings


class AuditRequest(RefineRequest):
    """Find the wrong masks of an annotation file, which ``predictions`` names; ``out`` is the report, one JSON file."""

    kind: Literal["audit"] = "audit"
    result: Literal["file"] = "file"
    page_out: str | None = None
    """Write the page that shows the worst masks here: one HTML file. A job keeps one in its folder in any case."""
    page_masks: int = Field(default=1000, ge=1, le=20_000)
    """Masks of the page."""
    sample: int = Field(default=0, ge=0, le=100_000)
    """Masks that are drawn for a person to look at, so that the share of wrong masks can be estimated."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Where the run writes."""
        return (self.out,) if self.page_out is None else (self.out, self.page_out)


class HeldOut(Settings):
    """Data that is never trained on: the new model and the active one are measured on it."""

    images: str
    ground_truth: str
    predictions: str
    format: str | None = None
    panoptic_dir: str | None = None
    """Panoptic: the PNGs of ``predictions``."""
    classes: int | None = Field(default=None, ge=1)
    """Semantic: labels are 0 to ``classes - 1``."""


class _Asked(Settings):
    """What a request says of its recipe; errors then name ``recipe.run.steps``, as the request does."""

    recipe: Recipe


class TrainRequest(Settings):
    """Retrain a refinement model.

    ``data`` is what ``bpr-train patches`` takes, ``recipe`` what ``bpr-train refiner`` takes; keys that these do not
    know are refused before any work begins.
    """

    kind: Literal["train"] = "train"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """The model's name in the store."""
    task: Literal["instance", "semantic", "panoptic"] = "instance"
    images: str
    ground_truth: str
    predictions: str | None = None
    """Coarse predictions of the training images; None simulates them from the ground truth."""
    panoptic_dir: str | None = None
    """Panoptic: the PNGs of ``predictions``; those of a ground truth lie beside its JSON, in the folder of its name."""
    held_out: HeldOut | None = None
    preset: str = "balanced"
    """Gives the recipe where ``recipe`` is None, and the settings with which models are compared."""
    recipe: dict[str, Any] | None = None
    parent: str | None = None
    """Start from this version (NAME@...); None starts from the active one, where there is one."""
    promote_if_better: bool = False
    """Make it the active version when its figure on the held-out data is better."""
    time_limit_s: float = Field(default=86_400.0, gt=0)
    disk_limit_mb: float = Field(default=20_000.0, gt=0)

    def checked_recipe(self) -> Recipe:
        """The recipe as the trainer will read it. Raises ``ConfigError``, or ``UnknownName`` for unknown keys."""
        return build(_Asked, {"recipe": self.recipe or {}}).recipe


_KINDS: dict[str, type[RefineRequest] | type[TrainRequest]] = {
    "refine": RefineRequest,
    "audit": AuditRequest,
    "train": TrainRequest,
}


def parse_request(values: Mapping[str, Any]) -> RefineRequest | TrainRequest:
    """A request from a mapping. Raises ``ConfigError``, or ``UnknownName`` for keys that do not exist."""
    _check_plain(values)
    kind = values.get("kind")
    if kind not in _KINDS:
        raise ConfigError("kind of a job", expected="refine, audit or train", got=repr(kind), fix="set kind")
    return build(_KINDS[str(kind)], values)


MAX_DEPTH, MAX_NUMBER = 32, 1 << 53
"""How deep a request may be nested, and the largest number in it: what every reader of JSON takes."""


def _check_plain(values: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` for what cannot be kept: depths, numbers and texts that no file or database takes."""
    waiting: list[tuple[Any, int]] = [(values, 0)]
    for value, depth in waiting:
        wrong = ""
        if isinstance(value, Mapping | list | tuple):
            inner = [*value, *value.values()] if isinstance(value, Mapping) else value
            waiting += [(each, depth + 1) for each in inner]
            wrong = "more levels" if depth >= MAX_DEPTH else ""
        elif isinstance(value, str):
            wrong = "a text with a NUL or half a surrogate pair" if re.search("[\0\ud800-\udfff]", value) else ""
        elif isinstance(value, int | float):
            wrong = "" if abs(value) <= MAX_NUMBER else "a larger number, or none"
        if wrong:
            expected = f"text, and numbers up to {MAX_NUMBER}, at most {MAX_DEPTH} levels deep"
            raise ConfigError("the request of a job", expected=expected, got=wrong, fix="leave it out")


def canonical(request: RefineRequest | TrainRequest) -> str:
    """The request as JSON, the same text for the same request."""
    return json.dumps(request.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)


def digest(*parts: Any) -> str:
    """Hex SHA-256 of JSON-ready values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
