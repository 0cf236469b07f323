"""Pictures bounded by their headers."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from bpr_service.errors import LimitError
from bpr_service.server.codec.pictures import count_scans, read_header
from tests.server.helpers import HEIGHT, WIDTH, picture


def saved(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture()).save(stream, kind, **options)
    return stream.getvalue()


def test_scans_of_a_jpeg_are_counted() -> None:
    assert count_scans(saved("JPEG")) == 1
    assert 5 <= count_scans(saved("JPEG", progressive=True)) <= 12


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded() -> None:
    data = saved("JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    scan, end = data[at:-2], data[-2:]
    with pytest.raises(LimitError, match="too many scans"):
        read_header(data[:-2] + scan * 3000 + end, 1 << 26)


def test_a_usual_picture_passes_and_says_what_decoding_takes() -> None:
    for kind, options in (("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("TIFF", {}), ("BMP", {})):
        header = read_header(saved(kind, **options), 1 << 26)
        assert (header.height, header.width) == (HEIGHT, WIDTH)
        assert header.decode_bytes >= 12 * HEIGHT * WIDTH
    with pytest.raises(LimitError, match="at most 1000 pixels"):
        read_header(saved("PNG"), 1000)


def test_an_animation_is_refused() -> None:
    frame = Image.fromarray(picture())
    stream = io.BytesIO()
    frame.save(stream, "WEBP", save_all=True, append_images=[frame.rotate(90)])
    with pytest.raises(LimitError, match="animated"):
        read_header(stream.getvalue(), 1 << 26)
