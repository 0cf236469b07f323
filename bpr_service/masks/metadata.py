"""What a picture file says of its pixels: how they are to be turned (EXIF), and which of them hold no data.

Letters: H, W are the image's height and width in pixels.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Exif = Literal["apply", "ignore"]
"""Whether an EXIF orientation turns the image upright, or its pixels are taken as they are stored."""
NoData = float | Literal["auto"]
"""The value of pixels that hold no data, or "auto" for what the file says."""
_ORIENTATION, _GDAL_NODATA = 0x0112, 42113


def png_exif(file: Any) -> bytes:
    """What the chunk eXIf of a PNG holds, which may stand behind the pixels; the place in the file stays."""
    here = file.tell()
    at, found = 8, b""
    while not found:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            break
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"eXIf":
            found = file.read(min(length, 1 << 16))
        at += 12 + length
    file.seek(here)
    return found


def orientation_of(picture: Any) -> int:
    """The EXIF orientation, 1 where there is none or it means nothing. Nothing is decoded."""
    from PIL import Image as pil

    if picture.format == "PNG" and "exif" not in picture.info and picture.fp is not None:
        late = png_exif(picture.fp)
        if late:
            picture.info["exif"] = b"Exif\0\0" + late
    value = pil.Image.getexif(picture).get(_ORIENTATION, 1)  # that of PNGs would decode them to look behind the pixels
    return value if value in range(1, 9) else 1


def oriented(picture: Any, orientation: int, turned: bool, exif: Exif) -> Any:
    """`picture` upright or as stored, whichever `exif` asks for and it is not yet."""
    from PIL import Image as pil

    steps = {
        2: pil.Transpose.FLIP_LEFT_RIGHT,
        3: pil.Transpose.ROTATE_180,
        4: pil.Transpose.FLIP_TOP_BOTTOM,
        5: pil.Transpose.TRANSPOSE,
        6: pil.Transpose.ROTATE_270,
        7: pil.Transpose.TRANSVERSE,
        8: pil.Transpose.ROTATE_90,
    }
    if exif == "apply" and not turned:
        return picture.transpose(steps[orientation])
    if exif == "ignore" and turned:
        return picture.transpose(steps[{6: 8, 8: 6}.get(orientation, orientation)])
    return picture


def valid_pixels(picture: Any, no_data: NoData) -> NDArray[np.bool_] | None:
    """(H, W) which pixels of a decoded picture hold data; None where all do. See `open_image`."""
    array = np.asarray(picture)
    value: float | None = None if no_data == "auto" else float(no_data)
    if no_data == "auto" and ("transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA")):
        valid = np.asarray(picture.convert("RGBA"))[:, :, 3] > 0
    else:
        valid = np.ones(array.shape[:2], bool)
    if no_data == "auto" and picture.format == "TIFF":
        with suppress(ValueError, TypeError):
            value = float(str(picture.tag_v2.get(_GDAL_NODATA)).strip("\0 "))
    bands = array.reshape(*array.shape[:2], -1)[:, :, : 3 if array.ndim == 3 and array.shape[2] == 4 else None]
    if bands.dtype.kind == "f":
        valid &= np.isfinite(bands).all(axis=2)
    if value is not None:
        valid &= (bands != value).any(axis=2)
    return None if valid.all() else valid


def turned_too(valid: NDArray[np.bool_], orientation: int, turned: bool, exif: Exif) -> NDArray[np.bool_]:
    """`valid` as `oriented` has the picture."""
    from PIL import Image as pil

    return np.asarray(oriented(pil.fromarray(valid.astype(np.uint8)), orientation, turned, exif)) > 0


def filled(array: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
    """The array with the lowest value that is data where there is none: -9999 and NaN are no values of a picture."""
    out = array.copy()
    out[~valid] = array[valid].min() if valid.any() else 0
    return out
