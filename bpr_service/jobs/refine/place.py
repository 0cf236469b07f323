"""Where a run is kept between its plan and its result: a folder, or a prefix of an object store.

A file appears whole or not at all. In a folder it is renamed into place; on an object store it is put if no other is
there, so of two workers that finish the same part one wins and the other's equal part is dropped.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from bpr_service import storage
from bpr_service.errors import NotFoundError, StorageError
from bpr_service.jobs.requests import digest

PAGE = "page.html"
"""Name of an audit's page, where a job keeps it."""
OWN = ("plan.json", "plan-", "part-", ".plan-")
"""How the names of a run's own files begin."""


class Place:
    """One run's files.

    Args:
        address: a local folder, or an fsspec address (``s3://bucket/run``).

    Attributes:
        scratch: the local folder for what grows: journals, and the plan while it is made. The place itself where that
            is a folder.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.remote = storage.is_remote(address)
        if self.remote:
            name = f"bpr-{digest(self.address)[:16]}"
            self.scratch = Path(tempfile.gettempdir()) / name
        else:
            self.scratch = Path(self.address)

    def prepare(self) -> None:
        """Make the local folder. Raises ``StorageError`` where it cannot be made."""
        try:
            self.scratch.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{self.scratch}: no place for unfinished work", got=str(error.strerror), fix="pass another --work"
            ) from error

    def at(self, name: str) -> str:
        """The address of a file."""
        return storage.join(self.address, name)

    def read(self, name: str) -> bytes | None:
        """A whole file, None where there is none."""
        try:
            return storage.read_bytes(self.at(name))
        except NotFoundError:
            return None

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start`` on: one request on an object store. Raises ``NotFoundError``."""
        return storage.read_range(self.at(name), start, length)

    def put(self, name: str, source: Path) -> None:
        """Put a finished local file in place and remove it there; on an object store one that is there stays.

        Raises:
            StorageError: the store refuses it.
        """
        if not self.remote:
            os.replace(source, self.at(name))
            storage.sync_folder(self.address)
            return
        storage.put_if_absent(str(source), self.at(name))
        source.unlink()

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""
        storage.remove(self.at(name))

    def list(self, prefix: str) -> list[str]:
        """Names of the files that begin with ``prefix``."""
        return storage.list_names(self.address, prefix)

    def clear(self) -> None:
        """Remove what a run keeps, and nothing else that lies there."""
        for name in self.list(""):
            if name.startswith(OWN):
                self.remove(name)
        if self.remote:
            shutil.rmtree(self.scratch, ignore_errors=True)
            return
        shutil.rmtree(self.scratch / "merge", ignore_errors=True)
        with suppress(OSError):  # something of others lies there
            self.scratch.rmdir()
