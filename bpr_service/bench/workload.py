"""The fixed workload: photographs side by side, scaled to 1024 x 2048, with the coarse masks that lie wholly inside.

Letters: H, W the canvas, h, w a photograph's size.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import FormatError
from bpr_service.masks.images import read_image
from bpr_service.masks.mask import Mask

HEIGHT, WIDTH, MASKS = 1024, 2048, 18
IMAGES = 4

Photograph = tuple[NDArray[np.uint8], list[Mask]]


@dataclass(frozen=True)
class Request:
    """One image as it would arrive: a JPEG, and the compressed RLEs of its coarse masks."""

    jpeg: bytes
    rles: list[dict[str, Any]]


def workload(data: Path | None) -> tuple[str, list[Request]]:
    """Where the photographs are from, and the requests: CCP's val split in the folder `data`, else the bundled ones.

    Raises:
        FormatError: `data` has no ``ccp/instances_val.json`` or ``coarse/ccp_val.json``.
    """
    if data is None:
        return "bundled photographs", [_canvas(_bundled(), k) for k in range(IMAGES)]
    return "ccp val", [_canvas(_ccp(data, 3 * k), 0) for k in range(IMAGES)]


def _bundled() -> list[Photograph]:
    from bpr_service.examples import NAMES, load_example

    examples = [load_example(name) for name in NAMES]
    return [(e.image, [Mask.from_rle(i["segmentation"]) for i in e.instances]) for e in examples]


def _ccp(data: Path, first: int) -> list[Photograph]:
    files = (data / "ccp" / "instances_val.json", data / "coarse" / "ccp_val.json")
    for file in files:
        if not file.is_file():
            raise FormatError(str(file), expected="CCP's val split with its coarse masks", got="no such file")
    dataset, results = (json.loads(file.read_text()) for file in files)
    of_image: dict[Any, list[Any]] = defaultdict(list)
    for result in results:
        of_image[result["image_id"]].append(result["segmentation"])
    chosen = dataset["images"][first : first + 3]
    folder = data / "ccp" / "images"
    return [(read_image(folder / e["file_name"]), [Mask.from_rle(r) for r in of_image[e["id"]]]) for e in chosen]


def _canvas(photographs: list[Photograph], turn: int) -> Request:
    """Photographs next to each other until the canvas is full, `turn` of them skipped; the largest masks that fit."""
    from PIL import Image

    canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    masks: list[Mask] = []
    x = 0
    for image, coarse in _endless(photographs, turn):
        scale = HEIGHT / image.shape[0]
        width = round(image.shape[1] * scale)
        shown = min(width, WIDTH - x)
        if shown <= 0:
            break
        canvas[:, x : x + shown] = cv2.resize(image, (width, HEIGHT), interpolation=cv2.INTER_LINEAR)[:, :shown]
        for mask in coarse:
            full = cv2.resize(mask.to_array(), (width, HEIGHT), interpolation=cv2.INTER_LINEAR)
            if not full[:, shown:].any() and full.any():
                masks.append(Mask.from_window(np.ascontiguousarray(full[:, :shown]), x, 0, HEIGHT, WIDTH))
        x += shown
    # Middling ones: a garment, not a person; as small as the field's data sets have them.
    masks = sorted(masks, key=lambda m: m.area, reverse=True)
    masks = (masks[len(masks) // 4 :] + masks[: len(masks) // 4])[:MASKS]
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "JPEG", quality=92)
    return Request(buffer.getvalue(), [mask.to_rle() for mask in masks])


def _endless(photographs: list[Photograph], turn: int) -> Iterator[Photograph]:
    while True:
        yield photographs[turn % len(photographs)]
        turn += 1
