"""Images as (H, W, 3) uint8 RGB, from whatever a person has.

Letters: H, W are the image's height and width in pixels.

A file's pixels are taken as stored: an EXIF rotation is not applied, because masks of data sets speak of the
stored pixels. A rotated photograph then differs in size from masks drawn on its upright view, and that is
reported.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import MAX_PIXELS
from bpr_service.errors import ImageError, InputError, LimitError

Image = NDArray[np.uint8]

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM")
"""What is opened, by Pillow's names. Pillow knows many more, some of which (EPS) it hands to other programs."""


def check_pixels(height: int, width: int, max_pixels: int, what: str = "image") -> None:
    """Raise :class:`LimitError` when ``height * width`` exceeds `max_pixels`."""
    if height * width > max_pixels:
        raise LimitError(
            f"the {what} is too large",
            expected=f"at most {max_pixels} pixels",
            got=f"{height} x {width} = {height * width}",
            fix="scale it down, cut it into tiles, or raise max_pixels",
        )


def open_picture(source: bytes | str | Path, max_pixels: int, what: str, error: type[InputError]) -> Any:
    """The decoded `PIL.Image.Image`; its header is checked against `max_pixels` before any pixel is decoded.

    Raises `error` when the file is missing, damaged or not one of :data:`PICTURE_FORMATS`, :class:`LimitError` when
    it is too large.
    """
    from PIL import Image as pil
    from PIL import UnidentifiedImageError

    name = "the bytes" if isinstance(source, bytes) else str(source)
    fix = "send a whole PNG, JPEG, WebP, TIFF, BMP or PPM file"
    try:
        with pil.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=PICTURE_FORMATS) as picture:
            check_pixels(picture.height, picture.width, max_pixels, what)
            picture.load()
        return picture  # the file is closed, the pixels stay
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
    except (OSError, SyntaxError, ValueError, EOFError) as cause:
        raise error(f"{name}: damaged", expected=f"a whole {what}", got=str(cause), fix=fix) from None


def read_image(source: bytes | str | Path, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode an image file (or its bytes): gray, RGB, RGBA, palette, CMYK, 1- and 16-bit.

    Returns
    -------
    (H, W, 3) uint8 RGB; alpha is dropped, 16-bit values are scaled by 1/257.

    Raises
    ------
    ImageError
        The file is missing, truncated, empty or of a type not known.
    LimitError
        The header announces more than `max_pixels`; nothing was decoded.
    """
    picture = open_picture(source, max_pixels, "image", ImageError)
    if picture.mode.startswith(("I", "F")):  # 16-bit gray is "I;16" or "I"
        array = np.asarray(picture)
        if array.dtype.kind in "iu":
            array = np.clip(array, 0, 65535).astype(np.uint16)
        return as_image(array)
    return np.ascontiguousarray(np.asarray(picture.convert("RGB")))


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
