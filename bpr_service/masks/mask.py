"""A mask as box + crop, and its ways in and out: arrays, COCO RLE, polygons, PNG.

Letters: H, W are the full image's height and width; h, w those of the crop; all in pixels.

The full (H, W) frame exists only in :meth:`Mask.from_array`, :meth:`Mask.to_array` and the PNGs, which are
such frames. Label maps and panoptic PNGs are in :mod:`bpr_service.masks.label_maps`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import MAX_PIXELS
from bpr_service.errors import MaskError
from bpr_service.kernel import kernel
from bpr_service.masks import rle as _rle
from bpr_service.masks.images import check_pixels, open_picture
from bpr_service.masks.label_maps import (
    encode_png,
    more_values,
    read_label_map,
    read_panoptic_png,
    two_values,
    write_label_map,
    write_panoptic_png,
)
from bpr_service.masks.polygons import check_polygons, outlines, rasterise

__all__ = [
    "Mask",
    "as_mask",
    "read_label_map",
    "read_panoptic_png",
    "write_label_map",
    "write_panoptic_png",
]

Crop = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Mask:
    """A binary mask of an (H, W) image, held as the crop that has its foreground.

    Attributes:
        height: of the full image, px.
        width: of the full image, px.
        x: left of the crop in the image, px.
        y: top of it, px.
        crop: (h, w) uint8, C-contiguous, values {0, 1}; (0, 0) for an empty mask. The constructors make it tight.
        soft: (h, w) uint8 or None, foreground probability times 255 in the same window; ``crop == (soft >= 128)``.
    """

    height: int
    width: int
    x: int
    y: int
    crop: Crop
    soft: Crop | None = None

    def __post_init__(self) -> None:
        crop, soft = self.crop, self.soft
        if crop.ndim != 2 or crop.dtype != np.uint8 or not crop.flags.c_contiguous:
            raise MaskError(
                "a mask's crop",
                expected="a C-contiguous (h, w) uint8 array of 0 and 1",
                got=f"{crop.dtype} {crop.shape}",
                fix="use Mask.from_array, which accepts any array",
            )
        inside = self.x >= 0 and self.y >= 0 and self.x + crop.shape[1] <= self.width
        if not inside or self.y + crop.shape[0] > self.height:
            raise MaskError(
                "a mask's crop leaves the image",
                expected=f"a window inside {self.height} x {self.width}",
                got=f"{crop.shape[0]} x {crop.shape[1]} at x={self.x}, y={self.y}",
                fix="clip it, or check that height and width are not exchanged",
            )
        if soft is not None and (soft.shape != crop.shape or soft.dtype != np.uint8):
            raise MaskError(
                "a mask's probabilities",
                expected=f"uint8 of shape {crop.shape}",
                got=f"{soft.dtype} {soft.shape}",
                fix="use Mask.from_array with floats in [0, 1]",
            )

    def __repr__(self) -> str:
        return f"Mask({self.height} x {self.width}, box={self.box}, area={self.area}, soft={self.soft is not None})"

    # ---- what it is ----------------------------------------------------------------------------------------

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Tight (x0, y0, x1, y1) of the foreground, half-open, px; (0, 0, 0, 0) when empty."""
        x0, y0, x1, y1 = _tight(self.crop)
        return (self.x + x0, self.y + y0, self.x + x1, self.y + y1) if x1 else (0, 0, 0, 0)

    @property
    def bbox(self) -> list[float]:
        """COCO box: [x, y, width, height] of the foreground, px."""
        x0, y0, x1, y1 = self.box
        return [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]

    @property
    def area(self) -> int:
        """Foreground pixels."""
        return int(np.count_nonzero(self.crop))

    @property
    def is_empty(self) -> bool:
        return not self.crop.any()

    def window(self, x0: int, y0: int, x1: int, y1: int) -> Crop:
        """The (y1 - y0, x1 - x0) uint8 {0, 1} window of the frame; zeros where it leaves the crop or the image."""
        out = np.zeros((y1 - y0, x1 - x0), np.uint8)
        h, w = self.crop.shape
        xa, ya = max(x0, self.x), max(y0, self.y)
        xb, yb = min(x1, self.x + w), min(y1, self.y + h)
        if xa < xb and ya < yb:
            out[ya - y0 : yb - y0, xa - x0 : xb - x0] = self.crop[ya - self.y : yb - self.y, xa - self.x : xb - self.x]
        return out

    # ---- in ------------------------------------------------------------------------------------------------

    @classmethod
    def from_array(cls, array: Any, *, max_pixels: int = MAX_PIXELS) -> Mask:
        """A mask from an (H, W) frame: bool, integers (0 and one other value), or float probabilities in [0, 1].

        Raises :class:`MaskError` for another shape or dtype, NaN, or floats out of [0, 1];
        :class:`LimitError`.
        """
        frame = np.asarray(array)
        if frame.ndim == 3 and 1 in (frame.shape[0], frame.shape[2]):
            frame = frame[0] if frame.shape[0] == 1 else frame[:, :, 0]
        if frame.ndim != 2 or 0 in frame.shape:
            raise MaskError(
                "not a mask",
                expected="an array (H, W) with H, W of 1 or more",
                got=f"shape {np.shape(array)}",
                fix="pass one mask at a time",
            )
        height, width = frame.shape
        check_pixels(height, width, max_pixels, "mask")
        if frame.dtype.kind == "f":
            return cls._from_soft(frame)
        if frame.dtype.kind not in "biu":
            raise MaskError(
                "a mask of another type",
                expected="bool, integer or float",
                got=str(frame.dtype),
                fix="convert it with array.astype(bool)",
            )
        if frame.dtype == np.uint8 and frame.max() <= 1:
            return cls.from_window(frame, 0, 0, height, width)
        binary = (frame != 0).view(np.uint8)
        if frame.dtype.kind != "b":
            top = frame.max()
            if not np.array_equal(frame == top, binary) and binary.any():
                raise more_values(f"values up to {top}")
        return cls.from_window(binary, 0, 0, height, width)

    @classmethod
    def _from_soft(cls, frame: NDArray[Any]) -> Mask:
        low, high = frame.min(), frame.max()  # NaN when any value is
        if not (low >= 0.0 and high <= 1.0):
            raise MaskError(
                "a float mask is out of range",
                expected="probabilities in [0, 1], no NaN",
                got=f"values from {low} to {high}",
                fix="pass probabilities (apply a sigmoid to logits: --logits), or a boolean array",
            )
        soft = np.rint(np.multiply(frame, 255.0, dtype=np.result_type(frame, np.float32))).astype(np.uint8)
        x0, y0, x1, y1 = _tight(soft)
        soft = np.ascontiguousarray(soft[y0:y1, x0:x1])
        return cls(frame.shape[0], frame.shape[1], x0, y0, (soft >= 128).view(np.uint8), soft)

    @classmethod
    def from_window(cls, window: NDArray[np.uint8], x: int, y: int, height: int, width: int) -> Mask:
        """A mask from a (h, w) uint8 {0, 1} window whose left top is (x, y); the crop is made tight (a copy)."""
        x0, y0, x1, y1 = _tight(window)
        crop = np.array(window[y0:y1, x0:x1], np.uint8, order="C")
        return cls(height, width, x + x0 if x1 else 0, y + y0 if x1 else 0, crop)

    @classmethod
    def from_rle(cls, rle: Mapping[str, Any], *, max_pixels: int = MAX_PIXELS) -> Mask:
        """A mask from a COCO RLE ``{"size": [H, W], "counts": str | bytes | list[int]}``.

        Raises :class:`MaskError` when size or counts are damaged or disagree, :class:`LimitError` when H * W
        is over.
        """
        size = rle.get("size") if isinstance(rle, Mapping) else None
        pair = list(size) if isinstance(size, Sequence | np.ndarray) and len(size) == 2 else []
        if "counts" not in (rle or ()) or not pair or not all(_is_int(n) and n > 0 for n in pair):
            raise MaskError(
                "not an RLE",
                expected='{"size": [height, width], "counts": ...} with sizes of 1 or more',
                got=f"size {size!r}" if isinstance(rle, Mapping) else type(rle).__name__,
                fix="write it as pycocotools.mask.encode does",
            )
        height, width = int(pair[0]), int(pair[1])
        check_pixels(height, width, max_pixels, "mask")
        runs = _rle.parse_counts(rle["counts"], height, width)
        return cls(height, width, *_rle.decode(runs, height))

    @classmethod
    def from_polygons(cls, polygons: Sequence[Any], height: int, width: int, *, max_pixels: int = MAX_PIXELS) -> Mask:
        """A mask from COCO polygons ``[[x1, y1, x2, y2, ...], ...]`` in px; several parts are united.

        Rasterised as pycocotools does on the full frame, in the polygons' box only.
        Raises :class:`MaskError` for fewer than three points, an odd number of values, NaN, or far
        coordinates, :class:`LimitError` where the outlines are too ragged to be drawn in a second or so.
        """
        check_pixels(height, width, max_pixels, "mask")
        parts = check_polygons(polygons, height, width)
        x, y, window = rasterise(parts, height, width)
        return cls.from_window(window, x, y, height, width)

    @classmethod
    def from_png(cls, source: bytes | str | Path, *, soft: bool = False, max_pixels: int = MAX_PIXELS) -> Mask:
        """A mask from a picture, a file or its bytes.

        A mask has two values: nothing (index 0, black, or transparent) or else the lower value is background.
        With ``soft=True`` the picture must be 8- or 16-bit gray and holds the probability times 255 or 65535.

        Raises:
            MaskError: the file is missing, truncated or no picture, or has more values: the message names the ways
                to read it.
            LimitError: it announces more than `max_pixels`.
        """
        picture = open_picture(source, max_pixels, "mask", MaskError)
        if not soft:
            return cls.from_array(two_values(picture)[0], max_pixels=max_pixels)
        if picture.mode != "L" and not picture.mode.startswith("I"):
            raise MaskError(
                "a soft mask's picture",
                expected="8- or 16-bit gray",
                got=f"mode {picture.mode}",
                fix="save the probabilities as one gray channel",
            )
        scale = np.float32(255 if picture.mode == "L" else 65535)
        return cls.from_array(np.asarray(picture) / scale, max_pixels=max_pixels)

    # ---- out -----------------------------------------------------------------------------------------------

    def to_array(self) -> NDArray[np.uint8]:
        """The full (H, W) uint8 {0, 1} frame."""
        return self.window(0, 0, self.width, self.height)

    def to_rle(self, compressed: bool = True) -> dict[str, Any]:
        """COCO RLE, ready for JSON: ``counts`` is a string, or a list of integers when not `compressed`."""
        runs = _rle.encode(self.crop, self.x, self.y, self.height, self.width)
        counts = _rle.compress(runs) if compressed else runs.tolist()
        return {"size": [self.height, self.width], "counts": counts}

    def to_polygons(self, *, slits: bool = False) -> list[list[float]]:
        """Outlines ``[[x1, y1, ...], ...]`` along the pixels' edges, one for each 4-connected part.

        Args:
            slits: join each hole to the outline of its part by a slit of no width. `from_polygons` then gives the
                same mask back; without it holes are filled.
        """
        return outlines(self.crop, self.x, self.y, slits=slits)

    def to_png(self) -> bytes:
        """A PNG of the full frame, 0 and 255."""
        return encode_png(self.to_array() * np.uint8(255))


def as_mask(value: Any, height: int, width: int, *, max_pixels: int = MAX_PIXELS) -> Mask:
    """Whatever speaks of a mask, as a :class:`Mask` of an (H, W) image.

    `value`: a Mask, an (H, W) array, an RLE mapping, COCO polygons, or a PNG (bytes or path).
    Raises :class:`MaskError` when it cannot be read or its size is not the image's.
    """
    if isinstance(value, Mask):
        mask = value
    elif isinstance(value, Mapping):
        mask = Mask.from_rle(value, max_pixels=max_pixels)
    elif isinstance(value, bytes | str | Path):
        mask = Mask.from_png(value, max_pixels=max_pixels)
    elif isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        mask = Mask.from_array(value, max_pixels=max_pixels)
    elif isinstance(value, list | tuple):
        mask = Mask.from_polygons(value, height, width, max_pixels=max_pixels)
    else:
        raise MaskError(
            "not a mask",
            expected="a Mask, an array, an RLE, polygons, or a PNG",
            got=type(value).__name__,
            fix="see bpr_service.masks.mask.as_mask",
        )
    if (mask.height, mask.width) != (height, width):
        turned = (mask.height, mask.width) == (width, height)
        raise MaskError(
            "the mask is of another size than the image",
            expected=f"{height} x {width} (height x width)",
            got=f"{mask.height} x {mask.width}",
            fix="exchange height and width, or undo the photograph's EXIF rotation"
            if turned
            else "scale the mask to the image, with nearest-neighbour",
        )
    return mask


def _is_int(value: object) -> bool:
    """A whole number, however it is written: 80 and 80.0."""
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


@kernel
def _extent(window: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """`_tight` of a window that is not empty."""
    h, w = window.shape
    y0, y1 = h, 0
    columns = np.zeros(w, np.uint8)  # whether any row has something there
    for y in range(h):
        row = window[y]
        anything = np.uint8(0)
        for k in range(w):  # bytes throughout: vector code
            anything = np.uint8(anything | row[k])
            columns[k] = np.uint8(columns[k] | row[k])
        if anything:
            y0, y1 = min(y0, y), y + 1
    if y1 == 0:
        return 0, 0, 0, 0
    x0, x1 = 0, w
    while columns[x0] == 0:
        x0 += 1
    while columns[x1 - 1] == 0:
        x1 -= 1
    return x0, y0, x1, y1


def _tight(window: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Box (x0, y0, x1, y1), half-open, of what is not zero in an (h, w) window; zeros when there is nothing."""
    return _extent(window) if window.size else (0, 0, 0, 0)
