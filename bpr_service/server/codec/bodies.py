"""Bodies as they come, JSON, base64 and multipart, parsed in memory: no part of a request touches a disk."""

from __future__ import annotations

import binascii
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from bpr_service.errors import BodyError, InputError, LimitError
from bpr_service.formats.records.dress import BOM, comma_too_many, dress_of
from bpr_service.server.codec.faults import located
from bpr_service.server.codec.memory import PARSER_MAPS, Allowance, json_bytes, longest_number

MAX_PARTS = 4096
EXACT_DIGITS = 18
"""Whole numbers of more digits may not fit 64 bits, and are read by the reader that keeps them whole."""


@dataclass(slots=True)
class Part:
    """One part of the form."""

    name: str = ""
    filename: str = ""
    media_type: str = ""
    data: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def parse_multipart(body: bytes, content_type: str) -> list[Part]:
    """The parts of a ``multipart/form-data`` body, in order.

    Raises `BodyError` where the boundary is missing or the body breaks off, `LimitError` over `MAX_PARTS`.
    """
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise BodyError(
            "a multipart body", expected="a boundary in Content-Type", got="none", fix="let your client set it"
        )
    collector = _Collector()
    try:
        parser = MultipartParser(boundary, collector.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise BodyError(
            "the multipart body is broken", expected="whole parts", got=str(error), fix="send it again"
        ) from None
    if not collector.ended:
        raise BodyError("the multipart body breaks off", expected="a closing boundary", fix="send it again")
    for part in collector.parts:
        _, disposition = parse_options_header(part.headers.get("content-disposition", ""))
        part.name = disposition.get(b"name", b"").decode("utf-8", "replace")
        part.filename = disposition.get(b"filename", b"").decode("utf-8", "replace")
        part.media_type = part.headers.get("content-type", "").partition(";")[0].strip().lower()
    return collector.parts


class _Collector:
    """Callbacks of the parser that gather headers and slices of the body."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._name = self._value = b""
        self._data: list[bytes] = []

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) >= MAX_PARTS:
            raise LimitError("too many parts", expected=f"at most {MAX_PARTS}", got="more", fix="send fewer masks")
        self.parts.append(Part())
        self._data = []

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self.parts[-1].headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._name = self._value = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _part_end(self) -> None:
        self.parts[-1].data = b"".join(self._data)
        self._data = []

    def _end(self) -> None:
        self.ended = True


# ---------------------------------------------------------------- JSON and base64


def load_json(body: bytes | memoryview, allowance: Allowance, *, lines: bool = False) -> Any:
    """``body`` as JSON, its numbers and texts exactly as they stand.

    Args:
        body: the bytes that came.
        allowance: the memory that its values may take.
        lines: JSON lines become a list.

    Raises:
        BodyError: it is none, is packed, is nested too deeply to be read, or has a NaN, for which JSON has no word.
    """
    if bytes(body[: len(BOM)]) == BOM:
        body = body[len(BOM) :]
    dress = dress_of(bytes(body[:8]))
    if dress is not None and not dress[0].startswith("UTF"):  # the reader of files knows UTF-16 and UTF-32
        raise BodyError(f"JSON that is {dress[0]}", expected="JSON as UTF-8 text", got=dress[0], fix=dress[1])
    text = np.frombuffer(body, np.uint8)
    allowance.take(json_bytes(text))
    try:
        if longest_number(text) <= EXACT_DIGITS:
            with allowance.room(PARSER_MAPS * len(body)):
                return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass  # what it refuses may be half a surrogate pair, which files do have
    try:
        return _read_exactly(bytes(body), lines)
    except (ValueError, RecursionError) as error:
        comma = comma_too_many(error.doc, error.pos) if isinstance(error, json.JSONDecodeError) else None
        got = f"{len(body)} bytes: {comma or str(error)[:100]}"
        fix = "remove the trailing comma" if comma else "check how it is written"
        raise BodyError("the body is not JSON", expected="a JSON object", got=got, fix=fix) from None


def _read_exactly(body: bytes, lines: bool) -> Any:
    try:
        return json.loads(body, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        if not lines or not error.msg.startswith("Extra data") or not body.lstrip().startswith(b"{"):
            raise
    return [json.loads(line, parse_constant=_no_number) for line in body.splitlines() if line.strip()]


def _no_number(word: str) -> Any:
    raise ValueError(f"{word}, which is no JSON number: leave the key out, or send null")


def decode_base64(text: str, pointer: str) -> bytes:
    """The bytes of base64 ``text``, with or without a data URI's head; `BodyError` (400) where it is none."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        spaced = any(space in text for space in " \t\r\n")
        plain = text.encode("ascii").translate(None, b" \t\r\n") if spaced else text
        return binascii.a2b_base64(plain, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        got = f"{len(text)} characters: {str(error)[:60]}"
        raise located(
            BodyError("not base64", expected="base64", got=got, fix="encode the file's bytes"), pointer
        ) from None


def check_plain(value: Any, pointer: str) -> None:
    """Raise `InputError` for what cannot be sent back: whole numbers beyond 64 bits, half a surrogate pair."""
    try:
        orjson.dumps(value)
    except TypeError as error:
        fault = InputError(
            "its own keys", expected="plain JSON of 64-bit numbers", got=str(error), fix="leave them out"
        )
        raise located(fault, pointer) from None


def json_text(value: Any) -> str:
    """JSON of any value in ASCII, long whole numbers and half surrogate pairs as they are.

    Not by orjson, which makes room for many times the text and ends the process where it gets none.
    """
    return json.dumps(value, separators=(",", ":"))
