"""The one exception tree of the project.

::

    BprError                     has .code (a short slug) and .http_status
    ├── InputError          422  what a person sent cannot be used
    │   ├── ImageError      422  the image: truncated, of a type not known, empty
    │   ├── MaskError       422  a mask: of another size, runs that do not add up, ...
    │   ├── FormatError     422  a prediction or annotation file, with its path and position
    │   ├── BodyError       400  a body that is not what its type says: no JSON, a broken multipart, no base64
    │   ├── MediaTypeError  415  a body of another content type
    │   └── LimitError      413  more pixels, masks, runs or bytes than the settings allow
    ├── ConfigError         422  a setting of the wrong type or out of range
    │   └── UnknownName     422  a preset, model, network, task, ... that does not exist
    ├── ModelError          422  a model version that is missing, damaged or of another network
    ├── DeviceError         503  a device that is not there, or that failed
    │   └── FatalDeviceError 503 the device is gone for this process
    ├── AuthError           401  no key, or a wrong one
    │   └── ForbiddenError  403  a key that may not do this
    ├── NotFoundError       404  a job, model version or file that does not exist
    ├── ConflictError       409  the thing exists in a state that does not allow this
    ├── BusyError           429  the queue is full, or a rate is exceeded (.retry_after_s)
    ├── NotReadyError       503  starting, draining, or the engine has stopped (.retry_after_s)
    ├── StorageError        503  a folder or object store that refuses, or cannot be reached
    ├── DeadlineError       504  the deadline passed before the work was done
    └── CancelledError      499  the caller went away or cancelled

Every message says what was expected, what came, and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, ClassVar

_COMMAND = re.compile(r"(bpr|bpr-train|pip|make|uv) ")
"""A fix that is typed as it stands."""


class BprError(Exception):
    """Base of every error that the project raises on purpose."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str = "", *, expected: str = "", got: str = "", fix: str = "") -> None:
        """Build the message ``message: expected E, got G. FIX`` from the parts that are given."""
        self.expected, self.got, self.fix = (printable(part) for part in (expected, got, fix))
        text = message
        if expected:
            text += f"{': ' if text else ''}expected {expected}"
        if got:
            text += f"{', ' if expected else ': ' if text else ''}got {got}"
        if fix:
            text += f". {fix if _COMMAND.match(fix) else fix[0].upper() + fix[1:]}"
        super().__init__(printable(text))


def printable(text: str) -> str:
    """`text` as every terminal and every JSON can show it: half a surrogate pair is written as its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def fields_of(error: BprError) -> dict[str, Any]:
    """What an error says, JSON-ready: ``rebuild(**fields_of(error))`` is the same error in another process."""
    names = ("expected", "got", "fix", "pointer", "faults", "retry_after_s")
    parts = {name: getattr(error, name) for name in names if getattr(error, name, None)}
    return {"code": error.code, "message": str(error), **parts}


def rebuild(code: str, message: str, **parts: Any) -> BprError:
    """The error that ``code`` names, with its message and parts as they were; a `BprError` where none has the code."""
    kind = _by_code().get(code, BprError)
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    for name, value in {"expected": "", "got": "", "fix": "", **parts}.items():
        setattr(error, name, value)
    if issubclass(kind, BusyError | NotReadyError):
        error.__dict__.setdefault("retry_after_s", 1.0)
    return error


def _by_code() -> dict[str, type[BprError]]:
    kinds: dict[str, type[BprError]] = {}
    waiting: list[type[BprError]] = [BprError]
    while waiting:
        kind = waiting.pop()
        kinds.setdefault(kind.code, kind)
        waiting.extend(kind.__subclasses__())
    return kinds


class InputError(BprError):
    code, http_status = "invalid_input", 422


class ImageError(InputError):
    code = "invalid_image"


class MaskError(InputError):
    code = "invalid_mask"


class FormatError(InputError):
    code = "invalid_file"


class BodyError(InputError):
    code, http_status = "malformed_body", 400


class MediaTypeError(InputError):
    code, http_status = "unsupported_media_type", 415


class LimitError(InputError):
    code, http_status = "too_large", 413


class ConfigError(BprError):
    code, http_status = "invalid_setting", 422


class UnknownName(ConfigError):
    """A name that is not in a fixed list; the message lists the known ones."""

    code = "unknown_name"

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        names = sorted(set(known))
        close = get_close_matches(str(name), names, n=1)
        fix = f"Did you mean {close[0]!r}?" if close else f"Choose one of the known {kind}s"
        super().__init__(f"unknown {kind}", expected=f"one of {', '.join(names)}", got=repr(name), fix=fix)


class ModelError(BprError):
    code, http_status = "invalid_model", 422


class DeviceError(BprError):
    code, http_status = "device", 503


class FatalDeviceError(DeviceError):
    code = "device_failed"


class AuthError(BprError):
    code, http_status = "unauthorized", 401


class ForbiddenError(AuthError):
    code, http_status = "forbidden", 403


class NotFoundError(BprError):
    code, http_status = "not_found", 404


class ConflictError(BprError):
    code, http_status = "conflict", 409


class BusyError(BprError):
    code, http_status = "busy", 429

    def __init__(self, message: str = "", *, retry_after_s: float = 1.0, **parts: str) -> None:
        super().__init__(message, **parts)
        self.retry_after_s = retry_after_s


class NotReadyError(BprError):
    code, http_status = "not_ready", 503

    def __init__(self, message: str = "", *, retry_after_s: float = 1.0, **parts: str) -> None:
        super().__init__(message, **parts)
        self.retry_after_s = retry_after_s


class StorageError(BprError):
    code, http_status = "storage", 503


class DeadlineError(BprError):
    code, http_status = "deadline", 504


class CancelledError(BprError):
    code, http_status = "cancelled", 499


OWN_FAULTS = (InputError, NotFoundError, ForbiddenError)
"""What is wrong with one image or prediction itself, so that the others go on; a store that refuses is not."""
