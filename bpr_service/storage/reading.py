"""Files read, whole or in spans, and folders listed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from bpr_service.errors import NotFoundError
from bpr_service.storage import beneath
from bpr_service.storage.addresses import is_remote, join
from bpr_service.storage.object_store import Span, bounds, filesystem, held, merged, reaching

COPY_BYTES = 1 << 20
"""What is read at once of a file that is read through."""


def exists(address: str) -> bool:
    """True when the address is a file or folder that is there. Raises ``StorageError`` where a store refuses."""
    if not is_remote(address):
        return os.path.exists(address)
    with reaching(address):
        fs, path = filesystem(address)
        return bool(fs.exists(path))


def open_read(address: str) -> BinaryIO:
    """Open for reading bytes; remote files are read in blocks as they are needed.

    Raises:
        NotFoundError: there is no such file.
        ForbiddenError: this process may not open it (`bpr_service.storage.beneath`).
        StorageError: the store refuses.
    """
    try:
        if not is_remote(address):
            return open(address, "rb", opener=beneath.opener)
        with reaching(address):
            fs, path = filesystem(address)
            return cast(BinaryIO, fs.open(path, "rb"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise _no_file(address, error) from error


def _no_file(address: str, error: OSError) -> NotFoundError:
    return NotFoundError(
        "cannot read", expected="a file", got=f"{address} ({type(error).__name__})", fix="check the path"
    )


def read_bytes(address: str) -> bytes:
    """The whole file. Raises as `open_read`."""
    if not is_remote(address):
        with open_read(address) as file:
            return file.read()
    return read_range(address, 0, None)


def read_range(address: str, start: int, length: int | None) -> bytes:
    """``length`` bytes (None: all) from ``start`` on, in one request on an object store.

    Raises:
        NotFoundError: there is no such file.
        StorageError: the store refuses.
    """
    if is_remote(address) and length != 0:
        with reaching(address):
            try:
                if (data := held(Span(address, start, length))) is not None:
                    return data
                fs, path = filesystem(address)
                return bytes(fs.cat_file(path, **bounds(start, length)))
            except (FileNotFoundError, IsADirectoryError) as error:
                raise _no_file(address, error) from None
    with open_read(address) as file:
        return _read_at(file, start, length)


def read_spans(address: str, spans: list[tuple[int, int]]) -> list[bytes]:
    """The bytes at each (start, length), which must be in rising order; of neighbours in one request.

    Raises as `read_range`.
    """
    if not is_remote(address):
        with open_read(address) as file:
            return [_read_at(file, start, length) for start, length in spans]
    blocks = iter(merged(spans))
    first, data, out = 0, b"", list[bytes]()
    for start, length in spans:
        while start + length > first + len(data):
            first, size = next(blocks)
            data = read_range(address, first, size)
        out.append(data[start - first : start - first + length])
    return out


def _read_at(file: BinaryIO, start: int, length: int | None) -> bytes:
    file.seek(start)
    return file.read(-1 if length is None else length)


def info(address: str) -> dict[str, Any]:
    """What an object store says of a file: its size, and what changes with it. Raises ``StorageError``."""
    with reaching(address):
        fs, path = filesystem(address)
        return dict(fs.info(path))


def size_bytes(address: str) -> int:
    """Size of the file in bytes. Raises ``NotFoundError``."""
    with open_read(address) as file:
        return file.seek(0, os.SEEK_END)


def sha256(address: str) -> str:
    """Hex SHA-256 of a file, read in blocks. Raises ``NotFoundError``."""
    digest = hashlib.sha256()
    with open_read(address) as file:
        while block := file.read(COPY_BYTES):
            digest.update(block)
    return digest.hexdigest()


def list_files(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """Sorted names, relative to the folder, of the files below it with one of the (lower-case) suffixes.

    Links to folders are followed, but not one that leads back to a folder above it, or out of those that this process
    may read.

    Raises:
        NotFoundError: the folder is not there.
        StorageError: the store refuses.
    """
    if not is_remote(folder):
        if not os.path.isdir(folder):
            raise NotFoundError("cannot list", expected="a folder", got=folder, fix="check the path")
        base = Path(folder)
        found = [
            os.path.relpath(os.path.join(where, name), base).replace(os.sep, "/")
            for where, names in _walk(folder)
            for name in names
            if name.lower().endswith(suffixes)
        ]
        return sorted(found)
    with reaching(folder):
        fs, path = filesystem(folder)
        prefix = path.rstrip("/") + "/"
        found = [name.removeprefix(prefix) for name in fs.find(path) if name.lower().endswith(suffixes)]
        there = bool(found) or fs.exists(path)
    if not there:
        raise NotFoundError("cannot list", expected="a folder", got=folder, fix="check the address")
    return sorted(found)


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Every folder below one, itself included, and the names of its files."""
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where) + os.sep
        folders[:] = [
            name
            for name in folders
            if not real.startswith(os.path.realpath(path := join(where, name)) + os.sep) and beneath.may_read(path)
        ]
        yield where, names


def list_names(folder: str, prefix: str) -> list[str]:
    """Sorted names of the files of a folder that begin with ``prefix``; none where there is no folder.

    Raises:
        StorageError: the store refuses.
    """
    if not is_remote(folder):
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.name.startswith(prefix) and entry.is_file())
        return []
    with reaching(folder):
        fs, path = filesystem(folder)
        try:
            found = fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
    names = (name.rsplit("/", 1)[1] for name in found)
    return sorted(name for name in names if name.startswith(prefix))
