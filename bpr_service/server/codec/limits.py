"""What a request may cost, checked before it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bpr_service.errors import ImageError, LimitError, MaskError

PICTURES: Mapping[str, tuple[bytes, ...]] = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "WebP": (b"RIFF",),
    "TIFF": (b"II*\x00", b"MM\x00*"),
    "BMP": (b"BM",),
}
"""File types that are decoded at all, by their first bytes; other decoders are never reached."""


def picture_size(data: bytes, max_pixels: int, what: str = "image") -> tuple[int, int]:
    """(H, W) in px from the header, nothing decoded.

    Raises `ImageError` for a type that is not in `PICTURES` or a header that cannot be read, `LimitError`
    over ``max_pixels``.
    """
    from io import BytesIO

    from PIL import Image, UnidentifiedImageError

    error = ImageError if what == "image" else MaskError
    if not data.startswith(tuple(start for starts in PICTURES.values() for start in starts)):
        got = "no bytes" if not data else f"{len(data)} bytes of another type"
        raise error(f"the {what} is not a picture", expected=", ".join(PICTURES), got=got, fix="send one of these")
    try:
        with Image.open(BytesIO(data), formats=[kind.upper() for kind in PICTURES]) as picture:
            width, height = picture.size
    except Image.DecompressionBombError:
        raise _too_many_pixels(what, max_pixels, "far more") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, OverflowError):
        raise error(
            f"the {what} is damaged", expected="a whole file", got=f"{len(data)} bytes", fix="send it again"
        ) from None
    if height * width > max_pixels:
        raise _too_many_pixels(what, max_pixels, f"{height} x {width} = {height * width}")
    return height, width


def _too_many_pixels(what: str, max_pixels: int, got: str) -> LimitError:
    return LimitError(
        f"the {what} is too large", expected=f"at most {max_pixels} pixels", got=got, fix="scale it down or cut it up"
    )


def check_runs(segmentation: Any, max_runs: int) -> None:
    """Raise `LimitError` where an RLE has more than ``max_runs`` runs, or polygons more points; nothing is
    decoded.
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
