"""COCO run-length encoding, straight between the runs and a mask's box window; no full frame is ever made.

Runs go down the columns of an (H, W) image and alternate, zeros first. The compressed form writes each run,
less the run two before it from the fourth on, in groups of five bits as printable characters (pycocotools,
``rleToString``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import MaskError
from bpr_service.kernel import kernel

Runs = NDArray[np.int64]
Bytes = NDArray[np.uint8]


@kernel
def _decompress(text: Bytes, runs: Runs) -> int:
    """Fill `runs` from `text`.

    Returns:
        The number of runs, or minus the position (from 1) of the character at fault.
    """
    n, i = 0, 0
    while i < text.size:
        value, shift, more = 0, 0, True
        while more:
            if i >= text.size or shift > 55:
                return -(i + 1)
            c = int(text[i]) - 48
            if c < 0 or c > 63:
                return -(i + 1)
            value |= (c & 31) << shift
            more = (c & 32) != 0
            shift += 5
            i += 1
            if not more and (c & 16):
                value |= -1 << shift
        if n > 2:
            value += runs[n - 2]
        runs[n] = value
        n += 1
    return n


@kernel
def _compress(runs: Runs, text: Bytes) -> int:
    """Fill `text` from `runs`; the number of characters."""
    n = 0
    for i in range(runs.size):
        value = runs[i]
        if i > 2:
            value -= runs[i - 2]
        more = True
        while more:
            c = value & 31
            value >>= 5
            more = value != -1 if c & 16 else value != 0
            if more:
                c |= 32
            text[n] = c + 48
            n += 1
    return n


@kernel
def _bounds(runs: Runs, height: int) -> tuple[int, int, int, int]:
    """Tight box (x0, y0, x1, y1), half-open, of the foreground; (0, 0, 0, 0) when there is none."""
    x0, y0, x1, y1 = 1 << 62, 1 << 62, 0, 0
    at = 0
    for i in range(runs.size):
        if i % 2 == 1 and runs[i] > 0:
            first, last = at, at + runs[i] - 1
            xa, xb = first // height, last // height
            ya, yb = first - xa * height, last - xb * height
            if xb > xa:  # the run goes on in the next column, so it touches the bottom and the top
                ya, yb = 0, height - 1
            x0, x1 = min(x0, xa), max(x1, xb + 1)
            y0, y1 = min(y0, ya), max(y1, yb + 1)
        at += runs[i]
    if x1 == 0:
        return 0, 0, 0, 0
    return x0, y0, x1, y1


@kernel
def _paint(runs: Runs, height: int, x0: int, y0: int, crop: Bytes) -> None:
    """Write ones into `crop`, the window whose left top is (x0, y0); the window holds all of the foreground."""
    at = 0
    for i in range(runs.size):
        if i % 2 == 1:
            x = at // height
            y = at - x * height
            for _ in range(runs[i]):
                crop[y - y0, x - x0] = 1
                y += 1
                if y == height:
                    y = 0
                    x += 1
        at += runs[i]


@kernel
def _runs_of(columns: Bytes, x0: int, y0: int, height: int, width: int, runs: Runs) -> int:
    """Fill `runs` with the runs of the whole frame; how many there are (may exceed ``runs.size``).

    `columns` is the (h, w) window turned, each column followed by one zero or more up to a multiple of eight,
    so that eight pixels that do not change are passed at once.
    """
    w = columns.shape[0]
    n, start, value = 0, 0, np.uint8(0)  # the run now open began at flat position `start`
    words = columns.view(np.uint64)
    same = np.uint64(0)  # eight pixels of `value`
    for x in range(w + 1):
        base = (x0 + x) * height
        if value == 1 and (y0 > 0 or x == w) and base < height * width:  # zeros above the window, or right of it
            if n < runs.size:
                runs[n] = base - start
            start, value, same = base, np.uint8(0), np.uint64(0)
            n += 1
        if x == w:
            break
        column, line = columns[x], words[x]
        for k in range(line.size):
            if line[k] == same:
                continue
            for y in range(8 * k, min(8 * k + 8, height - y0)):
                if column[y] != value:
                    at = base + y0 + y
                    if n < runs.size:
                        runs[n] = at - start
                    start, value = at, np.uint8(1) - value
                    n += 1
            same = np.uint64(0x0101010101010101) if value else np.uint64(0)
    if n < runs.size:
        runs[n] = height * width - start
    return n + 1


def parse_counts(counts: Any, height: int, width: int) -> Runs:
    """Runs of `counts`, a compressed string (or its bytes) or a list of integers, checked against (height, width).

    Raises:
        MaskError: the string is damaged, a run is negative, or the runs do not add up to ``height * width``.
    """
    if isinstance(counts, str):
        counts = counts.encode("ascii", errors="replace")
    if isinstance(counts, bytes | bytearray):
        text = np.frombuffer(counts, np.uint8)
        runs = np.empty(text.size, np.int64)
        n = _decompress(text, runs)
        if n < 0:
            raise MaskError(
                "the compressed RLE is damaged",
                expected="groups of the characters '0' to 'o', the last one closed",
                got=f"a fault at character {-n} of {text.size}",
                fix="send the string as pycocotools wrote it, unescaped and whole",
            )
        runs = runs[:n]
    else:
        try:
            given = np.asarray(counts)
        except ValueError:  # nested lists of unequal lengths
            given = np.empty((0, 0))
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise MaskError(
                "the RLE has no usable counts",
                expected="a compressed string or a flat list of integers",
                got=f"{type(counts).__name__} {str(counts)[:60]!r}",
                fix="write counts as pycocotools does",
            )
        runs = given.astype(np.int64)
    if runs.size and int(runs.min()) < 0:
        raise MaskError(
            "an RLE run is negative",
            expected="runs of 0 pixels or more",
            got=str(int(runs.min())),
            fix="encode the mask again",
        )
    total = int(runs.sum(dtype=np.float64))  # cannot wrap around, and is exact below 2**53
    if total != height * width:
        raise MaskError(
            "the RLE runs do not add up",
            expected=f"{height * width} pixels ({height} x {width})",
            got=f"{total}",
            fix="check that size is [height, width] and the counts are those of this mask",
        )
    return runs


def decode(runs: Runs, height: int) -> tuple[int, int, Bytes]:
    """Left, top and the tight (h, w) crop {0, 1} of checked runs."""
    x0, y0, x1, y1 = _bounds(runs, height)
    crop = np.zeros((y1 - y0, x1 - x0), np.uint8)
    _paint(runs, height, x0, y0, crop)
    return x0, y0, crop


def encode(crop: Bytes, x: int, y: int, height: int, width: int) -> Runs:
    """Runs of the (height, width) frame that is zero but for `crop` at (x, y), as pycocotools gives them."""
    if crop.size == 0:
        return np.array([height * width], np.int64)
    h, w = crop.shape
    columns = np.zeros((w, (h + 8) // 8 * 8), np.uint8)  # at least one row of padding ends the last run
    columns[:, :h] = crop.T
    runs = np.empty(4 * w + 1024, np.int64)
    n = _runs_of(columns, x, y, height, width, runs)
    if n > runs.size:
        runs = np.empty(n, np.int64)
        _runs_of(columns, x, y, height, width, runs)
    return runs[:n]


def compress(runs: Runs) -> str:
    """The compressed string of `runs`, as ``pycocotools.mask`` writes it."""
    text = np.empty(runs.size * 13 + 1, np.uint8)
    return text[: _compress(runs, text)].tobytes().decode("ascii")
