"""Memory that two processes share, without a name that could be left behind or taken away.

A named segment outlives a process that is killed, and the interpreter's resource tracker may remove it under a
process that has yet to open it. A buffer is a file that has no name: it goes with the last process that holds it.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from contextlib import suppress
from multiprocessing.reduction import DupFd
from typing import Any


class SharedBuffer:
    """``size`` bytes of shared memory; pickled into a process that is being spawned, it is the same memory there."""

    def __init__(self, size: int) -> None:
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("bpr-buffer")
        else:  # not Linux
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())
        os.ftruncate(self._file, size)
        self.memory = mmap.mmap(self._file, size)

    def __reduce__(self) -> tuple[Any, ...]:
        return _attached, (DupFd(self._file), len(self.memory))

    def close(self) -> None:
        """Give it back; a view that is still held keeps the memory until it is gone."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        with suppress(BufferError):
            self.memory.close()


def _attached(inherited: Any, size: int) -> SharedBuffer:
    buffer = SharedBuffer.__new__(SharedBuffer)
    buffer._file = inherited.detach()
    buffer.memory = mmap.mmap(buffer._file, size)
    return buffer
