"""PNGs that hold labels, not colours: semantic label maps and COCO panoptic segment maps.

Letters: H, W are the map's height and width in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service import storage
from bpr_service.config import MAX_PIXELS
from bpr_service.errors import MaskError
from bpr_service.masks.images import open_picture

_WRITTEN = ("PNG", "TIFF", "BMP", "PPM", "WEBP")
_TEXT_TAGS = (269, 270, 271, 272, 305, 306, 315)
_OWN_TAGS = 33000
"""TIFF: the first of the tags that say nothing of how pixels are stored: where on earth they lie, what is no data."""


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
    storage.write_bytes(path, encode_png(labels.astype(np.uint16 if wide else np.uint8), palette))


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
    storage.write_bytes(path, panoptic_png(ids))


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
        from PIL import Image as pil

        picture = pil.fromarray(array)
        picture.putpalette([value for colour in palette for value in colour])
        stream = io.BytesIO()
        picture.save(stream, format="PNG")
        return stream.getvalue()
    import cv2

    return bytes(cv2.imencode(".png", array[:, :, ::-1] if array.ndim == 3 else array)[1].tobytes())


def is_binary(label_map: NDArray[Any], ignore_label: int | None = 255) -> bool:
    """Whether a map holds 0 and 255 and nothing else, so that it is a mask and 255 no label to ignore."""
    if ignore_label != 255 or label_map.size == 0 or label_map.max() != 255 or label_map.min() != 0:
        return False
    return bool(((label_map == 0) | (label_map == 255)).all())


def picture_like(data: bytes, array: NDArray[Any]) -> bytes:
    """A picture of `array` in the file type, mode, palette and transparency of `data`; `data` where no pixel is new.

    Args:
        data: the file that the picture came as.
        array: its new values, of the shape that Pillow gives for its mode.
    """
    from PIL import Image as pil

    with pil.open(io.BytesIO(data)) as picture:
        old = np.asarray(picture)
        if np.array_equal(old, array):
            return data
        if picture.format not in _WRITTEN:
            raise MaskError(
                f"a mask in a {picture.format} file",
                expected=f"{', '.join(_WRITTEN)}, which keep every value",
                got=str(picture.format),
                fix="save the mask as PNG",
            )
        new = pil.fromarray(array.astype(old.dtype, copy=False))
        if new.mode != picture.mode and picture.mode == "1":
            new = new.convert("1")
        elif new.mode != picture.mode and old.dtype == np.uint8:  # as many channels, of another meaning (CMYK)
            new = pil.frombytes(picture.mode, picture.size, np.ascontiguousarray(array, np.uint8).tobytes())
        if picture.mode in ("P", "PA"):
            new.putpalette(picture.getpalette() or [])
        stream = io.BytesIO()
        new.save(stream, format=picture.format, **_kept(picture))
        return stream.getvalue()


def _kept(picture: Any) -> dict[str, Any]:
    """What of a picture beside its pixels is written again."""
    kept = {key: picture.info[key] for key in ("transparency", "icc_profile", "dpi") if key in picture.info}
    if picture.format == "WEBP":
        kept |= {"lossless": True, "exact": True}
    if picture.format == "TIFF":
        kept["compression"] = picture.info.get("compression")
        tags = {tag: value for tag, value in picture.tag_v2.items() if tag in _TEXT_TAGS or tag >= _OWN_TAGS}
        kinds = picture.tag_v2.tagtype
        kept["tiffinfo"] = type(picture.tag_v2)()
        for tag, value in tags.items():
            kept["tiffinfo"].tagtype[tag] = kinds[tag]
            kept["tiffinfo"][tag] = value
    return kept


def two_values(picture: Any) -> tuple[NDArray[np.bool_], Any, Any]:
    """What is foreground in a decoded picture of two values, (H, W), and the values of foreground and background.

    Background is nothing (0, black, transparent); where neither is, the lower one. A picture of one value is all
    background where that is nothing, else all foreground.

    Raises:
        MaskError: there are more values; the message names the ways to read them.
    """
    array = np.asarray(picture)
    pixels = array if array.ndim == 2 else _packed(array)
    first = pixels.flat[0]
    others = pixels != first
    if not others.any():
        value = _pixel(array, 0)
        if all(_strength(value, picture.mode)[:2]):
            return ~others, value, np.zeros_like(value)
        return others, np.full_like(value, 1 if picture.mode in ("1", "P") else _top(array)), value
    at = int(others.argmax())
    if not np.array_equal(others, pixels == pixels.flat[at]):
        jpeg = " (JPEG smears the values of a mask: keep masks as PNG)" if picture.format == "JPEG" else ""
        raise more_values(f"a picture of mode {picture.mode} with more{jpeg}")
    here, there = _pixel(array, 0), _pixel(array, at)
    if _strength(here, picture.mode) > _strength(there, picture.mode):
        return ~others, here, there
    return others, there, here


def more_values(got: str) -> MaskError:
    """The complaint about a mask of more than two values, with the ways in which it can be read."""
    return MaskError(
        "more than two values in one mask",
        expected="two: background and mask",
        got=got,
        fix="say what they are: instance ids (--task labels), classes (--task semantic), or probabilities "
        "(--task soft; in Python floats in [0, 1], over HTTP {'png': ..., 'soft': true})",
    )


def _packed(array: NDArray[Any]) -> NDArray[np.uint32]:
    """(H, W, C) uint8 channels as one number a pixel."""
    out = np.zeros(array.shape[:2], np.uint32)
    for channel in range(array.shape[2]):
        out |= array[:, :, channel].astype(np.uint32) << np.uint32(8 * channel)
    return out


def _pixel(array: NDArray[Any], at: int) -> NDArray[Any]:
    return np.asarray(array.reshape(-1, *array.shape[2:])[at])


def _strength(value: NDArray[Any], mode: str) -> tuple[bool, int, int]:
    """What makes one of two values the foreground: that it can be seen, then how bright it is, then its alpha."""
    if mode == "CMYK":  # ink: the more, the darker
        return True, -int(value.astype(int).sum()), 0
    if mode in ("RGBA", "LA", "PA"):
        return bool(value[-1]), int(value[:-1].sum()), int(value[-1])
    return True, int(value.sum()), 0


def _top(array: NDArray[Any]) -> int:
    return 255 if array.dtype == np.uint8 else 65535
