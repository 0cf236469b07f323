"""Multipart bodies, parsed in memory: no part of a request touches a disk."""

from __future__ import annotations

from dataclasses import dataclass, field

from bpr_service.errors import BodyError, LimitError

MAX_PARTS = 4096


@dataclass(slots=True)
class Part:
    """One part of the form."""

    name: str = ""
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
