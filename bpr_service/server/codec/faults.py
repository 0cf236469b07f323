"""What is wrong with a request, and where in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bpr_service.errors import BodyError, BprError, InputError, printable

MAX_FAULTS = 10
"""Faults that one answer lists."""
MAX_NAME = 60
"""Characters of a key that an answer shows."""

_E = TypeVar("_E", bound=BprError)
_M = TypeVar("_M", bound=BaseModel)


def located(error: _E, pointer: str) -> _E:
    """``error``, which lies at ``pointer`` in the request (a JSON pointer, RFC 6901), where it has no place yet."""
    if not getattr(error, "pointer", None):
        error.pointer = pointer  # type: ignore[attr-defined]
    return error


def validated(kind: type[_M], value: Any) -> _M:
    """``value`` as a ``kind``. Raises `InputError` with the first faults and their pointers.

    Keys that are not known are looked for first: pydantic would make a fault of each.
    """
    check_keys(kind, value, "")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_context=False)) from None
    except RecursionError:
        raise BodyError("the body is nested too deeply", expected="the documented shape", fix="see /docs") from None


def check_keys(kind: type[BaseModel], value: Any, pointer: str) -> None:
    """Raise `InputError` for a key that ``kind``, or a model in one of its fields, does not know."""
    if not isinstance(value, Mapping):
        return
    if kind.model_config.get("extra") == "forbid" and (odd := value.keys() - kind.model_fields.keys()):
        name = min(odd)[:MAX_NAME]
        where = f"{pointer}/{name}"
        known = ", ".join(kind.model_fields)
        raise invalid([{"loc": where.split("/")[1:], "msg": f"Not permitted: the keys are {known}", "input": name}])
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            check_keys(field.annotation, value.get(name), f"{pointer}/{name}")


def invalid(faults: Any) -> InputError:
    """Pydantic's faults (``loc``, ``msg``, ``input``) as one error that lists the first of them."""
    listed = [
        {
            "pointer": printable("/" + "/".join(str(part)[:MAX_NAME] for part in fault["loc"])),
            "expected": fault["msg"],
            "got": _short(fault.get("input")),
        }
        for fault in faults[:MAX_FAULTS]
    ]
    first = listed[0]
    problem = InputError(
        f"the request is not valid at {first['pointer']}",
        expected=first["expected"][:1].lower() + first["expected"][1:],
        got=first["got"],
        fix="see /docs for the request's shape",
    )
    problem.faults = listed  # type: ignore[attr-defined]
    return problem


def _short(value: Any) -> str:
    """What came, in a few characters: a large value is named by its type and length."""
    if isinstance(value, str | bytes | list | dict) and len(value) > 20:
        return f"{type(value).__name__} of length {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
