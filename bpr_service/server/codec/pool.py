"""The server's side: a few warm processes, each doing one step at a time, killed where its request has ended."""

from __future__ import annotations

import logging
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from bpr_service.errors import BprError, DeadlineError, InputError, NotReadyError, fields_of, rebuild
from bpr_service.runtime.work import Work, past_deadline
from bpr_service.server.codec.memory import QUANTUM_BYTES
from bpr_service.server.codec.shared import Block, receive, send

log = logging.getLogger(__name__)
START_S = 120.0
"""How long the first worker may take: kernels are compiled where no cache can be kept."""
LATE_S = 1.0
"""A worker that was not killed by then, though its request's deadline has passed, is."""


class Worker:
    """One process, by its socket and a descriptor of the process itself (which cannot come to mean another one)."""

    def __init__(self, sock: socket.socket, pidfd: int) -> None:
        self.sock, self._pidfd = sock, pidfd
        self._lock = threading.Lock()
        self.ended = False

    def is_gone(self) -> bool:
        """Whether the process has ended, by itself or by others."""
        watch = select.poll()
        watch.register(self._pidfd, select.POLLIN)
        return self.ended or bool(watch.poll(0))

    def kill(self) -> None:
        """End it now; whoever waits for its answer sees the end of its socket."""
        with self._lock:
            if self.ended:
                return
            self.ended = True
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)

    def close(self) -> None:
        self.kill()
        self.sock.close()


class Lease:
    """The time in which a worker works for one request: only then may the request's end kill it."""

    def __init__(self, worker: Worker) -> None:
        self._worker: Worker | None = worker
        self._lock = threading.Lock()

    def cancel(self) -> None:
        with self._lock:
            if self._worker is not None:
                self._worker.kill()

    def end(self) -> None:
        with self._lock:
            self._worker = None


class Pool:
    """``size`` workers; `step` runs one step in one of them."""

    def __init__(self, size: int) -> None:
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(size):
            self._idle.put(None)  # a place whose worker is forked when it is needed
        self._lock = threading.Lock()
        self._forker: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._stopped = False
        self.killed = 0
        """Workers that were killed or ended by themselves, since the start."""

    def start(self) -> None:
        """Start the process that forks, and wait until it is warm. Raises `NotReadyError`."""
        with self._lock:
            self._fork().close()

    def stop(self) -> None:
        """End every process. Steps under way fail."""
        with self._lock:
            self._stopped = True
            self._drop_forker()
        while not self._idle.empty():
            worker = self._idle.get_nowait()
            if worker is not None:
                worker.close()

    def step(self, name: str, work: Work, block: Block, **message: Any) -> tuple[dict[str, Any], Block]:
        """Run a step for ``work`` and return its message and block; memory is reserved in the work's slot as it asks.

        Raises:
            BprError: what the step raised; `DeadlineError` where it did not end in time; `InputError` where the
                process broke on it.
        """
        work.slot.reserve(2 * QUANTUM_BYTES)
        passing = QUANTUM_BYTES
        with self._worker(work.remaining_s) as worker:
            lease = Lease(worker)
            work.future.add_done_callback(lambda _: lease.cancel())  # at once, where it has ended already
            try:
                worker.sock.settimeout(max(0.0, work.remaining_s()) + LATE_S)
                send(worker.sock, {"step": name, **message}, block)
                while (answer := receive(worker.sock)) is not None and "lasting" in answer[0]:
                    asked = answer[0]
                    try:
                        work.slot.reserve(asked["lasting"] + asked["passing"])
                        passing += asked["passing"]
                        send(worker.sock, {})
                    except BprError as error:
                        send(worker.sock, {"error": fields_of(error)})
            except (OSError, ValueError):  # it is gone, too late, or does not speak any more
                answer = None
            finally:
                lease.end()
                work.slot.hold.free(passing)
            return self._checked(answer, worker, work)

    def _checked(
        self, answer: tuple[dict[str, Any], list[Block]] | None, worker: Worker, work: Work
    ) -> tuple[dict[str, Any], Block]:
        if answer is None:
            killed = worker.ended
            worker.kill()
            if killed or work.ended or work.remaining_s() <= 0:
                raise past_deadline(work)
            raise InputError(
                "the request broke what reads it",
                expected="pictures and masks that can be decoded",
                got="something that ends the decoder",
                fix="save the picture again with another program",
            )
        message, blocks = answer
        if "error" in message:
            raise rebuild(**message["error"])
        if "failure" in message:
            raise RuntimeError(f"a step failed in its process:\n{message['failure']}")
        return message, blocks[0]

    @contextmanager
    def _worker(self, remaining_s: Callable[[], float] = lambda: START_S) -> Iterator[Worker]:
        """A worker for this thread alone; one that was killed leaves its place empty. Raises `DeadlineError`."""
        try:
            worker = self._idle.get(timeout=max(0.0, remaining_s()))
        except queue.Empty:
            raise DeadlineError("the deadline passed before a process was free", fix="allow more time") from None
        try:
            if worker is not None and worker.is_gone():
                worker.close()
                worker = None
            if worker is None:
                with self._lock:
                    worker = self._fork()
            yield worker
        finally:
            if worker is not None and worker.ended:
                self.killed += 1
                worker.close()
                worker = None
            self._idle.put(worker)

    def _fork(self) -> Worker:
        """A fresh worker; the process that forks is started where there is none. Holds the lock."""
        if self._stopped:
            raise NotReadyError("the server is stopping", fix="try another one")
        for _ in range(2):  # once more where the one that forks has died
            if self._forker is None:
                self._forker = _start_forker()
            own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                with other:
                    socket.send_fds(self._forker[1], [b"f"], [other.fileno()])
                    pid = int.from_bytes(self._forker[1].recv(8), "little")
                if pid:
                    return Worker(own, os.pidfd_open(pid))
            except OSError as error:
                log.warning("no worker could be forked: %r", error)
            own.close()
            self._drop_forker()
        raise NotReadyError("no process for decoding", fix="try again later", retry_after_s=2.0)

    def _drop_forker(self) -> None:
        if self._forker is not None:
            process, control = self._forker
            control.close()
            process.kill()
            process.wait()
            self._forker = None


def _start_forker() -> tuple[subprocess.Popen[bytes], socket.socket]:
    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    own.settimeout(START_S)
    with other:
        command = [sys.executable, "-m", "bpr_service.server.codec.child"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        # a group of its own, which Ctrl-C does not reach; in the session of the server, with whose threads it shares
        process = subprocess.Popen(command, stdin=other.fileno(), env=environment, process_group=0)
    return process, own
