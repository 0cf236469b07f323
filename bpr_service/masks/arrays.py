"""Masks as NumPy files: probabilities, logits or two values in ``.npy``, or in the one array of an ``.npz``.

Letters: C is the number of classes; H, W are the image's height and width in pixels.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import MAX_PIXELS
from bpr_service.errors import MaskError
from bpr_service.masks.images import check_pixels

_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_VALUE_BYTES = 8


def is_array(data: bytes) -> bool:
    """Whether a file's first bytes are those of ``.npy`` or ``.npz``."""
    return data.startswith((_NPY, _ZIP))


def read_array(data: bytes, *, classes: bool = False, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """The (H, W) array of a NumPy file; with `classes` the (C, H, W) one.

    Raises:
        MaskError: damaged, pickled objects, no array or several, or of other dimensions.
        LimitError: more than `max_pixels`.
    """
    array = _opened(data, max_pixels)[1]
    if array.ndim != (3 if classes else 2) or 0 in array.shape:
        one = "save one mask a file; channels of classes are a semantic map, no soft mask of one thing"
        raise MaskError(
            "not a map of probabilities" if classes else "not a mask",
            expected="an array (C, H, W)" if classes else "an array (H, W)",
            got=f"shape {array.shape}",
            fix="save the probabilities of all classes of one picture a file" if classes else one,
        )
    check_pixels(array.shape[-2], array.shape[-1], max_pixels, "mask")
    return array


def array_like(data: bytes, array: NDArray[Any]) -> bytes:
    """A NumPy file as `data` with another array of the same shape and type in it; `data` where nothing is new."""
    name, old = _opened(data, array.size)
    if np.array_equal(old, array, equal_nan=old.dtype.kind == "f"):
        return data
    out = io.BytesIO()
    new = array.astype(old.dtype, copy=False)
    if name is None:
        np.save(out, new)
    else:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            packed = any(entry.compress_type for entry in archive.infolist())
        save: Any = np.savez_compressed if packed else np.savez
        save(out, **{name: new})
    return out.getvalue()


def probabilities(array: NDArray[Any], logits: bool = False) -> NDArray[np.float32]:
    """Float32 probabilities: floats as they are, or through a sigmoid; 8- and 16-bit values by their highest.

    Raises:
        MaskError: another type.
    """
    if logits and array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(-array.astype(np.float64))), np.float32)
    if array.dtype.kind in "bf":
        return array.astype(np.float32)
    if array.dtype in (np.uint8, np.uint16) and not logits:
        return array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)
    raise MaskError(
        "probabilities of another type",
        expected="floats" if logits else "floats in [0, 1], uint8 or uint16",
        got=str(array.dtype),
        fix="convert them with array.astype(numpy.float32)",
    )


def rewritten(
    array: NDArray[Any], coarse: NDArray[np.uint8], refined: NDArray[np.uint8], logits: bool = False
) -> NDArray[Any]:
    """Probabilities or logits (H, W) with a sure answer where two masks {0, 1} differ; elsewhere as they were."""
    out = array.copy()
    low, high = sure(array, logits)
    out[refined > coarse] = high
    out[refined < coarse] = low
    return out


def sure(array: NDArray[Any], logits: bool = False) -> tuple[Any, Any]:
    """What stands for surely not and surely in an array of probabilities or logits."""
    if logits:
        high = max(1.0, float(np.abs(array, where=np.isfinite(array), out=np.zeros_like(array)).max()))
        return -high, high
    return 0, np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1


def _opened(data: bytes, max_pixels: int) -> tuple[str | None, NDArray[Any]]:
    """The array's name in an ``.npz`` (None of an ``.npy``), and the array."""
    try:
        if data.startswith(_NPY):
            name, array = None, np.load(io.BytesIO(data), allow_pickle=False)
        else:
            name, array = _of_archive(data, max_pixels)
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, MemoryError) as error:
        raise MaskError(
            "a NumPy file that cannot be read",
            expected="a whole .npy or .npz of numbers",
            got=str(error)[:120],
            fix="save it again with numpy.save",
        ) from None
    return name, array


def _of_archive(data: bytes, max_pixels: int) -> tuple[str, NDArray[Any]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [entry.filename.removesuffix(".npy") for entry in archive.infolist()]
        if len(names) != 1:
            raise MaskError("an .npz", expected="one array", got=", ".join(names[:5]) or "none", fix="save one a file")
        if archive.infolist()[0].file_size > _VALUE_BYTES * max_pixels + 4096:
            check_pixels(archive.infolist()[0].file_size // _VALUE_BYTES, 1, max_pixels, "mask")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return names[0], arrays[names[0]]
