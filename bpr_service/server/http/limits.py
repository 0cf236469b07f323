"""What a request may cost, checked before it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.requests import ClientDisconnect, Request

from bpr_service.errors import CancelledError, DeadlineError, ImageError, LimitError, MaskError, MediaTypeError
from bpr_service.runtime.work import Slot

PICTURES: Mapping[str, tuple[bytes, ...]] = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "WebP": (b"RIFF",),
    "TIFF": (b"II*\x00", b"MM\x00*"),
    "BMP": (b"BM",),
}
"""File types that are decoded at all, by their first bytes; other decoders are never reached."""

CHUNK_BYTES = 1 << 20


async def read_body(request: Request, slot: Slot, max_bytes: int, deadline: float) -> bytes:
    """The whole body, in memory only.

    Raises `LimitError` over ``max_bytes`` (by the header before a byte is read), `BusyError` where the
    server's memory is taken, `DeadlineError` where it comes too slowly, `CancelledError` where the caller
    leaves.
    """
    length = request.headers.get("content-length", "")
    check_length(length, max_bytes)
    if length.isdigit():
        slot.reserve(int(length))
    parts: list[bytes] = []
    total = reserved = 0
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            async for part in request.stream():
                total += len(part)
                if total > max_bytes:
                    raise _too_long(max_bytes, f"more than {max_bytes}")
                if not length.isdigit() and total > reserved:
                    slot.reserve(CHUNK_BYTES)
                    reserved += CHUNK_BYTES
                parts.append(part)
    except TimeoutError:
        raise DeadlineError(
            "the body came too slowly", expected="the whole body", got=f"{total} bytes", fix="send it again"
        ) from None
    except ClientDisconnect:
        raise CancelledError("the caller went away") from None
    request.state.received_bytes = total
    return b"".join(parts)


def check_length(content_length: str, max_bytes: int) -> None:
    """Raise `LimitError` where the header announces more than ``max_bytes``; nothing has been read."""
    if content_length.isdigit() and (len(content_length) > 18 or int(content_length) > max_bytes):
        raise _too_long(max_bytes, f"Content-Length {content_length[:20]}")


def _too_long(max_bytes: int, got: str) -> LimitError:
    return LimitError(
        "the body is too large", expected=f"at most {max_bytes} bytes", got=got, fix="send fewer masks, or use a job"
    )


async def disconnected(request: Request) -> None:
    """Return when the caller goes away; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def media_type(request: Request, allowed: tuple[str, ...]) -> str:
    """The content type of the body without its parameters; `MediaTypeError` where it is not ``allowed``."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in allowed:
        raise MediaTypeError(
            "the body's content type",
            expected=" or ".join(allowed),
            got=kind[:80] or "none",
            fix="set the header Content-Type",
        )
    return kind


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
