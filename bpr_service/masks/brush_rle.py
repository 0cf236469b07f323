"""Label Studio's brush RLE: row-major RGBA bytes, packed bit by bit (the thi.ng/rle-pack format).

::

    32 bits  number of values (4 H W)      5 bits  bits of a value, less 1      4 x 4 bits  run sizes, less 1
    then     1 bit run?, 2 bits which size, the length less 1 in that size, and one value (run) or as many (not)

H, W are the image's height and width in px.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import MaskError
from bpr_service.kernel import kernel

Bytes = NDArray[np.uint8]
_SIZES = np.array([3, 4, 8, 16], np.int64)
_HEAD_BITS = 32 + 5 + 16


@kernel
def _read(data: Bytes, at: int, n: int) -> int:
    """``n`` bits from bit ``at``, the most significant first; -1 past the end."""
    if at + n > 8 * data.size:
        return -1
    value = 0
    for i in range(at, at + n):
        value = (value << 1) | ((data[i >> 3] >> (7 - (i & 7))) & 1)
    return value


@kernel
def _unpack(data: Bytes, word: int, sizes: NDArray[np.int64], total: int, alpha: Bytes) -> int:
    """Fill ``alpha`` with every fourth value; 0, or 1 where the data ends early, 2 where it runs over."""
    at, i = _HEAD_BITS, 0
    while i < total:
        run, which = _read(data, at, 1), _read(data, at + 1, 2)
        if run < 0 or which < 0:
            return 1
        at += 3
        length = _read(data, at, sizes[which])
        if length < 0:
            return 1
        at += sizes[which]
        stop = i + length + 1
        if stop > total:
            return 2
        if run:
            value = _read(data, at, word)
            if value < 0:
                return 1
            at += word
            first = i + (3 - i) % 4
            for j in range(first, stop, 4):
                alpha[j >> 2] = value
            i = stop
        else:
            while i < stop:
                value = _read(data, at, word)
                if value < 0:
                    return 1
                at += word
                if i & 3 == 3:
                    alpha[i >> 2] = value
                i += 1
    return 0


@kernel
def _write(out: Bytes, at: int, value: int, n: int) -> int:
    """Write ``n`` bits of ``value`` at bit ``at``; the bit after them."""
    for i in range(n):
        if (value >> (n - 1 - i)) & 1:
            out[at >> 3] |= np.uint8(1 << (7 - (at & 7)))
        at += 1
    return at


@kernel
def _pack(lengths: NDArray[np.int64], values: Bytes, sizes: NDArray[np.int64], out: Bytes) -> int:
    """Write runs after the head; the number of bits in all."""
    at = _HEAD_BITS
    for k in range(lengths.size):
        left = lengths[k]
        while left > 0:
            n = min(left, 1 << 16)
            which = 0
            while n > 1 << sizes[which]:
                which += 1
            at = _write(out, at, 4 | which, 3)
            at = _write(out, at, n - 1, sizes[which])
            at = _write(out, at, values[k], 8)
            left -= n
    return at


def decode_brush(rle: Any, height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) bool, where alpha is 128 or more, from a list of bytes.

    Raises `MaskError` where it is no brush RLE, of another size, or breaks off.
    """
    try:
        given = np.asarray(rle, np.int64)
    except (ValueError, TypeError, OverflowError):
        given = np.zeros(0, np.int64)
    if given.ndim != 1 or given.size < 7 or given.min() < 0 or given.max() > 255:
        raise _broken("a list of bytes (0 to 255), 7 or more", f"{type(rle).__name__} of {given.size}")
    data = given.astype(np.uint8)
    total, word = int(_read(data, 0, 32)), int(_read(data, 32, 5)) + 1
    sizes = np.array([_read(data, 37 + 4 * i, 4) + 1 for i in range(4)], np.int64)
    if total != 4 * height * width:
        raise _broken(f"{4 * height * width} values (4 x {height} x {width})", str(total))
    if word != 8:
        raise _broken("values of 8 bits", f"{word} bits")
    alpha = np.zeros(height * width, np.uint8)
    fault = _unpack(data, word, sizes, total, alpha)
    if fault:
        raise _broken("whole runs", "data that breaks off" if fault == 1 else "a run past the end")
    return alpha.reshape(height, width) >= 128


def encode_brush(mask: NDArray[np.uint8]) -> list[int]:
    """The brush RLE of an (H, W) mask: 255 in all four channels where it is not zero."""
    flat = np.ascontiguousarray(mask).ravel() != 0
    edges = np.flatnonzero(np.diff(flat)) + 1
    starts = np.concatenate(([0], edges))
    lengths = 4 * np.diff(np.concatenate((starts, [flat.size]))).astype(np.int64)
    values = (flat[starts] * 255).astype(np.uint8)
    pieces = int((lengths // (1 << 16) + 1).sum())
    out = np.zeros((_HEAD_BITS + 27 * pieces) // 8 + 2, np.uint8)
    _write(out, 0, 4 * flat.size, 32)
    _write(out, 32, 7, 5)
    for i, size in enumerate(_SIZES):
        _write(out, 37 + 4 * i, int(size) - 1, 4)
    bits = int(_pack(lengths, values, _SIZES, out))
    packed: list[int] = out[: (bits + 7) // 8].tolist()
    return packed


def _broken(expected: str, got: str) -> MaskError:
    return MaskError("not a brush RLE", expected=expected, got=got, fix="send Label Studio's value.rle unchanged")
