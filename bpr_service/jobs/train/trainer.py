"""The trainer as a child process: watched, bounded, and ended with all it started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from bpr_service.errors import CancelledError, LimitError, ModelError
from bpr_service.jobs.train.training_files import TrainingFiles


class Child:
    """A trainer process in its own session; it dies with this process. Its lines go to the job's log.

    Args:
        output: what the command prints goes to this file, and only what it complains of to the log.
        accept: exit codes that are no failure.
    """

    def __init__(
        self, files: TrainingFiles, command: list[str], *, output: Path | None = None, accept: tuple[int, ...] = (0,)
    ) -> None:
        self.files, self.command, self.output, self.accept = files, command, output, accept
        self.exported: str | None = None
        self.begun = time.monotonic()
        self.last_lines: list[str] = []
        self.noted = 0.0

    def wait(self) -> None:
        """Run the command to its end.

        Raises:
            CancelledError: the job was cancelled; the whole group is killed.
            LimitError: its time or disk limit was passed.
            ModelError: it failed; the message has its last lines.
        """
        context, row = self.files.context, self.files.row
        context.log(row.id, "$ " + " ".join(self.command))
        launcher = [sys.executable, "-m", "bpr_service.jobs.train.child", str(os.getpid())]
        process, lines = self._start([*launcher, *self.command])
        reader = threading.Thread(target=self._read, args=(lines,), daemon=True)
        reader.start()
        try:
            checked = 0.0
            while process.poll() is None:
                context.alive()
                context.stopping()
                if context.cancelled(row):
                    raise CancelledError(f"job {row.id} was cancelled")
                if time.monotonic() - checked > 10 * context.settings.poll_s:
                    checked = time.monotonic()
                    self._check_limits()
                self._wait_a_little(process)
            reader.join(5)
        finally:
            kill_group(process)
        if process.returncode not in self.accept:
            tail = " | ".join(self.last_lines[-3:]) or "no output"
            raise ModelError(
                f"the trainer failed with exit code {process.returncode}", got=tail, fix="see the job's log"
            )

    def _start(self, command: list[str]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        """The process, and the lines that go to the log."""
        pipe = subprocess.PIPE
        if self.output is None:
            process = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, start_new_session=True)
            lines = process.stdout
        else:
            with self.output.open("wb") as file:
                process = subprocess.Popen(command, stdout=file, stderr=pipe, start_new_session=True)
            lines = process.stderr
        assert lines is not None
        return process, lines

    def _wait_a_little(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(self.files.context.settings.poll_s)
        except subprocess.TimeoutExpired:
            return

    def _check_limits(self) -> None:
        request = self.files.request
        spent = float((self.files.read("time.json") or {"s": 0.0})["s"]) + time.monotonic() - self.begun
        self.files.write("time.json", {"s": spent})
        self.begun = time.monotonic()
        size_mb = sum(p.stat().st_size for p in self.files.folder.rglob("*") if p.is_file()) / 1e6
        for what, got, limit, unit in (
            ("time_limit_s", spent, request.time_limit_s, "s"),
            ("disk_limit_mb", size_mb, request.disk_limit_mb, "MB"),
        ):
            if got > limit:
                expected, fix = f"at most {limit:g} {unit}", f"submit it with a larger {what}, or less to do"
                raise LimitError(f"the job is past its {what}", expected=expected, got=f"{got:.1f} {unit}", fix=fix)

    def _read(self, lines: IO[bytes]) -> None:
        context, row = self.files.context, self.files.row
        for raw in lines:
            line = raw.decode("utf-8", "replace").rstrip()
            try:
                event = json.loads(line) if line.startswith("{") else {}
            except ValueError:
                event = {}
            if event.get("event") == "progress":
                progress = {key: value for key, value in event.items() if key != "event"}
                progress |= {"done": event.get("step"), "total": event.get("steps")}
                if time.monotonic() - self.noted >= context.settings.poll_s or progress["done"] == progress["total"]:
                    self.noted = time.monotonic()
                    context.database.update_job(row.id, row.attempt, progress=progress)
            elif event.get("event") == "exported":
                self.exported = str(event["path"])
            if line:
                self.last_lines = [*self.last_lines[-9:], line]
                context.log(row.id, line)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a child and everything it started: politely, then for good."""
    for number, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue
