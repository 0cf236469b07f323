"""The gate before every route: who calls, from where, how much, how fast. Nothing is parsed before it is passed.

What all answers have in common is done here too: request id, security headers, metrics, access log, last resort.
"""

from __future__ import annotations

import asyncio
import errno
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bpr_service.errors import BprError, CancelledError, NotReadyError
from bpr_service.server.http.access import SMALL_BYTES, Access, access_to, check_origin
from bpr_service.server.http.auth import Keys
from bpr_service.server.http.body import check_length, read_whole
from bpr_service.server.http.problems import problem_response
from bpr_service.server.logs import log, request_id
from bpr_service.server.metrics import Metrics
from bpr_service.server.settings import ServerSettings

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
SCARCE = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EIO}
PIECE_BYTES = 64 << 10
"""What is handed to a connection at a time: no more than about twice that waits in it."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Gate:
    """Pure ASGI, so that a disconnect reaches the routes and bodies are not copied."""

    def __init__(self, app: ASGIApp, keys: Keys, metrics: Metrics, settings: ServerSettings) -> None:
        self._app, self._keys, self._metrics, self._settings = app, keys, metrics, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        rid = given if _ID.fullmatch(given) else uuid.uuid4().hex
        token = request_id.set(rid)
        answer = Answer(send, rid, self._settings, scope.get("bpr.abort"))
        started = time.perf_counter()
        self._metrics.in_flight.inc()
        try:
            receive = await self._pass(scope, headers, receive)
            await self._app(scope, receive, answer.send)
        except Exception as error:
            if not isinstance(error, BprError):
                log.exception("request failed")
            if is_scarce(error):
                error = NotReadyError("the machine is short of what this takes", fix="try again", retry_after_s=5.0)
            if isinstance(error, BprError):
                self._metrics.rejected.labels(error.code).inc()
            if answer.status == 0:
                await problem_response(error)(scope, receive, answer.send)
        finally:
            for free in scope.get("state", {}).pop("frees", ()):
                free()
            self._metrics.in_flight.dec()
            self._record(scope, answer, time.perf_counter() - started)
            request_id.reset(token)

    async def _pass(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """Let the call through, or raise. Returns where its body comes from: a small one has been read."""
        needs: Access = access_to(scope["method"], scope["path"])
        state = scope.setdefault("state", {})
        if needs.scope is not None:
            check_origin(headers, self._settings.allowed_hosts, bool(self._keys))
            state["caller"] = self._keys.check(headers.get("authorization"), needs.scope)
        most = self._settings.max_body_bytes if needs.large else min(SMALL_BYTES, self._settings.max_body_bytes)
        check_length(headers.get("content-length", ""), most)
        if needs.large:
            return receive
        body = await read_whole(receive, most, self._settings)

        sent = False

        async def again() -> Message:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        return again

    def _record(self, scope: Scope, answer: Answer, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        status = answer.status or CancelledError.http_status
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.latency.labels(route).observe(seconds)
        state = scope.get("state", {})
        fields = {
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(seconds * 1e3, 1),
            "received_bytes": state.get("received_bytes", 0),
            "sent_bytes": answer.sent_bytes,
            "key": getattr(state.get("caller"), "name", None),
            **state.get("log", {}),
        }
        log.info("request", extra={"fields": fields})


def is_scarce(error: Exception) -> bool:
    """Whether it is no fault of the program: memory, descriptors, processes or room are short."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in SCARCE)


class Answer:
    """An answer on its way: with the headers that all have, in small pieces, and not for ever."""

    def __init__(self, send: Send, rid: str, settings: ServerSettings, abort: Callable[[], None] | None) -> None:
        self._send, self._rid, self._settings, self._abort = send, rid, settings, abort
        self._until = 0.0
        self.status = 0
        self.sent_bytes = 0

    async def send(self, message: Message) -> None:
        """Pass a message on; `CancelledError` where the caller takes it too slowly, whose connection is cut."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._rid
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
            await self._send(message)
            return
        body, more = memoryview(message.get("body", b"")), message.get("more_body", False)
        for start in range(0, max(1, len(body)), PIECE_BYTES):
            piece = bytes(body[start : start + PIECE_BYTES])
            last = start + PIECE_BYTES >= len(body)
            await self._in_time({**message, "body": piece, "more_body": more or not last})
            self.sent_bytes += len(piece)

    async def _in_time(self, message: Message) -> None:
        seconds = self._settings.grace_s + PIECE_BYTES / self._settings.least_bytes_per_s
        try:
            async with asyncio.timeout(seconds):
                await self._send(message)
        except TimeoutError:
            if self._abort is not None:
                self._abort()
            raise CancelledError("the answer was taken too slowly") from None
