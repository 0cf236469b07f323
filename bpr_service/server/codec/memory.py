"""What reading and writing may take: every step asks before it allocates, and the kernel holds it to its word.

Memory is of two kinds. *Lasting* memory is shared with the server (the picture, masks, the answer) and is given back
when the answer has been sent. *Passing* memory is the worker's own and ends with the step; it is also set as the limit
of the process, so that what an estimate forgot ends in an error of this request and not in the machine's.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
from numpy.typing import NDArray

from bpr_service.kernel import kernel

SLACK_BYTES = 48 << 20
"""What a worker may take for itself beside what it asked for."""
KEPT_BYTES = 24 << 20
"""What a worker may keep of it between two steps."""

VALUE_BYTES = 96
"""A number or short text of JSON as a Python object in a list, parsed and checked."""
KEY_BYTES = 64
"""A key of a JSON object."""
OBJECT_BYTES = 2048
"""A JSON object, parsed and checked."""
TEXT_COPIES = 4
"""The text of JSON as its parser copies it, as strings, and as files that came in base64."""
PARSER_MAPS = 12
"""Bytes that the JSON parser maps for each byte of its text; it touches those of the values alone."""

PICTURE_BYTES = {"PNG": 18, "JPEG": 18, "WEBP": 24, "TIFF": 26, "BMP": 20, "AVIF": 40, "MPO": 18, "HEIF": 48}
"""Passing bytes a pixel of decoding, by Pillow's name of the format; `tests/server/peak.py` measures them, see
docs/operations/security.md."""
PROGRESSIVE_BYTES = 8
"""And of the coefficients that a progressive JPEG keeps."""
WIDE_BYTES = 24
"""And where a sample has more than 8 bits."""
TURNED_BYTES = 8
"""And where the pixels are turned upright."""
WINDOW_BYTES = 40
"""And where a window of values is stretched."""
MASK_BYTES = 8
"""Lasting bytes for a pixel of a mask's box: the crop, and the sums of the patches that overlap."""
MAP_BYTES = 24
"""Lasting bytes for a pixel of a label map: the map, and the sums of its labels."""


QUANTUM_BYTES = 2 << 20
"""Memory is asked for in such steps, so that small masks cost no message each; a step has one of each kind at once."""


class Allowance:
    """What one step may take. ``ask(lasting, passing)`` gets more, or raises `BusyError` or `LimitError`."""

    def __init__(self, ask: Callable[[int, int], None], limit: bool = True) -> None:
        """``limit``: whether the process is held to what it took."""
        self._ask, self._limit = ask, limit
        self._lasting_left = self._passing_taken = QUANTUM_BYTES
        self._kept = self._most = 0

    @property
    def passing(self) -> int:
        """Bytes of passing memory that the step has named so far."""
        return self._kept + self._most

    def last(self, n_bytes: int) -> None:
        """Take memory that lasts until the answer has been sent."""
        if n_bytes > self._lasting_left:
            more = max(QUANTUM_BYTES, n_bytes - self._lasting_left)
            self._ask(more, 0)
            self._lasting_left += more
        self._lasting_left -= n_bytes

    def take(self, n_bytes: int) -> None:
        """Take memory that is kept to the end of the step: what was parsed, crops."""
        self._kept += n_bytes
        self._cover()

    def at_least(self, n_bytes: int) -> None:
        """Take memory for a part of the step, which the parts after it use again: beside what is kept."""
        self._most = max(self._most, n_bytes)
        self._cover()

    def _cover(self) -> None:
        missing = self.passing - self._passing_taken
        if missing > 0:
            more = max(QUANTUM_BYTES, missing)
            self._ask(0, more)
            self._passing_taken += more
            self._hold(0)

    @contextmanager
    def room(self, n_bytes: int) -> Iterator[None]:
        """Let the process map ``n_bytes`` more for a while, of which it hardly touches any."""
        self._hold(n_bytes)
        try:
            yield
        finally:
            self._hold(0)

    def _hold(self, n_bytes: int) -> None:
        if self._limit:
            limit_process(self._passing_taken + n_bytes)


_base_bytes = 0


def begin() -> None:
    """Count from here: what the process has now is not its steps'.

    Freed memory up to `KEPT_BYTES` is kept for the next step, as fresh pages cost more than what is done with them.
    """
    import ctypes

    global _base_bytes
    _base_bytes = _data_bytes()
    limit_process(0)
    with suppress(OSError, AttributeError):  # another C library than glibc
        trim_threshold, mmap_threshold = -1, -3
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_threshold, KEPT_BYTES)
        mallopt(trim_threshold, KEPT_BYTES)


def has_grown() -> bool:
    """Whether the process keeps so much that its next step might be short of memory: then another takes its place."""
    return _data_bytes() > _base_bytes + KEPT_BYTES + SLACK_BYTES // 4


def _data_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[5]) * resource.getpagesize()


def limit_process(passing: int) -> None:
    """Let the process hold no more than it did at `begin`, ``passing`` and a little slack."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_base_bytes + passing + SLACK_BYTES, hard))


@kernel
def _count(text: NDArray[np.uint8]) -> tuple[int, int, int]:
    values, keys, objects = 0, 0, 0
    for c in text:
        values += c == 44 or c == 91  # , [
        keys += c == 58
        objects += c == 123
    return values, keys, objects


@kernel
def longest_number(text: NDArray[np.uint8]) -> int:
    """Digits of the longest run of them in (n,) uint8 text."""
    longest = run = 0
    for c in text:
        run = run + 1 if 48 <= c <= 57 else 0
        longest = max(longest, run)
    return longest


def json_bytes(text: NDArray[np.uint8]) -> int:
    """Passing bytes that (n,) uint8 JSON takes once it is parsed and checked, known before it is."""
    values, keys, objects = (int(n) for n in _count(text))
    return TEXT_COPIES * text.size + VALUE_BYTES * values + KEY_BYTES * keys + OBJECT_BYTES * objects
