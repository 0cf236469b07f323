"""Right pictures and masks of every type that is accepted (and of some that are not), each with seeded damage."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bpr_service.masks.mask import Mask

SIDE = 48
EACH = 24
"""Damaged ones of each kind."""
Damage = Callable[[random.Random, bytearray], bytearray]


@cache
def photograph() -> NDArray[np.uint8]:
    """(48, 48, 3): noise with a bright square."""
    image = np.random.default_rng(5).integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
    image[12:36, 12:36] = 220
    return image


@cache
def square() -> NDArray[np.uint8]:
    """(48, 48) of 0 and 1."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[10:38, 10:38] = 1
    return mask


def saved(array: Any, kind: str, mode: str | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(stream, kind, **options)
    return stream.getvalue()


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


PICTURES: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: saved(photograph(), "PNG"),
    "PNG palette": lambda: saved(photograph(), "PNG", "P"),
    "PNG 16-bit": lambda: saved(photograph()[:, :, 0].astype(np.uint16) * 200, "PNG"),
    "JPEG": lambda: saved(photograph(), "JPEG"),
    "JPEG progressive": lambda: saved(photograph(), "JPEG", progressive=True),
    "JPEG CMYK": lambda: saved(photograph(), "JPEG", "CMYK"),
    "WEBP": lambda: saved(photograph(), "WEBP"),
    "WEBP lossless": lambda: saved(photograph(), "WEBP", "RGBA", lossless=True),
    "TIFF": lambda: saved(photograph(), "TIFF"),
    "TIFF LZW": lambda: saved(photograph(), "TIFF", compression="tiff_lzw"),
    "TIFF JPEG": lambda: saved(photograph(), "TIFF", compression="jpeg"),
    "BMP": lambda: saved(photograph(), "BMP"),
    "PPM": lambda: saved(photograph(), "PPM"),
    "GIF": lambda: saved(photograph(), "GIF"),
    "AVIF": lambda: saved(photograph(), "AVIF"),
    "npy": lambda: npy(photograph()),
}
MASKS: dict[str, Callable[[], bytes]] = {
    "PNG mask": lambda: saved(square() * np.uint8(255), "PNG"),
    "soft PNG": lambda: saved(square().astype(np.uint16) * 40_000, "PNG"),
    "npy mask": lambda: npy(square()),
    "WEBP mask": lambda: saved(square() * np.uint8(255), "WEBP", "RGB", lossless=True),
}
MAPS = ("semantic", "panoptic")
TEXTS = ("RLE", "uncompressed RLE", "polygons", "base64")
KINDS = (*PICTURES, *MASKS, *MAPS, *TEXTS)


def cut(r: random.Random, data: bytearray) -> bytearray:
    return data[: r.randrange(len(data))]


def flip(r: random.Random, data: bytearray) -> bytearray:
    for _ in range(r.randrange(1, 12)):
        data[r.randrange(len(data))] ^= 1 << r.randrange(8)
    return data


def flip_head(r: random.Random, data: bytearray) -> bytearray:
    for _ in range(r.randrange(1, 6)):
        data[r.randrange(min(64, len(data)))] = r.choice((0, 1, 0x7F, 0x80, 0xFF))
    return data


def double(r: random.Random, data: bytearray) -> bytearray:
    start = r.randrange(len(data))
    piece = data[start : start + r.randrange(1, 200)]
    return data[:start] + piece * r.randrange(2, 20) + data[start:]


def lose(r: random.Random, data: bytearray) -> bytearray:
    start = r.randrange(len(data))
    return data[:start] + data[start + r.randrange(1, 100) :]


def blank(r: random.Random, data: bytearray) -> bytearray:
    start, value = r.randrange(len(data)), r.choice((0, 0xFF))
    for i in range(start, min(len(data), start + r.randrange(1, 100))):
        data[i] = value
    return data


DAMAGE: tuple[Damage, ...] = (cut, flip, flip_head, double, lose, blank)


def damaged(r: random.Random, data: bytes) -> bytes:
    """One to three kinds of damage, one after the other."""
    changed = bytearray(data)
    for _ in range(r.randrange(1, 4)):
        changed = r.choice(DAMAGE)(r, changed or bytearray(b"\0"))
    return bytes(changed)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def odd_number(r: random.Random) -> Any:
    return r.choice((-1, 0, 1, 47, 48, 49, 2**31, 2**63, 1e300, -1e300, 0.5, 1e-300, None, "1", True, [1]))


def text_damaged(r: random.Random, kind: str) -> Any:
    """A segmentation as text or numbers, with some of these wrong."""
    rle: dict[str, Any] = Mask.from_array(square()).to_rle(compressed=kind == "RLE")
    if kind == "RLE":
        return {**rle, "counts": damaged(r, rle["counts"].encode()).decode("latin-1")}
    if kind == "base64":
        return {"png": damaged(r, b64(MASKS["PNG mask"]()).encode()).decode("latin-1"), "soft": r.random() < 0.5}
    numbers: list[Any] = list(rle["counts"]) if kind == "uncompressed RLE" else [10, 10, 38, 10, 38, 38, 10, 38]
    for _ in range(r.randrange(1, 4)):
        numbers[r.randrange(len(numbers))] = odd_number(r)
    size = [odd_number(r), SIDE] if r.random() < 0.2 else [SIDE, SIDE]
    return {"size": size, "counts": numbers} if kind == "uncompressed RLE" else [numbers]


def mutated(kind: str, number: int) -> tuple[str, bytes]:
    """Task and JSON body of the ``number``th damaged request of a kind; the same each time."""
    r = random.Random(f"{kind} {number}")
    mask: Any = Mask.from_array(square()).to_rle()
    more: dict[str, Any] = {}
    image, task = saved(photograph(), "PNG"), "instance"
    if kind in PICTURES:
        image = damaged(r, PICTURES[kind]())
    elif kind in MASKS:
        mask = {"png": b64(damaged(r, MASKS[kind]())), "soft": kind == "soft PNG"}
    elif kind in TEXTS:
        mask = text_damaged(r, kind)
    else:
        task = kind
        data = b64(damaged(r, saved(square() if kind == "semantic" else np.dstack([square()] * 3), "PNG")))
        more = {"label_map" if kind == "semantic" else "segment_map": {"data": data}}
        more |= {"segments_info": [{"id": 0x010101, "category_id": 1}]} if kind == "panoptic" else {}
    masks = {} if more else {"masks": [{"segmentation": mask}]}
    options = {"encoding": r.choice(("rle", "uncompressed_rle", "polygon", "png"))}
    body = {"image": {"data": b64(image)}, "options": options, **masks, **more}
    return task, json.dumps(body, allow_nan=True).encode()
