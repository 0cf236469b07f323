"""Pictures bounded by their headers."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from bpr_service.errors import ImageError, LimitError
from bpr_service.server.codec.memory import PICTURE_BYTES, Allowance
from bpr_service.server.codec.pictures import count_scans, read_header, webp_size
from tests.server.helpers import HEIGHT, WIDTH, picture


def saved(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture()).save(stream, kind, **options)
    return stream.getvalue()


def free() -> Allowance:
    return Allowance(lambda lasting, passing: None, limit=False)


def test_scans_of_a_jpeg_are_counted() -> None:
    assert count_scans(saved("JPEG")) == 1
    assert 5 <= count_scans(saved("JPEG", progressive=True)) <= 12


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded() -> None:
    data = saved("JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    scan, end = data[at:-2], data[-2:]
    with pytest.raises(LimitError, match="too many scans"):
        read_header(data[:-2] + scan * 3000 + end, 1 << 26, free())


def test_a_usual_picture_passes_and_says_what_decoding_takes() -> None:
    for kind, options in (("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("TIFF", {}), ("BMP", {})):
        header = read_header(saved(kind, **options), 1 << 26, free())
        assert (header.height, header.width) == (HEIGHT, WIDTH)
        assert header.decode_bytes >= 12 * HEIGHT * WIDTH
    with pytest.raises(LimitError, match="at most 1000 pixels"):
        read_header(saved("PNG"), 1000, free())


def test_an_animation_is_refused() -> None:
    frame = Image.fromarray(picture())
    stream = io.BytesIO()
    frame.save(stream, "WEBP", save_all=True, append_images=[frame.rotate(90)])
    with pytest.raises(LimitError, match="animated"):
        read_header(stream.getvalue(), 1 << 26, free())


def test_the_size_of_a_webp_is_known_before_its_decoder_is_opened() -> None:
    with_alpha = np.dstack([picture(), np.full((HEIGHT, WIDTH), 9, np.uint8)])
    for array in (picture(), with_alpha):
        for lossless in (False, True):
            stream = io.BytesIO()
            Image.fromarray(array).save(stream, "WEBP", lossless=lossless)
            assert webp_size(stream.getvalue()) == (HEIGHT, WIDTH)
    assert webp_size(saved("PNG")) == (0, 0)
    allowance = free()
    with pytest.raises(ImageError):
        read_header(saved("WEBP")[:40], 1 << 26, allowance)
    assert allowance.passing == PICTURE_BYTES["WEBP"] * HEIGHT * WIDTH
    with pytest.raises(LimitError, match="at most 1000 pixels"):
        read_header(saved("WEBP"), 1000, free())
