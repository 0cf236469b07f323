"""Where results go, checked before the work: that nothing is lost after it."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path, PurePosixPath

from bpr_service import storage
from bpr_service.errors import ConfigError, FormatError
from bpr_service.formats.one_image import PICTURES

SAME_SUFFIX = ({".tif", ".tiff"}, {".jsonl", ".ndjson"})
FORMS = {".json", ".jsonl", ".ndjson", ".parquet", ".xml", ".txt", ".yaml", ".csv", ".npy", ".npz", ".gz", ".zip"}
FORMS |= {*PICTURES, ".avif", ".heic", ".heif"}
"""Names that end so promise a form; others promise none."""


def check_suffix(given: str, out: str, what: str) -> None:
    """Raise `ConfigError` where a result would be written under a name of another kind than its form.

    Args:
        given: the file that the masks came in, whose form the result has.
        out: where the result goes.
        what: what the message calls that.
    """
    came, asked = (PurePosixPath(name.replace("\\", "/")).suffix.lower() for name in (given, out))
    fits = came == asked or any({came, asked} <= same for same in SAME_SUFFIX)
    if came and asked in FORMS and not fits:
        raise ConfigError(
            f"{what} {out}",
            expected=f"a name that ends with {came}, as {PurePosixPath(given).name} does",
            got=asked,
            fix="masks are written in the form in which they came; --encoding chooses another inside JSON",
        )


def check_target(address: str | Path, what: str, *, folder: bool = False) -> None:
    """Raise before the work where a result could not be written after it.

    A folder that is missing is made when the result is written. Object storage is not asked.

    Args:
        address: a path, or an address in object storage.
        what: what the message calls it, as ``--out``.
        folder: the result is a folder of files, not one file.

    Raises:
        FormatError: it is a folder where a file is to go or the other way round, or nothing can be written there.
    """
    name = str(address)
    if storage.is_remote(name):
        return
    if name in ("", "-") or "\0" in name:
        raise FormatError(f"{what} {name!r}", expected="a path", got="none", fix="name a file or a folder")
    try:
        there = os.path.isdir(name) if os.path.lexists(name) else folder or name.endswith(os.sep)
        if there != folder:
            wanted, found = ("a folder", "a file") if folder else ("a file", "a folder")
            raise FormatError(f"{what} {name}", expected=wanted, got=found, fix="name another place")
        if not storage.is_special(name):
            _probe(Path(os.path.realpath(name)), folder)
    except OSError as error:
        raise FormatError(
            f"{what} {name}",
            expected="a place that can be written",
            got=error.strerror or str(error),
            fix="check its name, its folder, its permissions and the room on the disk",
        ) from None


def _probe(path: Path, folder: bool) -> None:
    """Write a little where a file, or a folder's files, will be written. Raises ``OSError``."""
    with suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(path)  # a name that is too long
    there = next(each for each in (path, *path.parents) if each.exists())
    with tempfile.TemporaryFile(dir=there.parent if there == path and not folder else there) as probe:
        probe.write(bytes(4096))
        probe.flush()
