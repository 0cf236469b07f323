"""Calls of the commands inside this process: as a person makes them, without the time that a new one takes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from bpr_service import cli


def call_bpr(*arguments: object, cwd: Path | None = None, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """``bpr ARGUMENTS`` with its exit code and what it printed; an exception that it lets through is raised here."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape") for _ in range(2))
    before, code = Path.cwd(), 0
    streams: Any = {"stdin": io.TextIOWrapper(io.BytesIO(stdin)), "stdout": out, "stderr": err}
    try:
        os.chdir(cwd or before)
        with mock.patch.dict(os.environ, {"COLUMNS": "200"}), mock.patch.multiple(sys, **streams):
            with mock.patch.object(sys, "argv", ["bpr", *map(str, arguments)]):
                cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        os.chdir(before)
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode("utf-8", "surrogateescape"))
    return subprocess.CompletedProcess(list(map(str, arguments)), code, *texts)
