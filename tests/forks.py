"""`bpr` as a process of its own that begins where its imports end: forked from one that has made them.

It is as `python -m bpr_service.cli ...`: another process, its own signals, memory and exit code, and it starts in a few
milliseconds in place of seconds. What must see the start itself starts by `subprocess`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

PRELOADED = (
    "torch", "sqlalchemy.dialects.sqlite", "sqlalchemy.dialects.postgresql", "bpr_service.cli",
    "bpr_service.formats.records.coco", "bpr_service.jobs.worker", "bpr_service.jobs.job_commands",
    "bpr_service.jobs.refine.loaders", "bpr_service.network.light_unet",
    "bpr_service.refine.refiner", "bpr_service.server.server_commands", "bpr_service.server.process.fleet",
    "bpr_service.server.process.run",
)  # fmt: skip


class Forked:
    """A process, with what tests use of `subprocess.Popen`."""

    def __init__(self, words: list[str], environment: Mapping[str, str], output: Path, cwd: Path | None = None) -> None:
        """``bpr WORDS``; what it prints goes to the end of ``output``."""
        self._told, told = os.pipe()
        asked = {"words": words, "environment": dict(environment), "cwd": str(cwd or Path.cwd())}
        with output.open("ab") as log:
            socket.send_fds(_forker(), [json.dumps(asked).encode()], [told, log.fileno()])
        os.close(told)
        self.args = ["bpr", *words]
        self.pid = int(self._line())
        self.returncode: int | None = None

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            read = os.read(self._told, 64)
            assert read, "the process that forks has ended"
            line += read
        return line

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended; raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._line())
            os.close(self._told)
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def _forker() -> socket.socket:
    """The one that forks, for all tests of this process; it ends when the socket closes, which is with the process."""
    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with other:
        subprocess.Popen([sys.executable, "-m", "tests.forks"], stdin=other.fileno(), start_new_session=True)
    return own


def main() -> None:
    """Fork for each request that comes over the socket on standard input."""
    control = socket.socket(fileno=os.dup(0))
    for name in PRELOADED:
        importlib.import_module(name)
    from tests.jobs.samples import coco_set

    with tempfile.TemporaryDirectory() as folder:
        coco_set(Path(folder), 1)  # loads kernels
    assert len(os.listdir("/proc/self/task")) == 1, "what is forked has no threads but its first"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    gc.freeze()
    while True:
        data, fds, _, _ = socket.recv_fds(control, 1 << 20, 2)
        if not data:
            return
        if os.fork() == 0:
            control.close()
            keep(json.loads(data), *fds)
            return
        for fd in fds:
            os.close(fd)


def keep(asked: dict[str, object], told: int, output: int) -> None:
    """Fork the process itself, and write its id and then its exit code; returns in neither but by its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        os.write(told, b"%d\n" % pid)
        watch = select.poll()
        watch.register(os.pidfd_open(pid), select.POLLIN)
        watch.register(told, 0)  # where nobody reads any more the tests are over, however they ended
        watch.poll()
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        with suppress(BrokenPipeError):
            os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    os.close(told)
    empty = os.open(os.devnull, os.O_RDONLY)
    for fd, number in ((empty, 0), (output, 1), (output, 2)):
        os.dup2(fd, number)
    os.environ.clear()
    os.environ.update(asked["environment"])  # type: ignore[call-overload]
    os.chdir(asked["cwd"])  # type: ignore[arg-type]
    for folder in os.environ.get("PYTHONPATH", "").split(":"):
        if folder and Path(folder, "sitecustomize.py").exists():
            runpy.run_path(f"{folder}/sitecustomize.py")  # as at a start
    words = list(asked["words"])  # type: ignore[call-overload]
    sys.argv = ["bpr", *words]
    sys.orig_argv = [sys.executable, "-m", "bpr_service.cli", *words]  # with which a worker becomes a new one
    from bpr_service.cli import main as bpr

    bpr()


if __name__ == "__main__":
    main()
