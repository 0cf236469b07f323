"""Local files beneath some folders and nowhere else: what a process that works for others may open.

A name is resolved, its links too, to a path that must lie in one of the folders. That path is then opened from the
folder's descriptor with no link followed any more (``openat2`` of Linux, else part by part), so that a link which is
put there in between leads nowhere. A process that nobody confined opens what it is told to.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import cache

from bpr_service.errors import ForbiddenError

VARIABLE = "BPR_CONFINED"
"""Where a process keeps its folders: those that it starts are confined with it."""
OPENAT2 = 437
"""The number of the system call, the same on every machine."""
_NO_LINKS_BENEATH = 0x04 | 0x08 | 0x02  # RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Folders:
    """What may be opened: real paths of folders to read, and of those to write (which may be read as well)."""

    read: tuple[str, ...]
    write: tuple[str, ...] = ()

    @classmethod
    def of(cls, read: tuple[str, ...], write: tuple[str, ...] = ()) -> Folders:
        """Folders by any path."""
        return cls(tuple(map(os.path.realpath, read)), tuple(map(os.path.realpath, write)))

    def open(self, path: str, flags: int) -> int:
        """A descriptor of a file. Raises `ForbiddenError` where it is not in the folders, and `OSError`."""
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR))
        root, rest = self._place(path, writes=writes)
        return _opened(root, rest, flags)

    @contextmanager
    def folder(self, path: str) -> Iterator[str]:
        """A folder to write to, made where it is missing, as a path that means this folder and no other."""
        root, rest = self._place(path, writes=True)
        at = os.open(root, _FOLDER)
        try:
            for name in rest.split("/"):
                try:
                    inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
                except FileNotFoundError:
                    with suppress(FileExistsError):
                        os.mkdir(name, dir_fd=at)
                    inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
                os.close(at)
                at = inner
            yield f"/proc/self/fd/{at}"
        finally:
            os.close(at)

    def has(self, path: str, *, writes: bool = False) -> bool:
        """Whether a path, links followed, is in the folders."""
        try:
            self._place(path, writes=writes)
        except ForbiddenError:
            return False
        return True

    def _place(self, path: str, *, writes: bool) -> tuple[str, str]:
        """The folder that a path is in, links followed, and the rest of the way, without links."""
        real = os.path.realpath(path)
        for root in self.write if writes else (*self.read, *self.write):
            if real == root or real.startswith(root.rstrip("/") + "/"):
                return root, os.path.relpath(real, root)
        raise ForbiddenError(
            "a file is outside the folders that may be used",
            expected=f"a file in {', '.join(self.write if writes else (*self.read, *self.write)) or 'none'}",
            got=repr(path),
            fix="copy it into one of them: links out of them are not followed",
        )


_here: ContextVar[Folders | None] = ContextVar("folders", default=None)


def confine(folders: Folders) -> None:
    """Let this process, and those that it starts, open files in these folders alone, by the functions below."""
    os.environ[VARIABLE] = json.dumps(asdict(folders))


@contextmanager
def within(folders: Folders) -> Iterator[None]:
    """`confine` for what this thread does meanwhile."""
    token = _here.set(folders)
    try:
        yield
    finally:
        _here.reset(token)


def confined() -> Folders | None:
    """The folders that may be used here; None where that is everything."""
    text = os.environ.get(VARIABLE)
    return _here.get() or (_parsed(text) if text else None)


@cache
def _parsed(text: str) -> Folders:
    return Folders(**{name: tuple(paths) for name, paths in json.loads(text).items()})


def opener(path: str, flags: int) -> int:
    """What `open` takes as its ``opener``: as `Folders.open` in a process that is confined."""
    folders = confined()
    return os.open(path, flags, 0o666) if folders is None else folders.open(path, flags)


@contextmanager
def made(folder: str) -> Iterator[str]:
    """A folder to write to, made where it is missing, by a path: as `Folders.folder` in a process that is confined."""
    folders = confined()
    if folders is None:
        os.makedirs(folder, exist_ok=True)
        yield folder
        return
    with folders.folder(folder) as path:
        yield path


def may_read(path: str) -> bool:
    """Whether this process may read what is at a path."""
    folders = confined()
    return folders is None or folders.has(path)


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _opened(root: str, rest: str, flags: int) -> int:
    at = os.open(root, _FOLDER)
    try:
        found = _openat2(at, rest, flags)
        return _by_parts(at, rest, flags) if found is None else found
    finally:
        os.close(at)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _openat2(at: int, path: str, flags: int) -> int | None:
    """A descriptor of what lies beneath ``at``, no link followed; None where the system does not have the call."""
    how = _How(flags | os.O_CLOEXEC, 0o666 if flags & os.O_CREAT else 0, _NO_LINKS_BENEATH)
    found = int(_libc().syscall(OPENAT2, at, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)))
    if found >= 0:
        return found
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EPERM, errno.EAGAIN):  # an old kernel, one that forbids it, a rename meanwhile
        return None
    raise OSError(number, os.strerror(number), path)


def _by_parts(at: int, path: str, flags: int) -> int:
    """`_openat2`, one part of the path after the other. ``at`` stays open."""
    *folders, name = path.split("/")
    inner = at
    try:
        for folder in folders:
            further = os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=inner)
            if inner != at:
                os.close(inner)
            inner = further
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=inner)
    finally:
        if inner != at:
            os.close(inner)
