"""The bundled example: photographs that scikit-image ships, and coarse masks of them (``*.json``, COCO RLE).

``make_coarse.py`` made the masks: polygons clicked by hand, then what a 28 x 28 mask head would keep of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpr_service.errors import UnknownName

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FOLDER = Path(__file__).parent
NAMES = ("astronaut", "chelsea", "coffee")


@dataclass(frozen=True)
class Example:
    """One photograph with its coarse masks."""

    name: str
    image: NDArray[np.uint8]
    """(H, W, 3) uint8 RGB."""
    instances: list[dict[str, Any]]
    """``{"id", "label", "segmentation": compressed COCO RLE}``."""


def load_example(name: str) -> Example:
    """One of :data:`NAMES`.

    Raises:
        UnknownName: another name.
        ImportError: scikit-image is not installed (``pip install "bpr-service[demo]"``).
    """
    if name not in NAMES:
        raise UnknownName("example", name, NAMES)
    import skimage.data

    image = getattr(skimage.data, name)()
    return Example(name, image, json.loads((FOLDER / f"{name}.json").read_text())["instances"])
