"""Files written: all of one or nothing, and where asked only if none is there."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from bpr_service.errors import StorageError
from bpr_service.storage import beneath
from bpr_service.storage.addresses import is_remote, is_special
from bpr_service.storage.object_store import filesystem, reaching
from bpr_service.storage.reading import COPY_BYTES, open_read

if TYPE_CHECKING:
    from filelock import BaseFileLock


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
            with reaching(address):
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


def copy(source: str, target: str) -> None:
    """Copy a file atomically, in blocks."""
    with open_read(source) as reader, replacing(target) as writer:
        while block := reader.read(COPY_BYTES):
            writer.write(block)


def remove(address: str) -> None:
    """Remove a file; nothing happens where there is none.

    Raises:
        StorageError: the store refuses.
    """
    with reaching(address), suppress(FileNotFoundError):
        fs, path = filesystem(address)
        fs.rm_file(path)


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


def lock(path: str | Path) -> BaseFileLock:
    """A lock between the processes of a machine, to be acquired; it goes with the process that holds it."""
    from filelock import FileLock

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)
