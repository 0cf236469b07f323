"""Small files as annotation tools write them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from bpr_service.formats import Paths
from bpr_service.masks.label_maps import encode_png
from bpr_service.masks.mask import Mask
from tests.formats.drawing import image, ring

SQUARE = [[10.0, 10.0], [30.0, 10.0], [30.0, 25.0], [10.0, 25.0]]


def labelme(root: Path) -> Paths:
    """A file as LabelMe 5 writes it, and one of an older version, without ``mask`` and ``shape_type``."""
    mask = Mask.from_array(ring(3, 2))
    x0, y0, x1, y1 = mask.box
    png = base64.b64encode(encode_png(mask.window(x0, y0, x1, y1))).decode()
    rest: dict[str, Any] = {"group_id": None, "description": "é", "flags": {}}
    shapes = [
        {"label": "cat", "points": SQUARE, **rest, "shape_type": "polygon", "mask": None},
        {"label": "hat", "points": [[x0, y0], [x1 - 1, y1 - 1]], **rest, "shape_type": "mask", "mask": png},
        {"label": "box", "points": [[1.0, 1.0], [5.0, 5.0]], **rest, "shape_type": "rectangle", "mask": None},
    ]
    frame = {"imageData": None, "imageHeight": 40, "imageWidth": 52}
    (root / "pred").mkdir(parents=True)
    for name, own in (("a", shapes), ("b", [{"label": "old", "points": SQUARE}])):
        image(root / "images" / f"{name}.jpg")
        document = {"version": "5.5.0", "flags": {}, "shapes": own, "imagePath": f"..\\images\\{name}.jpg", **frame}
        (root / "pred" / f"{name}.json").write_text(json.dumps(document, ensure_ascii=False, indent=2))
    (root / "pred" / "notes.json").write_text('{"author": "somebody"}')
    return Paths(str(root / "images"), str(root / "pred"))
