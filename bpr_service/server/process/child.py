"""The way in of one process of a fleet."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from bpr_service.errors import BprError
from bpr_service.runtime.orphan import when_parent_ends
from bpr_service.server.process.member import Member
from bpr_service.server.process.run import run_member
from bpr_service.server.settings import ServerSettings


def child() -> int:
    """Serve what the parent describes in a line of JSON on standard input; returns the exit code."""
    given: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    member = Member(given["process"], tuple(given["devices"]), Path(given["folder"]))
    when_parent_ends(signal.SIGCONT)
    threading.Thread(target=_leave_with_parent, name="parent", daemon=True).start()
    listener = socket.socket(fileno=given["listener"])
    own = socket.socket(socket.AF_UNIX)
    try:
        return run_member(ServerSettings(**given["settings"]), member, listener, own)
    except BprError as error:
        print(f"bpr: {error}", file=sys.stderr)
        return 2


def _leave_with_parent() -> None:
    while os.read(0, 1024):  # not through sys.stdin: a reader that holds its lock makes the interpreter's end abort
        pass
    os.kill(os.getpid(), signal.SIGTERM)
