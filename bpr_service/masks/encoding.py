"""A mask written as it came: the one place where every entry point chooses how a mask goes out."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from bpr_service.errors import MaskError, UnknownName
from bpr_service.masks.arrays import array_like, is_array, probabilities, read_array, rewritten
from bpr_service.masks.images import open_picture
from bpr_service.masks.label_maps import picture_like, two_values
from bpr_service.masks.mask import Mask
from bpr_service.masks.polygons import Points, joined, traced

Encoding = Literal["same", "rle", "uncompressed_rle", "polygon", "png"]
"""How masks go out; ``same``: as they came."""
Parts = list[list[Points]]
"""The rings of each part of a mask: (n, 2) corners x, y in px of its outline, then of its holes."""


def encode_like(mask: Mask, given: Any, encoding: Encoding = "same") -> Any:
    """A mask as JSON holds it, in the encoding asked for or in that of `given`.

    Polygons that came and whose mask has holes go out as compressed RLE, since readers of several polygons fill what
    lies inside. Where polygons are asked for, a hole is joined to its outline by a slit. Nothing is ever filled.

    Args:
        mask: what is written.
        given: what came: RLE, polygons, ``{"png": base64}``, base64 text of a PNG; anything else counts as RLE.
        encoding: "same", or one of the others whatever came.

    Returns:
        An RLE mapping, a list of polygons, ``{"png": base64}``, or base64 text.

    Raises:
        UnknownName: there is no such encoding.
    """
    if encoding not in get_args(Encoding):
        raise UnknownName("encoding", encoding, get_args(Encoding))
    form = form_of(given) if encoding == "same" else encoding
    if form == "polygon":
        return _polygons(mask, slits=encoding == "polygon")
    if form == "png" and encoding == "same" and isinstance(given, Mapping) and given.get("soft"):
        return {**given, "png": base64.b64encode(soft_picture_like(_bytes(given["png"]), mask)).decode()}
    if form == "png":
        png = base64.b64encode(png_like(mask, given)).decode()
        return png if isinstance(given, str) and encoding == "same" else {"png": png}
    return mask.to_rle(compressed=form == "rle")


def form_of(given: Any) -> Encoding:
    """The encoding of a mask as it came; RLE where it came as nothing of its own, as part of a map."""
    if isinstance(given, str):
        return "png"
    if isinstance(given, list | tuple):
        return "polygon"
    if isinstance(given, Mapping):
        if "png" in given:
            return "png"
        return "uncompressed_rle" if isinstance(given.get("counts"), list) else "rle"
    return "rle"


def png_like(mask: Mask, given: Any) -> bytes:
    """A PNG of a mask with the values, mode and palette of the PNG that came (base64 or its bytes); else 0 and 255."""
    png = given.get("png") if isinstance(given, Mapping) else given
    if not png or not isinstance(png, str | bytes) or (isinstance(given, Mapping) and given.get("soft")):
        return mask.to_png()
    return mask_picture_like(_bytes(png), mask)


def _bytes(png: str | bytes) -> bytes:
    """The bytes of a PNG that came as they are, or as base64 with or without a data URI's head."""
    if isinstance(png, bytes):
        return png
    return binascii.a2b_base64(png.partition(",")[2] if png.startswith("data:") else png)


def mask_picture_like(data: bytes, mask: Mask) -> bytes:
    """A mask as a picture with the two values, mode and palette of the picture `data`; `data` where nothing is new."""
    picture = open_picture(data, mask.height * mask.width, "mask", MaskError)
    coarse, foreground, background = two_values(picture)
    refined = mask.to_array().view(bool)
    array = np.asarray(picture).copy()
    array[refined & ~coarse] = foreground
    array[coarse & ~refined] = background
    return picture_like(data, array)


def soft_picture_like(data: bytes, mask: Mask) -> bytes:
    """A soft mask's picture with the pixels rewritten that differ between it, cut at one half, and `mask`."""
    picture = open_picture(data, mask.height * mask.width, "mask", MaskError)
    array = np.asarray(picture)
    wide = array if picture.mode == "L" else array.astype(np.uint16)
    return picture_like(data, rewritten(wide, Mask.from_png(data, soft=True).to_array(), mask.to_array()))


def read_mask_file(data: bytes, *, soft: bool = False, logits: bool = False) -> Mask:
    """A mask from the bytes of a picture or a NumPy file.

    Args:
        data: the whole file.
        soft: the values are probabilities: 8- or 16-bit gray, or 8- or 16-bit or float arrays. Floats are always.
        logits: the floats of a NumPy file are what a network gives before its sigmoid.

    Raises:
        MaskError: it cannot be read, has more than two values and is not soft, or a probability lies outside [0, 1].
        LimitError: it is too large.
    """
    if is_array(data):
        array = read_array(data)
        return Mask.from_array(probabilities(array, logits) if soft or logits or array.dtype.kind == "f" else array)
    if logits:
        raise MaskError("logits", expected="a .npy or .npz of floats", got="a picture", fix="leave --logits out")
    return Mask.from_png(data, soft=soft)


def mask_file_like(data: bytes, mask: Mask, *, soft: bool = False, logits: bool = False) -> bytes:
    """A mask in the form of the file that it came as; `data` where nothing is new. Arguments as `read_mask_file`."""
    if not is_array(data):
        return soft_picture_like(data, mask) if soft else mask_picture_like(data, mask)
    array, refined = read_array(data), mask.to_array()
    if soft or logits or array.dtype.kind == "f":
        coarse = read_mask_file(data, soft=True, logits=logits).to_array()
        return array_like(data, rewritten(array, coarse, refined, logits))
    return array_like(data, refined * (array.max() or array.dtype.type(1)))


def _polygons(mask: Mask, *, slits: bool) -> Any:
    outer = mask.to_polygons(slits=slits)
    if not slits and outer and sum(_area(ring) for ring in outer) > mask.area:
        return mask.to_rle()
    return outer


def parts_of(mask: Mask) -> Parts:
    """The rings of each part of a mask, along its pixels' edges."""
    return traced(mask.crop, mask.x, mask.y)


def one_outline(parts: Parts) -> Points:
    """(n, 2) corners x, y of one ring that holds a whole mask: its holes and parts are joined by slits."""
    return joined([joined(rings) for rings in parts])


def _area(ring: list[float]) -> float:
    """Area of a flat polygon, px^2 (shoelace formula)."""
    x, y = np.asarray(ring[0::2]), np.asarray(ring[1::2])
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
