"""bpr-service: exact boundaries for the masks of any segmentation model.

>>> from bpr_service import Refiner
>>> result = Refiner.load("balanced").refine(image, masks)        # doctest: +SKIP

Importing the package is quick: torch is loaded when a :class:`Refiner` is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["BprError", "Mask", "RefineResult", "Refiner", "__version__"]

if TYPE_CHECKING:
    from bpr_service.errors import BprError
    from bpr_service.masks.mask import Mask
    from bpr_service.refine.refiner import Refiner, RefineResult

_WHERE = {
    "BprError": "bpr_service.errors",
    "Mask": "bpr_service.masks.mask",
    "RefineResult": "bpr_service.refine.refiner",
    "Refiner": "bpr_service.refine.refiner",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'bpr_service' has no attribute {name!r}; it has {sorted(_WHERE)}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
