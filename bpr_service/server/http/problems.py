"""Errors over HTTP: one JSON shape (RFC 9457 problem details), from the one exception tree."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from bpr_service.errors import BprError, BusyError, InputError, NotReadyError
from bpr_service.server.logs import request_id

PROBLEM_JSON = "application/problem+json"
MAX_ERRORS = 10
"""Faults that one answer lists."""


def located(error: BprError, pointer: str) -> BprError:
    """Say where in the request ``error`` lies: a JSON pointer (RFC 6901)."""
    if not getattr(error, "pointer", None):
        error.pointer = pointer  # type: ignore[attr-defined]
    return error


def invalid(error: ValidationError | RequestValidationError) -> InputError:
    """Pydantic's complaint as one `InputError` that lists the first faults with pointers."""
    faults = [
        {
            "pointer": "/" + "/".join(str(part) for part in fault["loc"]),
            "expected": fault["msg"],
            "got": _short(fault.get("input")),
        }
        for fault in error.errors()[:MAX_ERRORS]
    ]
    first = faults[0]
    problem = InputError(
        f"the request is not valid at {first['pointer']}",
        expected=first["expected"][:1].lower() + first["expected"][1:],
        got=first["got"],
        fix="see /docs for the request's shape",
    )
    problem.faults = faults  # type: ignore[attr-defined]
    return problem


def _short(value: Any) -> str:
    """What came, in a few characters: a large value is named by its type and length."""
    if isinstance(value, str | bytes | list | dict) and len(value) > 20:
        return f"{type(value).__name__} of length {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def problem_response(error: BaseException) -> Response:
    """The answer for any exception; one that is not ours tells nothing but that it happened."""
    headers: dict[str, str] = {}
    if isinstance(error, RequestValidationError):
        error = invalid(error)
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
