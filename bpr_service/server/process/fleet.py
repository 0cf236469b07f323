"""Several devices behind one port: a process for each, and a parent that binds the port and looks after them.

::

    parent     binds the port, starts the processes, replaces one that dies or hangs, hands SIGTERM on; runs no torch
    process i  one device, one engine; accepts from the parent's socket once it is ready, and listens on its own
               Unix socket, FOLDER/i.sock, where the others ask for its metrics, and the parent whether it is alive

A connection goes to whichever process takes it first: they take one at a time, so a busy one takes fewer. Every process
follows the model store (`bpr_service.runtime.follow`), which is how a swap reaches them all. A process whose parent is
gone sees the end of its standard input, drains and leaves.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import httpx

from bpr_service.errors import ConfigError
from bpr_service.server.logs import configure_logging, log
from bpr_service.server.process.member import BACKLOG, Member, client_of
from bpr_service.server.settings import ServerSettings

LOOK_S = 0.1
RESTART_S, RESTART_MAX_S = 0.5, 30.0
"""Pause before a process is replaced, doubled each time that it ends before it was ready."""
START_S = 900.0
"""A process that is not ready so long after its start counts as hung."""
ASKS = 5
"""How often a process is asked in the time after which it counts as hung."""
KILL_AFTER_S = 1.0
"""A process that is still there so long after its drain should have ended is killed."""
CHILD = "from bpr_service.server.process.child import child; raise SystemExit(child())"


@dataclass(eq=False)
class Replica:
    """A process as its parent sees it."""

    member: Member
    running: subprocess.Popen[bytes] | None = None
    is_ready: bool = False
    was_ready: bool = False
    """That it, or one before it, has been ready."""
    failures: int = 0
    start_at: float = 0.0
    answered_at: float = 0.0
    """When it last answered its parent, or was started."""

    @property
    def socket_path(self) -> Path:
        return self.member.socket_path(self.member.process)


class Fleet:
    """The parent's side: `run` serves until SIGTERM or SIGINT."""

    def __init__(self, settings: ServerSettings, listener: socket.socket, folder: Path) -> None:
        self.settings, self.listener = settings, listener
        members = [Member(number, settings.devices, folder) for number in range(len(settings.devices))]
        self.replicas = [Replica(member) for member in members]
        self.signals = 0

    def run(self) -> int:
        """Exit code: 0 where every process drained cleanly, 1 where one did not, or never became ready."""
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            for replica in self.replicas:
                self._start(replica)
                threading.Thread(target=self._ask, args=(replica,), name="ask", daemon=True).start()
            failed = False
            while not self.signals and not failed:
                looked = [self._look(replica) for replica in self.replicas]
                failed = any(looked)
                time.sleep(LOOK_S)
            return max(self._stop(), int(failed))
        finally:
            for replica in self.replicas:
                if replica.running and replica.running.poll() is None:
                    replica.running.kill()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, replica: Replica) -> None:
        """Ask a process again and again whether it is alive; whatever it answers, it is not stopped."""
        while True:
            with contextlib.suppress(httpx.HTTPError), client_of(replica.socket_path) as client:
                client.get("/livez", timeout=self.settings.hung_s)
                replica.answered_at = time.monotonic()
            time.sleep(self.settings.hung_s / ASKS)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1

    def _start(self, replica: Replica) -> None:
        replica.socket_path.unlink(missing_ok=True)
        replica.answered_at = time.monotonic()
        number, device = replica.member.process, self.settings.devices[replica.member.process]
        values = self.settings.model_dump(mode="json", exclude_unset=True) | {"device": device, "devices": []}
        environment = dict(os.environ)
        if device == "cpu":
            values["threads"] = threads = self.settings.threads or share_of_cores(self.settings.devices)
            environment |= {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
        given = {
            "settings": values,
            "process": number,
            "devices": self.settings.devices,
            "folder": str(replica.member.folder),
            "listener": self.listener.fileno(),
        }
        replica.running = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            env=environment,
            pass_fds=[self.listener.fileno()],
            start_new_session=True,  # so that Ctrl-C reaches the parent alone
        )
        assert replica.running.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended at once; `_look` sees it
            replica.running.stdin.write(json.dumps(given).encode() + b"\n")
            replica.running.stdin.flush()
        log.info("process started", extra={"fields": {"process": number, "device": device, "pid": replica.running.pid}})

    def _look(self, replica: Replica) -> bool:
        """Replace a process that ended; True where it ended before any like it was ever ready."""
        if replica.running is None:
            if time.monotonic() >= replica.start_at:
                self._start(replica)
            return False
        ready = replica.socket_path.exists()
        if ready and not replica.is_ready:
            replica.answered_at = time.monotonic()
        replica.is_ready = ready
        replica.was_ready |= ready
        code = replica.running.poll()
        if code is None:
            silent_s = time.monotonic() - replica.answered_at
            if silent_s > (self.settings.hung_s if ready else START_S):
                told = {"process": replica.member.process, "pid": replica.running.pid, "silent_s": round(silent_s, 1)}
                log.error("process does not answer and is killed", extra={"fields": told})
                replica.running.kill()
            return False
        fields = {"process": replica.member.process, "pid": replica.running.pid, "code": code}
        log.error("process ended", extra={"fields": fields})
        _close(replica.running)
        replica.running = None
        replica.failures = 0 if ready else replica.failures + 1
        replica.start_at = time.monotonic() + min(RESTART_MAX_S, RESTART_S * 2**replica.failures)
        return not replica.was_ready

    def _stop(self) -> int:
        """Drain all processes at once; a second signal is handed on, which makes them leave."""
        running = [replica.running for replica in self.replicas if replica.running]
        for process in running:
            process.send_signal(signal.SIGTERM)
        handed_on, give_up = self.signals, time.monotonic() + self.settings.drain_s + KILL_AFTER_S
        while any(process.poll() is None for process in running) and time.monotonic() < give_up:
            if self.signals > max(1, handed_on):
                handed_on = self.signals
                for process in running:
                    process.send_signal(signal.SIGTERM)
            time.sleep(LOOK_S)
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()
            _close(process)
        log.info("all processes stopped", extra={"fields": {"codes": [process.returncode for process in running]}})
        return int(any(process.returncode for process in running))


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def run_fleet(settings: ServerSettings) -> int:
    """Serve ``settings.devices``, a process each, on one port. Returns the exit code."""
    configure_logging(settings.log_level)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            "host and port", expected="an address to listen on", got=f"{settings.host}:{settings.port} ({error})"
        ) from None
    with listener, tempfile.TemporaryDirectory(prefix="bpr-serve-") as folder:
        log.info("listening", extra={"fields": {"port": listener.getsockname()[1], "devices": settings.devices}})
        return Fleet(settings, listener, Path(folder)).run()


def share_of_cores(devices: tuple[str, ...]) -> int:
    """CPU threads of each process that computes on the CPU: an equal share of what this process may use."""
    cores = len(os.sched_getaffinity(0))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    total = min(cores, int(asked)) if asked.isdigit() and int(asked) else cores
    return max(1, total // devices.count("cpu"))
