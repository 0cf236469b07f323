"""Which backend and precision ``auto`` stands for: the quickest that is here, by the figures in the model's card.

A card holds what :mod:`bpr_service.network.candidates` measured at export. Its choice runs where the packages and the
processor's units for it are there; else the next of its candidates that changes no pixel's label in 99.9 of 100. What
was not measured runs in eager float32. On a CUDA device it is CUDA graphs, in the arithmetic that eager has. Whatever
is taken, the answer names it (`bpr_service.network.backends.label`).
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from bpr_service.config import RefineConfig
    from bpr_service.network.weights import ModelCard

PIXELS_EQUAL = 0.999
"""Least share of pixels that a way of running must leave as eager float32 has them, to be taken unasked."""
_PACKAGES = {"eager": ("torch",), "openvino": ("openvino",), "onnxruntime": ("onnxruntime", "onnx", "onnxscript")}
"""What a runner of ``auto`` needs. ``compile`` is not among them: it would take a minute before the first answer."""


def settle(config: RefineConfig, card: ModelCard, device: torch.device) -> RefineConfig:
    """`config` with a backend and a precision in the place of ``auto``."""
    if config.backend != "auto":
        return config if config.precision != "auto" else config.with_options(precision="fp32")
    backend, precision = _quickest(config, card, device)
    return config.with_options(backend=backend, precision=precision)


def _quickest(config: RefineConfig, card: ModelCard, device: torch.device) -> tuple[str, str]:
    wanted = config.precision
    if device.type == "cpu":
        for backend, precision in _by_pace(card):
            if wanted in ("auto", precision) and _fits(precision, config, card) and _can(backend, precision):
                return backend, precision
    runner = {"cpu": "openvino" if wanted == "int8" else "eager", "cuda": "graphs"}.get(device.type, "eager")
    return runner, "fp32" if wanted == "auto" else wanted


def _by_pace(card: ModelCard) -> list[tuple[str, str]]:
    """The card's choice, then its other candidates that leave masks as they are, the quickest first."""
    if card.runtime is None:
        return []
    chosen = card.runtime.chosen
    others = sorted(
        (c for c in card.runtime.candidates if c.patches_per_s and (c.pixels_equal or 0) >= PIXELS_EQUAL),
        key=lambda c: -(c.patches_per_s or 0),
    )
    return [(chosen.backend, chosen.precision), *((c.backend, c.precision) for c in others)]


def _fits(precision: str, config: RefineConfig, card: ModelCard) -> bool:
    """Whether the model holds a network for it: the quantised one has one size."""
    return precision != "int8" or (card.int8 is not None and config.patch.network_size_px == card.patch.network_size_px)


@cache
def _can(backend: str, precision: str) -> bool:
    """Whether packages, and units of the processor that make it worth while, are there."""
    packages = _PACKAGES.get(backend)
    if packages is None or not all(_installed(name) for name in packages):
        return False
    unit = {"bf16": "BF16", "int8": "INT8"}.get(precision)
    return unit is None or (_installed("openvino") and unit in _units())


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # imported, and made unusable
        return False


@cache
def _units() -> list[str]:
    """What OpenVINO finds in this processor: ``FP32``, ``BF16``, ``INT8``, ..."""
    from bpr_service.network.backends import import_openvino

    return list(import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
