"""An auto-annotation function for CVAT: what another one detects, with exact boundaries.

Source: docs.cvat.ai, "Auto-annotation API": a function has ``spec`` and ``detect(context, image)``, which gives shapes;
the points of a mask are the lengths of its runs, row by row in its box, and the box's corner pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bpr_service.connect.common import Refines, refined
from bpr_service.formats.records.cvat import mask_of_runs, runs_of
from bpr_service.masks.encoding import one_outline, parts_of
from bpr_service.masks.mask import Mask


class RefinedFunction:
    """A detection function whose masks and polygons are refined; all other shapes are the other function's own.

    Args:
        function: an auto-annotation function, or a module that is one.
        refiner: refines; a mask that comes out empty stays as it was.
    """

    def __init__(self, function: Any, refiner: Refines) -> None:
        self.function, self.refiner = function, refiner

    @property
    def spec(self) -> Any:
        """The other function's labels."""
        return self.function.spec

    def detect(self, context: Any, image: Any) -> list[Any]:
        """The shapes of a picture (PIL)."""
        shapes = list(self.function.detect(context, image))
        mine = [shape for shape in shapes if str(shape.type) in ("mask", "polygon")]
        size = (image.height, image.width)
        masks = [_mask(shape, size) for shape in mine]
        for shape, mask in zip(mine, refined(self.refiner, np.asarray(image.convert("RGB")), masks), strict=True):
            if mask.area:
                shape.points = _points(shape, Mask.from_array(mask.to_array()))
        return shapes


def _mask(shape: Any, size: tuple[int, int]) -> Mask:
    points = list(shape.points)
    if str(shape.type) == "polygon":
        return Mask.from_polygons([points], *size)
    x0, y0, x1, y1 = (int(value) for value in points[-4:])
    return mask_of_runs(points[:-4], (x0, y0, x1 + 1, y1 + 1), size)


def _points(shape: Any, mask: Mask) -> list[float]:
    if str(shape.type) == "polygon":
        flat: list[float] = one_outline(parts_of(mask)).reshape(-1).tolist()
        return flat
    x0, y0, x1, y1 = mask.box
    return [float(value) for value in (*runs_of(mask), x0, y0, x1 - 1, y1 - 1)]
