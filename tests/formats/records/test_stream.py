from __future__ import annotations

import io
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpr_service.errors import FormatError
from bpr_service.formats.records.stream import stream_json

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
)


def walk(data: bytes, block_bytes: int = 1 << 20) -> list[Any]:
    return list(stream_json(io.BytesIO(data), "f.json", block_bytes=block_bytes))


@settings(max_examples=150, deadline=None)
@given(st.lists(values, max_size=6), st.integers(1, 40), st.booleans(), st.sampled_from([None, 1]))
def test_items_and_their_bytes_whatever_the_block(
    items: list[Any], block: int, ascii_only: bool, indent: int | None
) -> None:
    data = json.dumps(items, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    try:
        data.decode()
    except UnicodeDecodeError:
        return  # a lone surrogate is no text
    events = walk(data, block)
    assert [e.value for e in events if e.kind == "item"] == items
    for event in events:
        if event.kind == "item":
            assert json.loads(data[event.start : event.end]) == event.value


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=4), values, max_size=5), st.integers(1, 40))
def test_members_of_an_object(content: dict[str, Any], block: int) -> None:
    got: dict[str, Any] = {}
    for event in walk(json.dumps(content).encode(), block):
        assert event.key is not None
        if event.kind == "value":
            got[event.key] = event.value
        elif event.kind == "open":
            got[event.key] = []
        elif event.kind == "item":
            got[event.key].append(event.value)
    assert got == content


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize(
    ("data", "byte"),
    [
        (b'[{"a": 1}, {"b": }]', 17),
        ('[{"ä": "ü"}, {"b" 2}]'.encode(), 20),  # bytes, not characters
        (b'[{"a": 1} {"b": 2}]', 10),
        (b'[{"a": 1}, ', 11),
        (b'[{"a": 1}', 9),
        (b'{"x": 1, "annotations": [1, 2', 29),
        (b'[{"a": "no end}]', 7),
        (b'[{"a": 1}] more', 11),
        (b'{"x": 1 "y": 2}', 8),
        (b'{"x": 1, 2: 3}', 9),
        (b"[1, nul]", 4),
    ],
)
def test_the_byte_of_a_mistake(data: bytes, byte: int, block: int) -> None:
    with pytest.raises(FormatError, match=rf"^f\.json: broken JSON at byte {byte}\b"):
        walk(data, block)


def test_a_byte_that_is_no_text() -> None:
    with pytest.raises(FormatError, match="byte 8: expected UTF-8"):
        walk(b'[{"a": "\xff"}]', 3)


def test_a_byte_order_mark_is_skipped() -> None:
    (event,) = [e for e in walk(b"\xef\xbb\xbf[12]") if e.kind == "item"]
    assert (event.value, event.start, event.end) == (12, 4, 6)


@pytest.mark.parametrize("data", [b"", b"  ", b"hello", b"12"])
def test_no_json_at_all(data: bytes) -> None:
    with pytest.raises(FormatError, match="not a JSON file of predictions"):
        walk(data)


def test_nesting_without_end() -> None:
    with pytest.raises(FormatError, match="nested too deep"):
        walk(b"[" + b"[" * 200_000)


def test_a_mistake_is_found_without_reading_the_rest() -> None:
    class Counting(io.BytesIO):
        read_bytes = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.read_bytes += len(data)
            return data

    records = json.dumps([{"k": random.Random(i).random()} for i in range(50_000)]).encode()
    file = Counting(b'[{"a": oops}, ' + records[1:])
    with pytest.raises(FormatError, match="byte 7"):
        list(stream_json(file, "f.json", block_bytes=1000))
    assert file.read_bytes <= 2000
