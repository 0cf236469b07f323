"""Checkpoints: what this trainer adds to Lightning's, and how they are read. Nothing in them is ever run as code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bpr_service.errors import ConfigError, ModelError

LAYOUT = 2
"""Raised whenever a checkpoint changes so that an older trainer's cannot be read."""


def add_record(checkpoint: dict[str, Any], kind: str, record: Mapping[str, Any]) -> None:
    """Say in a checkpoint what it is of."""
    checkpoint["trained"] = {"layout": LAYOUT, "kind": kind, **record}


def read_checkpoint(path: Path, kind: str) -> dict[str, Any]:
    """A checkpoint's content; tensors and plain values only are read, never code.

    Args:
        path: of the checkpoint.
        kind: ``refiner`` or ``segmenter``.

    Raises:
        ModelError: no file, a damaged one, or one that this trainer did not write for `kind`.
    """
    fix = f"pass a last.ckpt or best.ckpt of bpr-train {kind}"
    if not path.is_file():
        raise ModelError(str(path), expected="a checkpoint", got="no file", fix=fix)
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as cause:  # torch raises whatever its unpickler meets
        got = f"{type(cause).__name__}: {cause}"[:200]
        raise ModelError(str(path), expected="a readable checkpoint", got=got, fix=fix) from cause
    found = content.get("trained") if isinstance(content, dict) else None
    if not isinstance(found, dict) or "state_dict" not in content:
        raise ModelError(str(path), expected=f"a checkpoint of a {kind}", got="another file", fix=fix)
    if (found.get("layout"), found.get("kind")) != (LAYOUT, kind):
        got = f"layout {found.get('layout')} of a {found.get('kind')}"
        raise ModelError(str(path), expected=f"a {kind}'s checkpoint of layout {LAYOUT}", got=got, fix=fix)
    return content


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's weights, the averaged ones where the run averages."""
    prefix = "network."
    state: Mapping[str, Tensor] = checkpoint["state_dict"]
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def validation_of(checkpoint: Mapping[str, Any]) -> dict[str, float]:
    """The best measures of validation so far."""
    measured: dict[str, float] = {}
    for callback in checkpoint.get("callbacks", {}).values():
        if isinstance(callback, dict) and callback.get("monitor") and callback.get("best_model_score") is not None:
            measured[str(callback["monitor"])] = round(float(callback["best_model_score"]), 6)
    return measured


def resume_step(path: Path, kind: str, record: Mapping[str, Any], same: Sequence[str]) -> int:
    """The step that a run goes on from.

    Args:
        path: of the checkpoint.
        kind: ``refiner`` or ``segmenter``.
        record: what this run's own checkpoints would say.
        same: dotted names of what must be equal in both.

    Raises:
        ModelError: no checkpoint of `kind`.
        ConfigError: it belongs to a run that differs in one of `same`.
    """
    content = read_checkpoint(path, kind)
    for name in same:
        differ = _differences(_part(content["trained"], name), _part(record, name), name)
        if differ:
            where, theirs, ours = differ[0]
            more = f" (and {len(differ) - 1} more: {', '.join(part for part, _, _ in differ[1:4])})" * (len(differ) > 1)
            raise ConfigError(
                f"{path} belongs to another run",
                expected=f"{where} {ours}, as this recipe has it"[:300],
                got=f"{theirs}{more}"[:300],
                fix="give the run another folder, or --no-resume",
            )
    return int(content["global_step"])


def _differences(theirs: Any, ours: Any, name: str) -> list[tuple[str, Any, Any]]:
    """(dotted name, theirs, ours) of each value that differs."""
    if not (isinstance(theirs, Mapping) and isinstance(ours, Mapping)):
        return [] if theirs == ours else [(name, theirs, ours)]
    return [
        difference
        for key in dict.fromkeys([*ours, *theirs])
        for difference in _differences(theirs.get(key), ours.get(key), f"{name}.{key}")
    ]


def _part(record: Mapping[str, Any], name: str) -> Any:
    value: Any = record
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
