"""Where a PNG keeps its EXIF data."""

from __future__ import annotations

from typing import Any


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
