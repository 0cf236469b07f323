"""Settings: frozen, validated as a whole, and an error names the field."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from bpr_service.config import PRESETS, PatchConfig, RefineConfig, build, get_preset
from bpr_service.errors import ConfigError, UnknownName


def test_patch_fields_may_stand_beside_the_others() -> None:
    config = build(RefineConfig, {"nms_threshold": 0.55, "flip": True})
    assert (config.patch.nms_threshold, config.flip) == (0.55, True)
    again = config.with_options(padding_px=0)
    assert (again.patch.nms_threshold, again.patch.padding_px, again.flip) == (0.55, 0, True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"nms_threshold": 1.0}, "nms_threshold"),
        ({"nms_threshold": float("nan")}, "nms_threshold"),
        ({"patch_size_px": 0}, "patch_size_px"),
        ({"scheme": "random"}, "scheme"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_values_name_the_field(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(RefineConfig, options)


def test_unknown_fields_get_a_suggestion() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'padding_px'"):
        build(RefineConfig, {"paddin_px": 3})


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        PatchConfig().padding_px = 3


def test_presets() -> None:
    assert set(PRESETS) == {"fast", "lean", "balanced", "best"}
    with pytest.raises(UnknownName, match="balanced, best, fast"):
        get_preset("quick")
