"""In which dress JSON has come: packed, in another encoding, with a comma too many; said by name, whoever reads it."""

from __future__ import annotations

from bpr_service.masks.images import FIRST_BYTES

BOM = b"\xef\xbb\xbf"
_NEAR = 200
"""Characters around a fault that are looked at."""
_DRESSES = (
    (b"\x1f\x8b", "gzip-compressed", "unpack it: gunzip FILE.gz"),
    (b"BZh", "bzip2-compressed", "unpack it: bunzip2 FILE.bz2"),
    (b"\xfd7zXZ", "xz-compressed", "unpack it: unxz FILE.xz"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it: unzstd FILE.zst"),
    (b"PK\x03\x04", "a ZIP archive", "unpack it"),
    (b"\xff\xfe\0\0", "UTF-32", "convert it: iconv -f UTF-32 -t UTF-8"),
    (b"\0\0\xfe\xff", "UTF-32", "convert it: iconv -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
)
_PICTURES = (
    (*FIRST_BYTES["JPEG"], "a JPEG picture", "masks in pictures have another --format; a mask is best kept as PNG"),
    (*FIRST_BYTES["PNG"], "a PNG picture", "masks in pictures have another --format, as png"),
)
_BARE = {
    (0, 0, 0): ("UTF-32", "UTF-32BE"),
    (1, 0, 0): ("UTF-32", "UTF-32LE"),
    (0, 1, 0): ("UTF-16", "UTF-16BE"),
    (1, 0, 1): ("UTF-16", "UTF-16LE"),
}
"""Which of the first three bytes are not zero, where the text begins with an ASCII character and no mark."""


def dress_of(head: bytes, *, pictures: bool = False) -> tuple[str, str] | None:
    """What the first bytes of a file are where they are no UTF-8 text, and what to do; None where they may be.

    `pictures`: whether a picture is one of the things that it is not meant to be.
    """
    for start, what, fix in (*_DRESSES, *(_PICTURES if pictures else ())):
        if head.startswith(start):
            return what, fix
    if len(head) >= 3 and (bare := _BARE.get((int(head[0] > 0), int(head[1] > 0), int(head[2] > 0)))):
        return f"{bare[0]} without a byte order mark", f"convert it: iconv -f {bare[1]} -t UTF-8"
    return None


def comma_too_many(text: str, at: int) -> str | None:
    """What to say where a reader stopped at ``at`` of a JSON text because of a comma that nothing follows."""
    if text[at : at + 1] == ",":  # newer readers stop at the comma, older ones behind it
        at += 1
    start = max(at - _NEAR, 0)
    behind = text[at : at + _NEAR].lstrip()[:1]
    if behind and behind in "]}" and text[start:at].rstrip().endswith(","):
        return f"a comma before {behind!r}"
    return None
