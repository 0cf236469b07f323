"""Which backend and precision ``auto`` stands for: the quickest that is here, by the figures in the model's card.

A card holds what :mod:`bpr_service.network.candidates` measured at export. Its choice runs where the packages and the
processor's units for it are there; else the next of its candidates that changes no pixel's label in 99.9 of 100. What
was not measured runs in eager float32. On a CUDA device it is CUDA graphs, in the arithmetic that eager has. Whatever
is taken, the answer names it (`bpr_service.network.backends.label`).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from bpr_service.extras import installed

if TYPE_CHECKING:
    from bpr_service.config import RefineConfig
    from bpr_service.network.weights import ModelCard

PIXELS_EQUAL = 0.999
"""Least share of pixels that a way of running must leave as eager float32 has them, to be taken unasked."""
_PACKAGES = {"eager": (), "openvino": ("openvino",), "onnxruntime": ("onnxruntime", "onnx", "onnxscript")}
"""What a runner of ``auto`` needs, beside torch for all but a quantised network. ``compile`` is not among them: it
would take a minute before the first answer.
"""


def settle(config: RefineConfig, card: ModelCard, device: str) -> RefineConfig:
    """`config` with a backend and a precision in the place of ``auto``."""
    if config.backend != "auto":
        return config if config.precision != "auto" else config.with_options(precision="fp32")
    backend, precision = _quickest(config, card, device)
    return config.with_options(backend=backend, precision=precision)


def _quickest(config: RefineConfig, card: ModelCard, device: str) -> tuple[str, str]:
    wanted = config.precision
    if device == "cpu":
        for backend, precision in _by_pace(card):
            if wanted in ("auto", precision) and _fits(precision, config, card) and _can(backend, precision):
                return backend, precision
    if device == "cpu" and wanted == "auto" and not installed("torch") and _fits("int8", config, card):
        return "openvino", "int8"  # what a plain install can run at all
    runner = "graphs" if device != "cpu" else "openvino" if wanted == "int8" else "eager"
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
    if backend not in _PACKAGES:
        return False
    packages = (*_PACKAGES[backend], *(() if precision == "int8" else ("torch",)))
    if not all(installed(name) for name in packages):
        return False
    unit = {"bf16": "BF16", "int8": "INT8"}.get(precision)
    return unit is None or (installed("openvino") and unit in _units())


@cache
def _units() -> list[str]:
    """What OpenVINO finds in this processor: ``FP32``, ``BF16``, ``INT8``, ..."""
    from bpr_service.network.backends import import_openvino

    return list(import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
