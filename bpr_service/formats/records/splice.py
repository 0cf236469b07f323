"""Change values inside a JSON text and leave every other byte of it as it was."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

Path = tuple[str | int, ...]
"""Keys and positions from the top of a document to a value."""
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def splice(data: bytes, new: Mapping[str, Any]) -> bytes:
    """The bytes of a JSON object with the values of some of its keys replaced; every other byte stays.

    Keys that the object does not have are left out.
    """
    return splice_at(data, {(key,): value for key, value in new.items()})


def splice_at(data: bytes, new: Mapping[Path, Any]) -> bytes:
    """The bytes of a JSON document with the values at some paths replaced; every other byte stays.

    Paths that the document does not have are left out.
    """
    text = data.decode("utf-8")
    tree: dict[Any, Any] = {}
    for path, value in new.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = _New(value)
    parts, done = [], 0
    found: list[tuple[int, int, Any]] = []
    _walk(text, _skip(text, int(text.startswith("\ufeff"))), tree, found)
    for start, end, value in found:
        parts += [text[done:start], json.dumps(value, separators=(",", ":"))]
        done = end
    return "".join([*parts, text[done:]]).encode("utf-8")


class _New:
    def __init__(self, value: Any) -> None:
        self.value = value


def _walk(text: str, at: int, wanted: Any, found: list[tuple[int, int, Any]]) -> int:
    """Note where the wanted parts of the value at ``at`` begin and end; the position behind the value."""
    if wanted is None or isinstance(wanted, _New) or text[at] not in "{[":
        end: int = _DECODER.raw_decode(text, at)[1]
        if isinstance(wanted, _New):
            found.append((at, end, wanted.value))
        return end
    is_object, number = text[at] == "{", 0
    at = _skip(text, at + 1)
    while text[at] not in "}]":
        key: str | int = number
        if is_object:
            key, at = _DECODER.raw_decode(text, at)
            at = _skip(text, text.index(":", at) + 1)
        at = _skip(text, _walk(text, at, wanted.get(key), found))
        number += 1
        if text[at] == ",":
            at = _skip(text, at + 1)
    return at + 1


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
