"""Images of every kind become (H, W, 3) uint8 RGB, and damaged ones a clear error."""

from __future__ import annotations

import gc
import io
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bpr_service.errors import ImageError, LimitError
from bpr_service.masks.images import PICTURE_FORMATS, as_image, read_header, read_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (11, 7, 3)).astype(np.uint8)
GRAY = RGB[:, :, 0]


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format=kind)
    return stream.getvalue()


def gray3(array: Any) -> Any:
    return np.repeat(array[:, :, None], 3, axis=2)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(GRAY), gray3(GRAY)),
        (Image.fromarray(np.dstack([RGB, GRAY])), RGB),
        (Image.fromarray(GRAY.astype(np.uint16) * 257), gray3(GRAY)),
        (Image.fromarray(GRAY > 99), gray3((GRAY > 99) * np.uint8(255))),
        (Image.fromarray(GRAY).convert("P"), gray3(GRAY)),
        (Image.fromarray(RGB[:1, :1]), RGB[:1, :1]),
    ],
)
def test_kinds_of_png(picture: Image.Image, expected: Any) -> None:
    image = read_image(encoded(picture))
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, expected)


def test_a_path_and_a_jpeg(tmp_path: Path) -> None:
    smooth = np.full((40, 30, 3), (200, 100, 50), np.uint8)
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(smooth), "JPEG"))
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - smooth).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated(kind: str) -> None:
    data = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)), kind)
    with pytest.raises(ImageError, match="damaged"):
        read_image(data[: len(data) // 2])


def test_not_a_picture(tmp_path: Path) -> None:
    for source in (b"", b"hello", tmp_path, tmp_path / "none.png"):
        with pytest.raises(ImageError) as caught:
            read_image(source)
        assert caught.value.fix


@pytest.mark.parametrize("kind", PICTURE_FORMATS)
def test_what_is_opened(kind: str, tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    (tmp_path / "picture").write_bytes(encoded(Image.fromarray(flat), kind))
    assert np.abs(read_image(tmp_path / "picture").astype(int) - flat).max() <= 3


@pytest.mark.parametrize("kind", ["EPS", "GIF", "ICO", "PCX"])
def test_other_types_are_not_opened(kind: str) -> None:
    """Pillow could, some of them by way of another program."""
    data = encoded(Image.fromarray(RGB).resize((16, 16)), kind)
    with pytest.raises(ImageError, match="not a picture"):
        read_image(data)


@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
def test_no_file_is_left_open(keep: float, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)))
    (tmp_path / "a.png").write_bytes(data[: int(keep * len(data))])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        with suppress(ImageError):
            read_image(tmp_path / "a.png")
        with suppress(LimitError, ImageError):
            read_image(tmp_path / "a.png", max_pixels=1)
        gc.collect()
    assert not [w for w in caught if issubclass(w.category, ResourceWarning) and "a.png" in str(w.message)]


def test_the_header_is_checked_before_decoding() -> None:
    data = encoded(Image.fromarray(RGB))
    with pytest.raises(LimitError, match="at most 76 pixels, got 11 x 7 = 77"):
        read_image(data[:60], max_pixels=76)  # the pixels are cut off: only the header can have been read


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GRAY, gray3(GRAY)),
        (GRAY[:, :, None], gray3(GRAY)),
        (np.dstack([RGB, GRAY]), RGB),
        (RGB.astype(np.uint16) * 257, RGB),
        (RGB / 255.0, RGB),
        ((RGB / 255.0).astype(np.float32), RGB),
        (GRAY > 99, gray3((GRAY > 99) * np.uint8(255))),
    ],
)
def test_arrays(array: Any, expected: Any) -> None:
    np.testing.assert_array_equal(as_image(array), expected)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 8, 9), np.uint8),
        np.zeros((0, 3), np.uint8),
        np.zeros(5, np.uint8),
        np.full((2, 2), np.nan),
        np.full((2, 2), 255.0),
        np.zeros((2, 2), np.int64),
        np.array([["a"]]),
    ],
)
def test_bad_arrays(array: Any) -> None:
    with pytest.raises(ImageError) as caught:
        as_image(array)
    assert caught.value.expected
    assert caught.value.fix


def test_the_orientation_of_a_png_is_read_without_decoding_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import PngImagePlugin

    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.new("RGB", (5, 3)).save(stream, "PNG", exif=exif)
    early = stream.getvalue()
    at = early.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(early[at : at + 4], "big")
    iend = early.index(b"IEND") - 4
    late = early[:at] + early[end:iend] + early[at:end] + early[iend:]
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    for data in (early, late):
        header = read_header(io.BytesIO(data))
        assert (header.orientation, header.size("apply"), header.size("ignore")) == (6, (5, 3), (3, 5))
