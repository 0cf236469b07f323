"""PNGs that hold labels, not colours: semantic label maps and COCO panoptic segment maps.

Letters: H, W are the map's height and width in pixels.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import MAX_PIXELS
from bpr_service.errors import MaskError
from bpr_service.masks.images import open_picture


def read_label_map(source: bytes | str | Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """A label map: one-channel 8- or 16-bit PNG, or a palette PNG (VOC), whose indices are the labels.

    Returns (H, W) uint8 or uint16. Raises :class:`MaskError` when damaged or in colour, :class:`LimitError`.
    """
    picture = open_picture(source, max_pixels, "label map", MaskError)
    array = np.asarray(picture)
    if array.ndim != 2 or picture.mode.startswith("F"):
        raise MaskError(
            "not a label map",
            expected="a PNG of one channel, or with a palette",
            got=f"mode {picture.mode}",
            fix="save the label numbers, not their colours; a panoptic PNG is read with read_panoptic_png",
        )
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    return np.ascontiguousarray(array if array.dtype == np.uint8 else array.astype(np.uint16))


def write_label_map(
    path: str | Path, array: NDArray[Any], palette: Sequence[tuple[int, int, int]] | None = None
) -> None:
    """Write an (H, W) integer label map as an 8- or 16-bit PNG, at once or not at all.

    `palette`: RGB of label 0, 1, ...; makes a palette PNG (labels up to 255 only).
    Raises :class:`MaskError` for labels below 0 or over 65535.
    """
    labels = np.asarray(array)
    if labels.ndim != 2 or labels.dtype.kind not in "biu" or labels.size == 0:
        raise MaskError(
            "not a label map",
            expected="an (H, W) integer array",
            got=f"{labels.dtype} {labels.shape}",
            fix="pass label numbers, one a pixel",
        )
    low, high = int(labels.min()), int(labels.max())
    top = 255 if palette is not None else 65535
    if low < 0 or high > top:
        raise MaskError(
            "a label does not fit the PNG",
            expected=f"labels from 0 to {top}",
            got=f"{low} to {high}",
            fix="renumber the labels" if palette is None else "leave out the palette, or renumber the labels",
        )
    wide = (labels.dtype == np.uint16 and palette is None) or high > 255
    write_atomic(path, encode_png(labels.astype(np.uint16 if wide else np.uint8), palette))


def read_panoptic_png(source: bytes | str | Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.int32]:
    """A COCO panoptic PNG as (H, W) int32 segment ids, ``R + 256 G + 65536 B``; 0 is void.

    Raises :class:`MaskError` when it is damaged or not in colour, :class:`LimitError`.
    """
    picture = open_picture(source, max_pixels, "panoptic map", MaskError)
    if picture.mode not in ("RGB", "RGBA"):
        raise MaskError(
            "not a panoptic PNG",
            expected="an RGB picture of segment ids",
            got=f"mode {picture.mode}",
            fix="a one-channel label map is read with read_label_map",
        )
    rgb = np.asarray(picture)
    ids = rgb[:, :, 2].astype(np.int32)
    ids <<= 8
    ids |= rgb[:, :, 1]
    ids <<= 8
    ids |= rgb[:, :, 0]
    return ids


def write_panoptic_png(path: str | Path, ids: NDArray[Any]) -> None:
    """Write (H, W) segment ids as a COCO panoptic PNG, at once or not at all.

    Raises :class:`MaskError` for ids below 0 or of 2**24 and more.
    """
    write_atomic(path, panoptic_png(ids))


def panoptic_png(ids: NDArray[Any]) -> bytes:
    """The bytes of :func:`write_panoptic_png`."""
    segments = np.asarray(ids)
    if segments.ndim != 2 or segments.dtype.kind not in "iu" or segments.size == 0:
        raise MaskError(
            "not a segment map",
            expected="an (H, W) integer array",
            got=f"{segments.dtype} {segments.shape}",
            fix="pass segment ids, one a pixel",
        )
    if int(segments.min()) < 0 or int(segments.max()) >= 1 << 24:
        raise MaskError(
            "a segment id does not fit the PNG",
            expected=f"ids from 0 to {(1 << 24) - 1}",
            got=f"{segments.min()} to {segments.max()}",
            fix="renumber the segments",
        )
    rgb = np.empty((*segments.shape, 3), np.uint8)
    for channel in range(3):
        rgb[:, :, channel] = (segments >> (8 * channel)) & 255
    return encode_png(rgb)


def encode_png(array: NDArray[Any], palette: Sequence[tuple[int, int, int]] | None = None) -> bytes:
    """PNG bytes of an (H, W) uint8 or uint16, or (H, W, 3) uint8 RGB array."""
    if palette is not None:
        import io

        from PIL import Image as pil

        picture = pil.fromarray(array)
        picture.putpalette([value for colour in palette for value in colour])
        stream = io.BytesIO()
        picture.save(stream, format="PNG")
        return stream.getvalue()
    import cv2

    return bytes(cv2.imencode(".png", array[:, :, ::-1] if array.ndim == 3 else array)[1].tobytes())


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` by way of a temporary file beside it: the file is whole or is not there."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
