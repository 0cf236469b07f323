"""Some seventy bombs: small bodies that ask for much work or memory, of every accepted kind; drawn, none is a file.

Each is a function of ``side``, the height and width in px of its picture, that gives what is sent: a path, a content
type and a body. What a bomb asks for may well be answered: it must be bounded, not refused.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bpr_service.masks.brush_rle import encode_brush
from bpr_service.masks.mask import Mask
from tests.server.helpers import b64

JSON = "application/json"


class Shot(NamedTuple):
    """What is sent."""

    path: str
    content_type: str
    body: bytes


Bomb = Callable[[int], Shot]


def asked(task: str = "instance", **request: Any) -> Shot:
    return Shot(f"/v1/refine/{task}", JSON, json.dumps(request).encode())


def disc(side: int) -> NDArray[np.uint8]:
    """(side, side) of 0 and 1."""
    canvas = np.zeros((side, side), np.uint8)
    cv2.circle(canvas, (side // 2, side // 2), side // 3, 1, -1)
    return canvas


def chessboard(side: int) -> NDArray[np.uint8]:
    """(side, side) of 0 and 1, as ragged as a mask can be."""
    return np.ascontiguousarray((np.indices((side, side)).sum(0) & 1).astype(np.uint8))


def saved(array: Any, kind: str, mode: str | None = None, **options: Any) -> bytes:
    """A picture file, of another Pillow mode where asked."""
    picture = Image.fromarray(array)
    stream = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(stream, kind, **options)
    return stream.getvalue()


# ---------------------------------------------------------------- pictures


def photograph(side: int) -> NDArray[np.uint8]:
    """(side, side, 3): soft blobs, so that decoders have something to do."""
    small = np.random.default_rng(3).integers(0, 256, (max(2, side // 64),) * 2 + (3,), dtype=np.uint8)
    return np.asarray(cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC))


def wide(side: int, dtype: Any) -> NDArray[Any]:
    """(side, side) of more than 8 bits."""
    return np.asarray(photograph(side)[:, :, 0].astype(dtype) * 200)


MODES: dict[str, tuple[str, ...]] = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
}
"""Pillow's modes that each accepted type can hold, wider samples aside."""


def _of_mode(kind: str, mode: str, side: int) -> bytes:
    return saved(photograph(side), kind, mode)


PICTURES: dict[str, Callable[[int], bytes]] = {
    **{f"{kind} {mode}": partial(_of_mode, kind, mode) for kind, modes in MODES.items() for mode in modes},
    "PNG 16-bit gray": lambda side: saved(wide(side, np.uint16), "PNG"),
    "PNG 16-bit RGB": lambda side: cv2.imencode(".png", photograph(side).astype(np.uint16) * 200)[1].tobytes(),
    "PNG 16-bit RGBA": lambda side: cv2.imencode(".png", np.full((side, side, 4), 9000, np.uint16))[1].tobytes(),
    "TIFF 16-bit gray": lambda side: saved(wide(side, np.uint16), "TIFF"),
    "TIFF 32-bit gray": lambda side: saved(wide(side, np.int32), "TIFF"),
    "TIFF float": lambda side: saved(photograph(side)[:, :, 0].astype(np.float32) / 255, "TIFF"),
    "TIFF LZW": lambda side: saved(photograph(side), "TIFF", compression="tiff_lzw"),
    "TIFF deflate": lambda side: saved(photograph(side), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF JPEG": lambda side: saved(photograph(side), "TIFF", compression="jpeg"),
    "TIFF fax": lambda side: saved(chessboard(side) > 0, "TIFF", compression="group4"),
    "JPEG progressive": lambda side: saved(photograph(side), "JPEG", progressive=True),
    "JPEG progressive 4:4:4": lambda side: saved(photograph(side), "JPEG", progressive=True, subsampling=0),
    "JPEG progressive CMYK": lambda side: saved(photograph(side), "JPEG", "CMYK", progressive=True),
    "WEBP lossless": lambda side: saved(photograph(side), "WEBP", lossless=True),
    "WEBP lossless RGBA": lambda side: saved(photograph(side), "WEBP", "RGBA", lossless=True),
}
"""Pictures of every accepted type and mode."""


def picture(make: Callable[[int], bytes]) -> Bomb:
    """A bomb that sends a picture with one mask of it."""
    return lambda side: asked(
        image={"data": b64(make(side))}, masks=[{"segmentation": Mask.from_array(disc(side)).to_rle()}]
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(side: int, *chunks: bytes, says: int | None = None) -> bytes:
    """A flat PNG with chunks of one's own before its pixels; ``says`` another side than it has."""
    head = struct.pack(">IIBBBBB", says or side, says or side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes((3 * side + 1) * side), 9)
    parts = (_chunk(b"IHDR", head), *chunks, _chunk(b"IDAT", rows), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def many_scans(side: int) -> bytes:
    data = saved(photograph(side), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:-2] + data[at:-2] * 3000 + data[-2:]


def frames(kind: str) -> Callable[[int], bytes]:
    def make(side: int) -> bytes:
        frame = Image.fromarray(photograph(side))
        stream = io.BytesIO()
        frame.save(stream, kind, save_all=True, append_images=[frame.rotate(90 * i) for i in range(1, 4)])
        return stream.getvalue()

    return make


ODD_PICTURES: dict[str, Callable[[int], bytes]] = {
    "PNG of a zipped text": lambda side: png_of(side, _chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(64 << 20), 9))),
    "PNG of a zipped profile": lambda side: png_of(side, _chunk(b"iCCP", b"c\0\0" + zlib.compress(bytes(64 << 20), 9))),
    "PNG of 20,000 chunks": lambda side: png_of(side, *[_chunk(b"tEXt", b"a\0b")] * 20_000),
    "PNG that says 8191 px": lambda side: png_of(min(side, 64), says=8191),
    "PNG that says 60,000 px": lambda side: png_of(16, says=60_000),
    "PNG of 2 GiB in a row": lambda side: png_of(16, says=2**31 - 1),
    "JPEG of 3,000 scans": lambda side: many_scans(min(side, 512)),
    "JPEG cut in half": lambda side: (data := saved(photograph(side), "JPEG"))[: len(data) // 2],
    "GIF": lambda side: saved(photograph(side), "GIF"),
    "GIF of frames": frames("GIF"),
    "PNG of frames": frames("PNG"),
    "WEBP of frames": frames("WEBP"),
    "TIFF of frames": frames("TIFF"),
}
"""Pictures that lie, repeat themselves, or hide something."""


# ---------------------------------------------------------------- masks, maps, bodies


def masks(*segmentations: Any, side: int, **options: Any) -> Shot:
    image = b64(saved(photograph(side), "JPEG"))
    return asked(image={"data": image}, masks=[{"segmentation": s} for s in segmentations], options=options)


def png(array: NDArray[Any]) -> dict[str, str]:
    return {"png": b64(cv2.imencode(".png", array)[1].tobytes())}


def zigzag(points: int) -> Bomb:
    def make(side: int) -> Shot:
        xs = np.linspace(0, side - 1, points)
        ys = np.where(np.arange(points) % 2, side - 1.0, 0.0)
        return masks([np.stack([xs, ys], 1).ravel().round(2).tolist()], side=side)

    return make


def answered_as(encoding: str) -> Bomb:
    return lambda side: masks(*[png(chessboard(side))] * 4, side=side, encoding=encoding)


def whole_map(task: str, array: Callable[[int], NDArray[Any]]) -> Bomb:
    name = "label_map" if task == "semantic" else "segment_map"

    def make(side: int) -> Shot:
        request: dict[str, Any] = {"image": {"data": b64(saved(photograph(side), "JPEG"))}}
        request[name] = {"data": png(array(side))["png"]}
        if task == "panoptic":
            request["segments_info"] = [{"id": i, "category_id": 1} for i in range(1, 200)]
        return asked(task, **request)

    return make


def ids(side: int) -> NDArray[np.uint8]:
    """A panoptic PNG in which every pixel is a segment of its own."""
    numbers = np.arange(side * side, dtype=np.int64).reshape(side, side)
    return np.stack([numbers >> 16, numbers >> 8, numbers], 2).astype(np.uint8)


def few_ids(side: int) -> NDArray[np.uint8]:
    """A panoptic PNG of 199 segments."""
    nothing = np.zeros((side, side), np.uint8)
    return np.dstack([nothing, nothing, ids(side)[:, :, 1] % 199 + 1])


def parts(side: int) -> Shot:
    part = b'--B\r\nContent-Disposition: form-data; name="masks"\r\n\r\nx\r\n'
    return Shot("/v1/refine/instance", "multipart/form-data; boundary=B", part * 4000 + b"--B--\r\n")


def text(form: Callable[[], str], path: str = "/v1/refine/instance") -> Bomb:
    return lambda side: Shot(path, JSON, form().encode())


EMPTY = '{"image":{"data":""},"masks":['


def brush(side: int) -> Shot:
    rle = encode_brush(disc(side))
    region = {"type": "brushlabels", "value": {"rle": rle}, "original_width": side, "original_height": side}
    data = {"image": "data:image/jpeg;base64," + b64(saved(photograph(side), "JPEG"))}
    task = {"data": data, "predictions": [{"result": [region] * 20}]}
    return Shot("/predict", JSON, json.dumps({"tasks": [task] * 2}).encode())


def stripes(side: int) -> dict[str, Any]:
    return {"size": [side, side], "counts": [1] * (side * side // 8) + [side * side - side * side // 8]}


OTHERS: dict[str, Bomb] = {
    "60 full-frame PNG masks": lambda side: masks(*[png(disc(side))] * 60, side=side),
    "60 full-frame RLE masks": lambda side: masks(*[Mask.from_array(disc(side)).to_rle()] * 60, side=side),
    "900 full-frame RLE masks": lambda side: masks(
        *[{"size": [side, side], "counts": [0, side * side]}] * 900, side=side
    ),
    "a soft mask of 16 bits": lambda side: masks({**png(wide(side, np.uint16)), "soft": True}, side=side),
    "a chessboard as RLE": lambda side: masks(Mask.from_array(chessboard(side)).to_rle(), side=side),
    "RLE of single pixels": lambda side: masks(stripes(side), side=side),
    "RLE of a million empty runs": lambda side: masks(
        {"size": [side, side], "counts": [0] * 1_000_000 + [side * side]}, side=side
    ),
    "a polygon of 4,000 points": zigzag(4000),
    "a polygon of 40,000 points": zigzag(40_000),
    "100,000 polygons": lambda side: masks([[0, 0, side, 0, 0, side]] * 100_000, side=side),
    "polygons far outside": lambda side: masks([[-1e9, -1e9, 1e9, -1e9, 0, 1e9]], side=side),
    "answered as RLE": answered_as("rle"),
    "answered as lists": answered_as("uncompressed_rle"),
    "answered as polygons": answered_as("polygon"),
    "answered as PNG": answered_as("png"),
    "a semantic map": whole_map("semantic", lambda side: disc(side) * np.uint8(3)),
    "a semantic map of 16 bits": whole_map("semantic", lambda side: wide(side, np.uint16)),
    "a segment for every pixel": whole_map("panoptic", ids),
    "200 segments": whole_map("panoptic", few_ids),
    "brushes of Label Studio": brush,
    "4,000 parts": parts,
    "a million unknown keys": text(lambda: "{" + ",".join(f'"k{i}":1' for i in range(1_000_000)) + "}"),
    "a million masks": text(lambda: EMPTY + ",".join(['{"segmentation":[]}'] * 500_000) + "]}"),
    "a million numbers": text(lambda: EMPTY + '{"segmentation":[],"x":[' + "1," * 1_000_000 + "1]}]}"),
    "half a million empty lists": text(lambda: EMPTY + "[]," * 500_000 + "[]]}"),
    "lists 200,000 deep": text(lambda: "[" * 200_000),
    "objects 900 deep": text(lambda: EMPTY + '{"segmentation":[],"x":' + '{"a":' * 900 + "1" + "}" * 901 + "]}"),
    "8 MB of base64": text(lambda: '{"image":{"data":"' + "A" * (8 << 20) + '"},"masks":[]}'),
    "8 MB of blanks in base64": text(lambda: '{"image":{"data":"' + "A " * (4 << 20) + '"},"masks":[]}'),
    "8 MB of white space": text(lambda: " " * (8 << 20) + "{}"),
    "8 MB that is no JSON": text(lambda: "\x00" * (8 << 20)),
    "tasks of a million lists": text(
        lambda: '{"tasks":[{"data":{},"predictions":[' + "[]," * 500_000 + "[]]}]}", "/predict"
    ),
}  # fmt: skip

BOMBS: dict[str, Bomb] = {
    **{name: picture(make) for name, make in (PICTURES | ODD_PICTURES).items()},
    **OTHERS,
}
