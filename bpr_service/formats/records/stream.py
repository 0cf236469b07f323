"""Read a JSON file of any size item by item, with byte positions.

The C scanner of the standard library decodes one item at a time out of a sliding buffer, so memory holds one
item and one block, whatever the size of the file, and a mistake is reported with its byte position.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any, BinaryIO, Literal, NamedTuple

from bpr_service.errors import FormatError
from bpr_service.formats.records.dress import comma_too_many, dress_of

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = JSONDecoder()
_TOKEN_CHARS = 16  # a literal, number or escape cut off by the end of the buffer starts within this many
MAX_ITEM_CHARS = 64 << 20
_NO_COMMA = "remove the trailing comma"


class Event(NamedTuple):
    """One thing met in the file; ``start`` and ``end`` are byte positions, ``end`` exclusive.

    ``value``: a top-level key that holds no array. ``open``/``close``: the brackets of a top-level array.
    ``item``: one element of that array. ``key`` is None where the whole file is one array.
    """

    kind: Literal["value", "open", "item", "close"]
    key: str | None
    start: int
    end: int
    value: Any = None


class _Scanner:
    """A cursor over the text of a binary file that knows the byte position of every character it passes."""

    def __init__(self, file: BinaryIO, name: str, block_bytes: int) -> None:
        self.file, self.name, self.block_bytes = file, name, block_bytes
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text, self.pos, self.byte = "", 0, 0
        self.bytes_read, self.at_end = 0, False

    def fail(self, message: str, pos: int, fix: str = "the file may be cut off or damaged") -> FormatError:
        byte = self.byte + self._width(self.pos, pos)
        return FormatError(f"{self.name}: broken JSON at byte {byte:,}".replace(",", ""), got=message, fix=fix)

    def _width(self, start: int, end: int) -> int:
        part = self.text[start:end]
        return len(part) if part.isascii() else len(part.encode())

    def fill(self, amount: int) -> None:
        """Drop what is behind the cursor and read ``amount`` more bytes."""
        data = self.file.read(amount)
        if self.bytes_read == 0:
            self._refuse_other_dress(data)
        pending = len(self.decoder.getstate()[0])
        try:
            more = self.decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            byte = self.bytes_read - pending + error.start
            raise FormatError(
                f"{self.name}: broken JSON at byte {byte}", expected="UTF-8 text", got=error.reason
            ) from None
        self.at_end = not data
        if self.bytes_read == 0 and more.startswith("\ufeff"):  # a byte order mark
            more, self.byte = more[1:], 3
        self.bytes_read += len(data)
        self.text, self.pos = self.text[self.pos :] + more, 0

    def _refuse_other_dress(self, data: bytes) -> None:
        """Say which dress JSON has come in that its bytes cannot be read where they lie."""
        if dress := dress_of(data, pictures=True):
            raise FormatError(f"{self.name}: {dress[0]}", expected="JSON as UTF-8 text", got=dress[0], fix=dress[1])

    def move(self, pos: int) -> None:
        self.byte += self._width(self.pos, pos)
        self.pos = pos

    def peek(self) -> str:
        """The next character that is no white space, '' at the end of the file; the cursor is on it."""
        while True:
            match = _SPACE.match(self.text, self.pos)
            assert match is not None
            self.move(match.end())
            if self.pos < len(self.text) or self.at_end:
                return self.text[self.pos : self.pos + 1]
            self.fill(self.block_bytes)

    def take(self, expected: str) -> str:
        """Step over one of the ``expected`` characters and return it."""
        char = self.peek()
        if not char or char not in expected:
            wanted = " or ".join(repr(c) for c in expected)
            raise self.fail(f"{char!r} where {wanted} belongs" if char else "the end of the file", self.pos)
        self.move(self.pos + 1)
        return char

    def value(self) -> tuple[Any, int, int]:
        """Decode the value under the cursor: (value, first byte, byte after the last)."""
        self.peek()
        grow = self.block_bytes
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.pos)
            except JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated") or error.pos > len(self.text) - _TOKEN_CHARS
                if self.at_end or not cut_off:
                    if comma := comma_too_many(self.text, error.pos):
                        raise self.fail(comma, error.pos, fix=_NO_COMMA) from None
                    raise self.fail(error.msg, error.pos) from None
            except ValueError as error:  # a whole number of thousands of digits
                raise self.fail(str(error), self.pos, fix="write a number that a program can use") from None
            except RecursionError:
                raise self.fail("values nested too deep", self.pos) from None
            else:
                # A number at the end of the buffer may go on behind it: "0" of "0.5", "1" of "1e9".
                cut_off = len(self.text) - end < _TOKEN_CHARS and (self.text[end : end + 1] or ".") in ".eE+-"
                if self.at_end or self.text[self.pos] in '{["' or not cut_off:
                    start = self.byte
                    self.move(end)
                    return value, start, self.byte
            if len(self.text) - self.pos > MAX_ITEM_CHARS:
                raise self.fail(f"one value of more than {MAX_ITEM_CHARS >> 20} MiB", self.pos)
            self.fill(grow)
            grow *= 2


def stream_json(file: BinaryIO, name: str, *, lines: bool = False, block_bytes: int = 1 << 20) -> Iterator[Event]:
    """Walk through a JSON file whose top level is an array, or an object of values and arrays.

    Args:
        file: the open file, at its beginning.
        name: what error messages call it.
        lines: the file is JSON lines, walked through as one array of what stands on them.
        block_bytes: how much is read at a time.

    Raises:
        FormatError: no JSON, or broken at the byte that the message names.
    """
    scan = _Scanner(file, name, block_bytes)
    first = scan.peek()
    if lines:
        yield from _records(scan)
    elif first == "[":
        yield from _array(scan, None)
    elif first == "{":
        scan.take("{")
        if scan.peek() == "}":
            scan.take("}")
        else:
            yield from _members(scan)
    else:
        raise FormatError(
            f"{name}: not a JSON file of predictions",
            expected="'[' or '{' at the beginning",
            got=repr(first) if first else "an empty file",
            fix="check the file and --format",
        )
    if scan.peek():
        raise scan.fail("text after the end of the JSON value", scan.pos)


def _records(scan: _Scanner) -> Iterator[Event]:
    """JSON lines: values one after the other."""
    yield Event("open", None, scan.byte, scan.byte)
    while scan.peek():
        value, start, end = scan.value()
        yield Event("item", None, start, end, value)
    yield Event("close", None, scan.byte, scan.byte)


def _members(scan: _Scanner) -> Iterator[Event]:
    while True:
        if (char := scan.peek()) != '"':
            if char == "}":  # an object without any key has ended before
                raise scan.fail("a comma before '}'", scan.pos, fix=_NO_COMMA)
            raise scan.fail("no key where one belongs", scan.pos)
        key = scan.value()[0]
        scan.take(":")
        if scan.peek() == "[":
            yield from _array(scan, key)
        else:
            value, start, end = scan.value()
            yield Event("value", key, start, end, value)
        if scan.take(",}") == "}":
            return


def _array(scan: _Scanner, key: str | None) -> Iterator[Event]:
    scan.take("[")
    yield Event("open", key, scan.byte - 1, scan.byte)
    if scan.peek() == "]":
        scan.take("]")
        yield Event("close", key, scan.byte - 1, scan.byte)
        return
    while True:
        value, start, end = scan.value()
        yield Event("item", key, start, end, value)
        if scan.take(",]") == "]":
            yield Event("close", key, scan.byte - 1, scan.byte)
            return
        if scan.peek() == "]":
            raise scan.fail("a comma before ']'", scan.pos, fix=_NO_COMMA)
