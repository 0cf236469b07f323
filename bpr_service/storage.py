"""Files on disk and on object storage behind one handful of functions.

An *address* is a local path or anything fsspec understands (``s3://bucket/key``, ``gs://...``, ``memory://...``).
Writing is atomic: a reader sees the old file or the whole new one, never a part.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from bpr_service import beneath
from bpr_service.errors import BprError, FormatError, NotFoundError, StorageError

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from fsspec import AbstractFileSystem

COPY_BYTES = 1 << 20


def is_remote(address: str) -> bool:
    """True for ``scheme://...`` addresses other than ``file://``."""
    return "://" in address and not address.startswith("file://")


def filesystem(address: str) -> tuple[AbstractFileSystem, str]:
    """The fsspec file system of an address, and the path in it. Listings are never cached: others write too."""
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(address, use_listings_cache=False) if is_remote(address) else url_to_fs(address)
    return fs, path


def join(folder: str, *names: str) -> str:
    """Join address parts with ``/``; empty names are left out."""
    return "/".join([folder.rstrip("/") or "/", *(name.strip("/") for name in names if name)])


def join_inside(folder: str, relative: str, *, within: tuple[str, ...] | None = None) -> str:
    """``folder/relative`` for a name that a file supplied; it may not leave ``folder``.

    Args:
        within: when given, the real local path (links followed) must stay inside one of these folders.

    Raises:
        FormatError: the name is empty, absolute, has a ``..`` part, or leaves ``within`` through a link.
    """
    parts = relative.replace("\\", "/").split("/")
    drive = (parts[0][1:2] == ":" and len(parts) > 1) or parts[0].endswith(":")
    remote = "::" in relative or "://" in relative
    if not relative or relative.startswith("/") or drive or remote or ".." in parts or "\0" in relative:
        raise FormatError(
            "a file name leaves its folder",
            expected="a relative name without '..'",
            got=repr(relative),
            fix="give names relative to the folder of the images or predictions",
        )
    address = join(folder, relative)
    if within is not None and not is_remote(address) and not is_inside(address, within):
        raise FormatError(
            "a link leaves the allowed folders",
            expected=f"a file inside {', '.join(within)}",
            got=repr(relative),
            fix="copy the file into the allowed folder",
        )
    return address


def is_inside(path: str, folders: tuple[str, ...]) -> bool:
    """True when a local path, links followed, is in one of the folders."""
    real = os.path.realpath(path)
    roots = (os.path.realpath(folder) for folder in folders)
    return any(real == root or real.startswith(root.rstrip("/") + "/") for root in roots)


def exists(address: str) -> bool:
    """True when the address is a file or folder that is there."""
    if not is_remote(address):
        return os.path.exists(address)
    fs, path = filesystem(address)
    return bool(fs.exists(path))


def open_read(address: str) -> BinaryIO:
    """Open for reading bytes; remote files are read in blocks as they are needed.

    Raises:
        NotFoundError: there is no such file.
        ForbiddenError: this process may not open it (`bpr_service.beneath`).
    """
    try:
        if not is_remote(address):
            return open(address, "rb", opener=beneath.opener)
        fs, path = filesystem(address)
        return cast(BinaryIO, fs.open(path, "rb"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotFoundError(
            "cannot read", expected="a file", got=f"{address} ({type(error).__name__})", fix="check the path"
        ) from error


def read_bytes(address: str) -> bytes:
    """The whole file. Raises ``NotFoundError``."""
    with open_read(address) as file:
        return file.read()


def size_bytes(address: str) -> int:
    """Size of the file in bytes. Raises ``NotFoundError``."""
    with open_read(address) as file:
        return file.seek(0, os.SEEK_END)


@contextmanager
def replacing(address: str) -> Iterator[IO[bytes]]:
    """Write a new file and put it in place at the end, all of it or nothing.

    Local: temporary file beside the target, fsync, ``os.replace``, fsync of the folder. Remote: a local
    temporary file that is uploaded when it is complete. A device or a pipe (``/dev/stdout``) gets what such a
    file holds.
    """
    if is_remote(address):
        with _temporary(None) as (file, path):
            yield file
            file.close()
            fs, target = filesystem(address)
            fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            fs.put_file(path, target)
        return
    if is_special(address):
        with _temporary(None) as (file, path):
            yield file
            file.close()
            with open(path, "rb") as source, open(address, "wb") as device:
                shutil.copyfileobj(source, device, COPY_BYTES)
        return
    with beneath.made(os.path.dirname(os.path.abspath(address))) as folder:
        with _temporary(folder) as (file, path):
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(path, os.path.join(folder, os.path.basename(address)))
        sync_folder(folder)


@contextmanager
def _temporary(folder: str | None) -> Iterator[tuple[IO[bytes], str]]:
    """A new file in a folder (None: a private one, where the system keeps such files) and its path; gone afterwards."""
    path = os.path.join(folder or tempfile.gettempdir(), f".{secrets.token_hex(8)}.tmp")
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if folder else 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file, path
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)


def is_special(address: str) -> bool:
    """Whether a local path is there and neither a file nor a folder: a device, a pipe."""
    return not is_remote(address) and os.path.exists(address) and not os.path.isfile(address) | os.path.isdir(address)


def sync_folder(folder: str) -> None:
    """Make a rename inside a local folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(address: str | Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with replacing(str(address)) as file:
        file.write(data)


def lock(path: str | Path) -> BaseFileLock:
    """A lock between the processes of a machine, to be acquired; it goes with the process that holds it."""
    from filelock import FileLock

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def copy(source: str, target: str) -> None:
    """Copy a file atomically, in blocks."""
    with open_read(source) as reader, replacing(target) as writer:
        while block := reader.read(COPY_BYTES):
            writer.write(block)


def list_files(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """Sorted names, relative to the folder, of the files below it with one of the (lower-case) suffixes.

    Links to folders are followed, but not one that leads back to a folder above it, or out of those that this process
    may read.

    Raises:
        NotFoundError: the folder is not there.
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
    fs, path = filesystem(folder)
    prefix = path.rstrip("/") + "/"
    found = [name.removeprefix(prefix) for name in fs.find(path) if name.lower().endswith(suffixes)]
    if not found and not fs.exists(path):
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


def sha256(address: str) -> str:
    """Hex SHA-256 of a file, read in blocks. Raises ``NotFoundError``."""
    digest = hashlib.sha256()
    with open_read(address) as file:
        while block := file.read(COPY_BYTES):
            digest.update(block)
    return digest.hexdigest()


# --- object stores ---------------------------------------------------------------------------------------------------


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Turn what an object store raises into an error that says so; local addresses keep the system's own errors.

    Raises:
        StorageError: the store refuses, or cannot be reached.
    """
    try:
        yield
    except (BprError, FileNotFoundError, FileExistsError, IsADirectoryError):
        raise
    except Exception as error:
        if not is_remote(address):
            raise
        raise StorageError(
            f"{address}: the store refuses",
            expected="an object store that answers",
            got=f"{type(error).__name__}: {error}",
            fix="check the address, the credentials and the network",
        ) from error


def read_range(address: str, start: int, length: int) -> bytes:
    """``length`` bytes from ``start`` on, in one request on an object store.

    Raises:
        NotFoundError: there is no such file.
        StorageError: the store refuses.
    """
    if is_remote(address) and length:
        with reaching(address):
            fs, path = filesystem(address)
            try:
                return bytes(fs.cat_file(path, start=start, end=start + length))
            except FileNotFoundError:
                raise NotFoundError("cannot read", expected="a file", got=address, fix="check the address") from None
    with open_read(address) as file:
        file.seek(start)
        return file.read(length)


def put_if_absent(source: str, address: str) -> bool:
    """Upload a local file unless the address has one; False when it had.

    Raises:
        StorageError: the store refuses.
    """
    with reaching(address):
        fs, path = filesystem(address)
        try:
            fs.put_file(source, path, mode="create")
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise StorageError(f"{address}: the store refuses", got=str(error), fix="make the bucket") from error
        return True


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
