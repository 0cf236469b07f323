"""Logs: one JSON object a line, each with the request's id, or lines to read at a terminal.

They hold sizes and timings, never contents.
"""

from __future__ import annotations

import logging
import sys
import time
from contextvars import ContextVar
from typing import Any, Literal

import orjson

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""Id of the request that this task works for."""

log = logging.getLogger("bpr_service.server")


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "logger", "message", "request_id", ...}``.

    ``extra={"fields": {...}}`` adds keys, and ``fixed`` are in every line.
    """

    def __init__(self, **fixed: Any) -> None:
        super().__init__()
        self._fixed = fixed

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
            **self._fixed,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    """``12:31:07 warning message key=value ...``; lines given as ``extra={"lines": [...]}`` stand as they are."""

    def format(self, record: logging.LogRecord) -> str:
        if lines := getattr(record, "lines", None):
            return "\n".join(lines)
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()} "
        fields = "".join(f" {key}={value}" for key, value in getattr(record, "fields", {}).items())
        text = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {level}{record.getMessage()}{fields}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def configure_logging(level: str, form: Literal["auto", "json", "text"] = "auto", **fixed: Any) -> None:
    """Send every log line of the process to stderr: as JSON with the keys of ``fixed``, or as text.

    "auto" takes text where stderr is a terminal.
    """
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if text else JsonFormatter(**fixed))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True
    if text:  # what it says of itself, the server says in its own words
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.getLogger("PIL").setLevel(logging.WARNING)
    logging.getLogger("numba").setLevel(logging.WARNING)
