"""bpr-service: exact boundaries for the masks of any segmentation model.

>>> from bpr_service import Refiner
>>> result = Refiner.load("balanced").refine(image, masks)        # doctest: +SKIP

Importing the package is quick: torch is loaded when a :class:`Refiner` is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "BprError",
    "Mask",
    "MaskReport",
    "PanopticResult",
    "RefineResult",
    "Refiner",
    "SemanticResult",
    "__version__",
]

if TYPE_CHECKING:
    from bpr_service.errors import BprError
    from bpr_service.masks.mask import Mask
    from bpr_service.refine.refiner import Refiner
    from bpr_service.results import MaskReport, PanopticResult, RefineResult, SemanticResult

_WHERE = {
    "BprError": "bpr_service.errors",
    "Mask": "bpr_service.masks.mask",
    "RefineResult": "bpr_service.results",
    "SemanticResult": "bpr_service.results",
    "PanopticResult": "bpr_service.results",
    "MaskReport": "bpr_service.results",
    "Refiner": "bpr_service.refine.refiner",
}
_PARTS = ("client", "config", "connect", "errors", "examples", "formats", "masks")
"""Modules and packages that a program uses beside the names above."""


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _PARTS:
        return import_module(f"bpr_service.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'bpr_service' has no attribute {name!r}; it has {__dir__()}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    """What there is, whether or not it has been imported yet."""
    return sorted({*__all__, *_PARTS})
