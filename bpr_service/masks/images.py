"""Images as (H, W, 3) uint8 RGB, from whatever a person has.

Letters: H, W are the image's height and width in pixels.

A photograph may say in its EXIF data how it is to be turned for a viewer. Tools differ: pycocotools, and what is
built on it, speaks of the pixels as they are stored; editors and trainers that open files through a viewer speak of
the upright picture. Which of the two is meant cannot be seen in the sizes, so it is a choice (`Exif`), and what was
chosen is said wherever the two differ.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import MAX_PIXELS
from bpr_service.errors import ImageError, InputError, LimitError
from bpr_service.masks.metadata import Exif as Exif
from bpr_service.masks.metadata import NoData, filled, orientation_of, oriented, turned_too, valid_pixels
from bpr_service.storage import beneath

Image = NDArray[np.uint8]

Source = bytes | str | Path | BinaryIO
Window = tuple[float, float]

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "AVIF")
"""What is opened, by Pillow's names; HEIF too where pillow-heif is installed. Pillow knows many more, some of which
(EPS) it hands to other programs."""
FIRST_BYTES: Mapping[str, tuple[bytes, ...]] = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "WebP": (b"RIFF",),
    "TIFF": (b"II*\0", b"MM\0*"),
    "BMP": (b"BM",),
    "GIF": (b"GIF8",),
}
"""How pictures begin, whatever their files are called; AVIF and HEIF begin as films do, PPM as text."""

_NARROW = 8
"""A picture that uses less than one part in so many of its range is warned of."""
_PERCENTILES = (0.1, 99.9)


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture file says of itself before anything is decoded.

    Attributes:
        height, width: of the pixels as stored, px.
        kind: Pillow's name of the file type.
        mode: Pillow's name of the channels and their depth.
        orientation: of EXIF, 1 to 8; 1 is upright.
        pages: pictures in the file.
        progressive: a JPEG that is decoded in several passes.
    """

    height: int
    width: int
    kind: str
    mode: str
    orientation: int
    pages: int
    progressive: bool

    def size(self, exif: Exif = "ignore") -> tuple[int, int]:
        """(H, W) of the image as it is read with `exif`, px."""
        turned = exif == "apply" and self.orientation >= 5
        return (self.width, self.height) if turned else (self.height, self.width)


@dataclass(frozen=True, slots=True)
class ReadImage:
    """An image, and what a person should know of how it was read.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        orientation: the file's EXIF orientation, applied or not.
        warnings: one sentence each.
        valid: (H, W) the pixels that hold data; None where all do, or nothing says which.
    """

    pixels: Image
    orientation: int
    warnings: list[str]
    valid: NDArray[np.bool_] | None = None


def check_pixels(height: int, width: int, max_pixels: int, what: str = "image") -> None:
    """Raise :class:`LimitError` when ``height * width`` exceeds `max_pixels`."""
    if height * width > max_pixels:
        raise LimitError(
            f"the {what} is too large",
            expected=f"at most {max_pixels} pixels",
            got=f"{height} x {width} = {height * width}",
            fix="scale it down, cut it into tiles, or raise max_pixels",
        )


def _stream(source: Source) -> AbstractContextManager[BinaryIO]:
    """What Pillow reads; a file of the caller's stays open."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, str | Path):
        return open(source, "rb", opener=beneath.opener)
    return nullcontext(source)


@contextmanager
def _opened(source: Source, max_pixels: int, what: str, error: type[InputError]) -> Iterator[Any]:
    """The `PIL.Image.Image` with its header read and checked, and every complaint of Pillow turned into ours."""
    from PIL import Image as pil
    from PIL import UnidentifiedImageError

    name = str(source) if isinstance(source, str | Path) else "the bytes"
    fix = "send a whole PNG, JPEG, WebP, TIFF, BMP, PPM or AVIF file"
    try:
        with _stream(source) as stream, pil.open(stream, formats=_known_formats()) as picture:
            check_pixels(picture.height, picture.width, max_pixels, what)
            yield picture
    except (FileNotFoundError, IsADirectoryError, PermissionError) as cause:
        raise error(f"cannot read {name}", expected="a file", got=str(cause.strerror), fix="check the path") from None
    except UnidentifiedImageError:
        raise error(f"{name}: not a picture", expected="a picture file", got="another type", fix=fix) from None
    except pil.DecompressionBombError as cause:
        raise LimitError(
            f"the {what} is too large",
            expected=f"at most {max_pixels} pixels",
            got=str(cause),
            fix="scale it down",
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError) as cause:
        raise error(f"{name}: damaged", expected=f"a whole {what}", got=str(cause), fix=fix) from None


def reads(kind: str) -> bool:
    """Whether files of a type (Pillow's name) are opened."""
    return kind in _known_formats()


@cache
def _known_formats() -> tuple[str, ...]:
    if find_spec("pillow_heif") is None:
        return PICTURE_FORMATS
    import pillow_heif  # type: ignore[import-not-found,unused-ignore]

    pillow_heif.register_heif_opener()
    return (*PICTURE_FORMATS, "HEIF")


def read_header(
    source: Source, *, max_pixels: int = MAX_PIXELS, what: str = "image", error: type[InputError] = ImageError
) -> Header:
    """What the file says of itself; nothing is decoded.

    Raises:
        InputError: `error` when the file is missing, damaged or no picture.
        LimitError: it announces more than `max_pixels`.
    """
    with _opened(source, max_pixels, what, error) as picture:
        orientation = orientation_of(picture)
        width, height = picture.size
        if picture.format == "TIFF" and orientation >= 5:  # Pillow has turned the size already
            width, height = height, width
        pages, progressive = getattr(picture, "n_frames", 1), "progressive" in picture.info
        return Header(height, width, picture.format, picture.mode, orientation, pages, progressive)


def open_picture(source: bytes | str | Path, max_pixels: int, what: str, error: type[InputError]) -> Any:
    """The decoded `PIL.Image.Image`; its header is checked against `max_pixels` before any pixel is decoded.

    Raises `error` when the file is missing, damaged or not one of :data:`PICTURE_FORMATS`, :class:`LimitError` when
    it is too large.
    """
    with _opened(source, max_pixels, what, error) as picture:
        pages = getattr(picture, "n_frames", 1)
        if pages > 1:
            raise error(f"a {what} of {pages} pages", expected="one picture", got=str(pages), fix="save each by itself")
        picture.load()
    return picture  # the file is closed, the pixels stay


def read_image(source: bytes | str | Path, *, max_pixels: int = MAX_PIXELS, exif: Exif = "ignore") -> Image:
    """Decode an image file (or its bytes): gray, RGB, RGBA, palette, CMYK, 1- and 16-bit.

    Returns:
        (H, W, 3) uint8 RGB; alpha is dropped, 16-bit values are scaled by 1/257.

    Raises:
        ImageError: the file is missing, truncated, empty or of a type not known.
        LimitError: the header announces more than `max_pixels`; nothing was decoded.
    """
    return open_image(source, max_pixels=max_pixels, exif=exif).pixels


def open_image(
    source: bytes | str | Path,
    *,
    max_pixels: int = MAX_PIXELS,
    exif: Exif = "ignore",
    page: int | None = None,
    window: Window | Literal["auto"] | None = None,
    no_data: NoData | None = None,
) -> ReadImage:
    """Decode an image file, and say what a person should know of it.

    Args:
        source: the bytes of the file, or its path.
        max_pixels: the most that are decoded.
        exif: "apply" turns a photograph upright, "ignore" takes the pixels as they are stored.
        page: which picture of a file that holds several, from 1; None takes the first and says so.
        window: the values that become black and white, or "auto" for the 0.1 and 99.9 percentiles; for pictures that
            use a part of their range (12-bit data in 16-bit files, floats). None scales the whole range.
        no_data: which pixels hold no data: those of this value in every band, or "auto" for what the file says (it is
            transparent there, GDAL's no-data value, NaN). None takes all.

    Raises:
        ImageError: missing, truncated, empty, of a type not known; or no such page.
        LimitError: the header announces more than `max_pixels`; nothing was decoded.
    """
    warnings = []
    with _opened(source, max_pixels, "image", ImageError) as picture:
        pages = getattr(picture, "n_frames", 1)
        if page is not None and not 1 <= page <= pages:
            raise ImageError(f"page {page}", expected=f"a page from 1 to {pages}", got=str(page), fix="choose another")
        if page is None and pages > 1:
            warnings.append(f"the file has {pages} pages; the first is read: choose with page")
        if page is not None and pages > 1:
            picture.seek(page - 1)
            check_pixels(picture.height, picture.width, max_pixels)
        orientation = orientation_of(picture)
        turned = picture.format == "TIFF"  # Pillow turns these by itself
        picture.load()
    valid = None if no_data is None else valid_pixels(picture, no_data)
    if orientation != 1:
        how = "turned upright" if exif == "apply" else "taken as stored"
        warnings.append(f"the photograph has EXIF orientation {orientation}; its pixels were {how} (exif={exif})")
        picture = oriented(picture, orientation, turned, exif)
        valid = None if valid is None else turned_too(valid, orientation, turned, exif)
    as_it_is = picture.mode == "RGB" or picture.mode.startswith(("I", "F"))  # converting would copy it
    array = np.asarray(picture if as_it_is else picture.convert("RGB"))
    if valid is not None:
        array = filled(array, valid)
    if window is not None:
        array = _stretched(array, window, valid)
    else:
        array = _sixteen_bit(array)
        warnings += _narrow(array)
    return ReadImage(as_image(array), orientation, warnings, valid)


def _sixteen_bit(array: NDArray[Any]) -> NDArray[Any]:
    """Signed and wide integers as uint16; :class:`ImageError` where they do not fit."""
    if array.dtype.kind not in "iu" or array.dtype.itemsize == 1:
        return array
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise ImageError(
            "a picture of more than 16 bits",
            expected="values from 0 to 65535, or a window",
            got=f"{low} to {high}",
            fix="choose the values that become black and white: window=auto, or window=LOW,HIGH",
        )
    return array.astype(np.uint16)


def _stretched(array: NDArray[Any], window: Window | Literal["auto"], valid: NDArray[np.bool_] | None) -> Image:
    """uint8 values: those of `window` from 0 to 255, what lies outside is cut off."""
    data = array if valid is None or not valid.any() else array[valid]
    low, high = np.percentile(data, _PERCENTILES) if window == "auto" else window
    if not (np.isfinite(low) and np.isfinite(high)) or (window != "auto" and low >= high):
        raise ImageError("window", expected="finite values, the lower one first", got=f"{low}, {high}", fix="mend it")
    scaled = (array.astype(np.float32) - np.float32(low)) * np.float32(255.0 / max(high - low, 1e-12))
    out: Image = np.rint(np.clip(scaled, 0.0, 255.0)).astype(np.uint8)
    return out


def _narrow(array: NDArray[Any]) -> list[str]:
    """A warning where an integer picture uses a small part of its range, and so comes out nearly black."""
    if array.dtype.kind != "u":
        return []
    full, top = int(np.iinfo(array.dtype).max), int(array[::4, ::4].max(initial=0))
    top = int(array.max(initial=0)) if top < full // _NARROW else top
    if not 0 < top < full // _NARROW:
        return []
    return [f"the picture uses values up to {top} of {full} and comes out nearly black: stretch it with window=auto"]


def as_image(array: Any) -> Image:
    """An (H, W, 3) uint8 RGB image from an array.

    Accepts (H, W), (H, W, 1), (H, W, 3) and (H, W, 4: alpha is dropped), of uint8, uint16 (scaled by 1/257),
    bool, or floats in [0, 1]. Channels are taken as RGB; OpenCV's BGR must be turned by the caller.

    Raises :class:`ImageError` for anything else, NaN included.
    """
    image = np.asarray(array)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise ImageError(
            "not an image",
            expected="an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with H, W of 1 or more",
            got=f"shape {np.shape(array)}",
            fix="put the channels last: array.transpose(1, 2, 0)" if np.ndim(array) == 3 else "pass one image",
        )
    image = image[:, :, :3]
    if image.dtype == np.uint16:
        image = np.round(image / 257.0).astype(np.uint8)
    elif image.dtype == np.bool_:
        image = image.astype(np.uint8) * 255
    elif image.dtype.kind == "f":
        if not (np.isfinite(image).all() and image.min() >= 0.0 and image.max() <= 1.0):
            raise ImageError(
                "a float image is out of range",
                expected="finite values in [0, 1]",
                got=f"values from {image.min()} to {image.max()}",
                fix="divide by 255, or pass uint8",
            )
        image = np.round(image * 255.0).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise ImageError(
            "an image of another type",
            expected="uint8, uint16, bool or float",
            got=str(image.dtype),
            fix="convert with array.astype(numpy.uint8)",
        )
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image)
