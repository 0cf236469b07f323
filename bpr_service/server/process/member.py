"""What one process of a fleet knows of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import httpx

BACKLOG = 2048
"""Connections that may wait to be accepted."""


@dataclass(frozen=True, slots=True)
class Member:
    """What one process of a fleet knows of it."""

    process: int
    devices: tuple[str, ...]
    folder: Path

    def socket_path(self, process: int) -> Path:
        return self.folder / f"{process}.sock"


def client_of(path: Path) -> httpx.Client:
    """A client of the process that listens on a Unix socket."""
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://127.0.0.1")
