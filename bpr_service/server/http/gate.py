"""What every answer passes: request id, security headers, metrics, the access log, and the last resort."""

from __future__ import annotations

import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bpr_service.errors import BprError, CancelledError
from bpr_service.server.http.limits import check_length
from bpr_service.server.http.problems import problem_response
from bpr_service.server.logs import log, request_id
from bpr_service.server.metrics import Metrics

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

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


class Edge:
    """Pure ASGI, so that a disconnect reaches the routes and bodies are not copied."""

    def __init__(self, app: ASGIApp, metrics: Metrics, max_body_bytes: int) -> None:
        self._app = app
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope)
        given = asked.get("x-request-id", "")
        rid = given if _ID.fullmatch(given) else uuid.uuid4().hex
        token = request_id.set(rid)
        started = time.perf_counter()
        status = 0
        sent_bytes = 0

        async def answer(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = rid
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            elif message["type"] == "http.response.body":
                sent_bytes += len(message.get("body", b""))
            await send(message)

        self._metrics.in_flight.inc()
        try:
            check_length(asked.get("content-length", ""), self._max_body_bytes)
            await self._app(scope, receive, answer)
        except Exception as error:
            if not isinstance(error, BprError):
                log.exception("request failed")
            if status == 0:
                await problem_response(error)(scope, receive, answer)
        finally:
            self._metrics.in_flight.dec()
            self._record(scope, status or CancelledError.http_status, time.perf_counter() - started, sent_bytes)
            request_id.reset(token)

    def _record(self, scope: Scope, status: int, seconds: float, sent_bytes: int) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.latency.labels(route).observe(seconds)
        state = scope.get("state", {})
        fields = {
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(seconds * 1e3, 1),
            "received_bytes": state.get("received_bytes", 0),
            "sent_bytes": sent_bytes,
            "key": state.get("key_name"),
            **state.get("log", {}),
        }
        log.info("request", extra={"fields": fields})
