"""Small files as annotation tools write them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from bpr_service.formats import Paths
from bpr_service.masks.brush_rle import encode_brush
from bpr_service.masks.label_maps import encode_png
from bpr_service.masks.mask import Mask
from tests.formats.drawing import H, W, image, ring

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
        document: Any = {
            "version": "5.5.0",
            "flags": {},
            "shapes": own,
            "imagePath": f"..\\images\\{name}.jpg",
            **frame,
        }
        (root / "pred" / f"{name}.json").write_text(json.dumps(document, ensure_ascii=False, indent=2))
    (root / "pred" / "notes.json").write_text('{"author": "somebody"}')
    return Paths(str(root / "images"), str(root / "pred"))


def cvat(root: Path) -> Paths:
    """CVAT for images 1.1, with every kind of shape that its exporter writes in more than one element."""
    window = ring(3, 2)[3:17, 2:24].reshape(-1)
    runs = np.diff(np.flatnonzero(np.concatenate(([1], np.diff(window), [1]))))
    rle = ", ".join(map(str, [0, *runs]))
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in SQUARE)
    for name in ("sub/a", "b"):
        image(root / "images" / f"{name}.jpg")
    text = f"""<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><name>ä &amp; ö</name></task></meta>
  <image id="0" name="sub/a.jpg" width="{W}" height="{H}">
    <box label="box" source="manual" occluded="0" xtl="1.00" ytl="1.00" xbr="5.00" ybr="5.00" z_order="0">
    </box>
    <mask label="c&lt;t" source='semi-auto' occluded="0"
      rle="{rle}" left="2" top="3" width="22" height="14" z_order="1">
      <attribute name="é">points="1,1"</attribute>
    </mask>
    <!-- <image> -->
  </image>
  <image id="1" name="b.jpg" width="{W}" height="{H}">
    <polygon label="dog" source="manual" occluded="1" points="{points}" z_order="0" group_id="3"/>
    <tag label="night" source="manual"></tag>
  </image>
  <image id="2" name="b.jpg" width="{W}" height="{H}"/>
</annotations>
"""
    (root / "annotations.xml").write_text(text)
    return Paths(str(root / "images"), str(root / "annotations.xml"))


def label_studio(root: Path) -> Paths:
    """An export with a brush, a polygon, a box and a choice, of two annotators and a model."""
    size: dict[str, Any] = {"original_width": W, "original_height": H, "image_rotation": 0}
    brush = {"id": "b", "type": "brushlabels", "from_name": "t", "to_name": "i", **size,
             "value": {"format": "rle", "rle": encode_brush(ring(3, 2)), "brushlabels": ["cät"]}}  # fmt: skip
    points = [[x / W * 100, y / H * 100] for x, y in SQUARE]
    polygon = {"id": "p", "type": "polygonlabels", **size, "value": {"points": points, "closed": True}}
    box = {"id": "r", "type": "rectanglelabels", **size, "value": {"x": 1, "y": 1, "width": 9, "height": 9}}
    choice = {"id": "c", "type": "choices", "value": {"choices": ["day"]}}
    tasks = [
        {"id": 9, "data": {"text": "x", "image": "/data/upload/1/0a1b2c3d-a.jpg"}, "predictions": [],
         "annotations": [{"id": 1, "result": [brush, box, choice]}, {"id": 2, "result": []}]},
        {"id": 3, "data": {"image": "/data/local-files/?d=photos%2Fb.jpg"},
         "annotations": [], "predictions": [{"result": [polygon], "score": 0.5}]},
    ]  # fmt: skip
    for name in ("a", "photos/b"):
        image(root / "images" / f"{name}.jpg")
    (root / "export.json").write_text(json.dumps(tasks, ensure_ascii=False))
    return Paths(str(root / "images"), str(root / "export.json"))
