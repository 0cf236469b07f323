"""Bodies: counted as they come, at a least rate, in memory that is reserved for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.types import Receive

from bpr_service.errors import CancelledError, DeadlineError, LimitError, MediaTypeError
from bpr_service.runtime.work import Hold
from bpr_service.server.codec.shared import Block
from bpr_service.server.settings import ServerSettings

CHUNK_BYTES = 1 << 20


async def _parts(receive: Receive, max_bytes: int, settings: ServerSettings, deadline: float) -> AsyncIterator[bytes]:
    """Pieces of a body. Raises `LimitError`, `DeadlineError` (late, or too slow), `CancelledError` (gone)."""
    total, started = 0, time.monotonic()
    more = True
    while more:
        allowed_s = settings.grace_s + total / settings.least_bytes_per_s
        until = min(deadline, started + allowed_s)
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                message = await receive()
        except TimeoutError:
            raise DeadlineError(
                "the body came too slowly",
                expected=f"{settings.least_bytes_per_s} bytes a second after {settings.grace_s:g} s",
                got=f"{total} bytes",
                fix="send it again",
            ) from None
        if message["type"] == "http.disconnect":
            raise CancelledError("the caller went away")
        part = message.get("body", b"")
        total += len(part)
        if total > max_bytes:
            raise _too_long(max_bytes, f"more than {max_bytes}")
        more = message.get("more_body", False)
        yield part


async def read_whole(receive: Receive, max_bytes: int, settings: ServerSettings) -> bytes:
    """A small body. Raises as `_parts` does."""
    deadline = time.monotonic() + settings.timeout_s
    return b"".join([part async for part in _parts(receive, max_bytes, settings, deadline)])


async def read_body(request: Request, hold: Hold, settings: ServerSettings, deadline: float) -> Block:
    """The whole body, in memory that workers can share, reserved in ``hold`` as it comes.

    Raises `LimitError` over the setting, `BusyError` where the server's memory is taken, `DeadlineError` where it comes
    too slowly, `CancelledError` where the caller leaves.
    """
    body = Block()
    reserved = 0
    async for part in _parts(request.receive, settings.max_body_bytes, settings, deadline):
        while body.size + len(part) > reserved:
            hold.reserve(CHUNK_BYTES)
            reserved += CHUNK_BYTES
        body.append(part)
    request.state.received_bytes = body.size
    return body


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
