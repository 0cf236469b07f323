"""Errors over HTTP: one JSON shape (RFC 9457 problem details), from the one exception tree."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from bpr_service.errors import BprError, BusyError, NotReadyError
from bpr_service.server.codec.faults import invalid
from bpr_service.server.logs import request_id

PROBLEM_JSON = "application/problem+json"


def problem_response(error: BaseException) -> Response:
    """The answer for any exception; one that is not ours tells nothing but that it happened."""
    headers: dict[str, str] = {}
    if isinstance(error, RequestValidationError):
        error = invalid(error.errors())
    if isinstance(error, BprError):
        status, code, detail = error.http_status, error.code, str(error)
    elif isinstance(error, HTTPException):
        status, code, detail = error.status_code, _slug(error.status_code), str(error.detail)
        headers.update(error.headers or {})
    else:
        status, code = 500, "internal"
        detail = "The server failed on this request. It was logged under the request id."
    body: dict[str, Any] = {
        "type": f"urn:bpr:problem:{code}",
        "title": _title(status),
        "status": status,
        "code": code,
        "detail": detail,
        "request_id": request_id.get(),
    }
    if isinstance(error, BprError) and status < 500:
        body.update({k: getattr(error, k) for k in ("expected", "got", "fix") if getattr(error, k, "")})
        body.update({k: getattr(error, k) for k in ("pointer", "faults") if getattr(error, k, None)})
    if isinstance(error, BusyError | NotReadyError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif status == 503:
        headers["Retry-After"] = "5"
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="bpr"'
    return Response(orjson.dumps(body), status, headers, PROBLEM_JSON)


def _title(status: int) -> str:
    if status == 499:
        return "Client Closed Request"
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _slug(status: int) -> str:
    return _title(status).lower().replace(" ", "_")
