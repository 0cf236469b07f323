"""Pictures, bounded by their headers: type, size, frames, scans, and what decoding them will take."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import ImageError, LimitError, MaskError
from bpr_service.kernel import kernel
from bpr_service.masks import images
from bpr_service.server.codec.memory import PICTURE_BYTES, PROGRESSIVE_BYTES, TURNED_BYTES, WIDE_BYTES, Allowance

PICTURES = {name: starts for name, starts in images.FIRST_BYTES.items() if name.upper() in images.PICTURE_FORMATS}
"""File types that are decoded at all, by their first bytes, and AVIF; other decoders are never reached."""
KINDS = ", ".join([*PICTURES, "AVIF"])
MAX_SCANS = 64
"""Scans of a JPEG: each goes over the whole picture once more. Usual progressive files have ten."""
MAX_SCANNED = 16
"""Times ``max_pixels`` that all scans together may go over."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture's header says: height and width in px, and the passing memory that decoding takes."""

    height: int
    width: int
    decode_bytes: int


def read_header(data: bytes, max_pixels: int, allowance: Allowance, what: str = "image") -> Header:
    """The header of a picture; nothing is decoded, and what decoding takes is taken.

    Args:
        data: the file's bytes.
        max_pixels: pixels that it may have.
        allowance: where the passing memory of decoding is taken from.
        what: what the picture is called in an error; "image" raises `ImageError`, anything else `MaskError`.

    Raises:
        ImageError, MaskError: a type that is not in `PICTURES`, or a header that cannot be read.
        LimitError: too many pixels, frames or scans.
        LimitError, BusyError: the memory cannot be had, or not now.
    """
    error = ImageError if what == "image" else MaskError
    known = data.startswith(tuple(start for starts in PICTURES.values() for start in starts))
    if not (known or is_avif(data) or (is_heic(data) and images.reads("HEIF"))):
        got = "no bytes" if not data else f"{len(data)} bytes of another type"
        raise error(f"the {what} is not a picture", expected=KINDS, got=got, fix="send one of these")
    height, width = webp_size(data)  # its decoder has room for the whole picture as soon as it is opened
    images.check_pixels(height, width, max_pixels, what)
    allowance.at_least(PICTURE_BYTES["WEBP"] * height * width)
    try:
        found = images.read_header(io.BytesIO(data), max_pixels=max_pixels, what=what, error=error)
    except error:
        got = f"{len(data)} bytes"
        raise error(f"the {what} is damaged", expected="a whole file", got=got, fix="send it again") from None
    pixels = found.height * found.width
    if found.pages != 1 and found.kind not in ("TIFF", "MPO"):  # of these one page is read
        got = str(found.pages)
        raise LimitError(f"the {what} is animated", expected="one frame", got=got, fix="send one frame")
    scans = count_scans(data) if found.kind in ("JPEG", "MPO") else 1
    if scans > MAX_SCANS or scans * pixels > MAX_SCANNED * max_pixels:
        raise LimitError(
            f"the {what} has too many scans",
            expected=f"at most {min(MAX_SCANS, MAX_SCANNED * max_pixels // pixels)} of this size",
            got=str(scans),
            fix="save it as a baseline JPEG, or as PNG",
        )
    wide, turned = found.mode.startswith(("I", "F")), found.orientation != 1
    factor = PICTURE_BYTES[found.kind] + PROGRESSIVE_BYTES * found.progressive + WIDE_BYTES * wide
    header = Header(found.height, found.width, (factor + TURNED_BYTES * turned) * pixels + 2 * len(data))
    allowance.at_least(header.decode_bytes)
    return header


def is_avif(data: bytes) -> bool:
    """Whether the bytes begin as an AVIF file does."""
    return data[4:12] in (b"ftypavif", b"ftypavis", b"ftypmif1")


def is_heic(data: bytes) -> bool:
    """Whether the bytes begin as a HEIC file does."""
    return data[4:12] in (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")


def webp_size(data: bytes) -> tuple[int, int]:
    """Height and width in px of a WebP file, by its first chunk; (0, 0) where it is none."""
    kind, said = data[12:16], data[20:30]
    if data[8:12] != b"WEBP" or len(said) < 10:
        return 0, 0
    if kind == b"VP8X":
        return 1 + int.from_bytes(said[7:10], "little"), 1 + int.from_bytes(said[4:7], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(said[1:5], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(said[8:10], "little") & 0x3FFF, int.from_bytes(said[6:8], "little") & 0x3FFF
    return 0, 0


@kernel
def _scans(data: NDArray[np.uint8]) -> int:
    """Start-of-scan markers of a JPEG: segments are skipped by their length, entropy-coded data is searched."""
    n, at = 0, 2
    while at + 3 < data.size:
        if data[at] != 255 or data[at + 1] == 0 or data[at + 1] == 255 or 208 <= data[at + 1] <= 215:
            at += 1  # inside of coded data, a stuffed byte, a filler or a restart marker
            continue
        marker = data[at + 1]
        if marker == 217:  # end of image
            break
        n += marker == 218
        high, low = np.int64(data[at + 2]), np.int64(data[at + 3])
        at = int(at + 2 + max(np.int64(2), 256 * high + low))
    return n


def count_scans(data: bytes) -> int:
    """How often a JPEG's decoder goes over the picture."""
    return int(_scans(np.frombuffer(data, np.uint8)))


def check_size(data: bytes, height: int, width: int, max_pixels: int, allowance: Allowance, what: str) -> Header:
    """The header of a picture of the image's size. Raises `MaskError` where it is of another; see `read_header`."""
    header = read_header(data, max_pixels, allowance, what)
    if (header.height, header.width) != (height, width):
        raise MaskError(
            f"the {what} is of another size than the image",
            expected=f"{height} x {width} (height x width)",
            got=f"{header.height} x {header.width}",
            fix="scale it to the image, with nearest-neighbour",
        )
    return header


def check_runs(segmentation: Any, max_runs: int) -> None:
    """Raise `LimitError` where an RLE has more than ``max_runs`` runs, or polygons more points.

    Nothing is decoded.
    """
    if isinstance(segmentation, Mapping):
        counts = segmentation.get("counts", ())
        if isinstance(counts, str):
            codes = np.frombuffer(counts.encode("utf-8", "replace"), np.uint8)
            n, what = int(np.count_nonzero((codes - np.uint8(48)) & 32 == 0)), "runs"
        else:
            n, what = len(counts), "runs"
    elif isinstance(segmentation, list):
        n, what = sum(len(part) for part in segmentation) // 2, "points"
    else:
        return
    if n > max_runs:
        raise LimitError(
            "the mask is too ragged", expected=f"at most {max_runs} {what}", got=str(n), fix="simplify the mask"
        )
