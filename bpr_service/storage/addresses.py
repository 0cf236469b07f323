"""Addresses: joined with names that files supplied, which may not leave their folder."""

from __future__ import annotations

import os

from bpr_service.errors import FormatError


def is_remote(address: str) -> bool:
    """True for ``scheme://...`` addresses other than ``file://``."""
    return "://" in address and not address.startswith("file://")


def join(folder: str, *names: str) -> str:
    """Join address parts with ``/``; empty names are left out."""
    return "/".join([folder.rstrip("/") or "/", *(name.strip("/") for name in names if name)])


def join_inside(folder: str, relative: str, *, within: tuple[str, ...] | None = None) -> str:
    """``folder/relative`` for a name that a file supplied; it may not leave ``folder``.

    Args:
        folder: a local path or an address in object storage.
        relative: the name.
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


def is_special(address: str) -> bool:
    """Whether a local path is there and neither a file nor a folder: a device, a pipe."""
    return not is_remote(address) and os.path.exists(address) and not os.path.isfile(address) | os.path.isdir(address)
