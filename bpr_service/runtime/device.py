"""One owner of one device.

Every torch call of a server runs on the thread of a `DeviceOwner`: batches and warm-ups queue up there, so
that two requests can never meet on the device, and the event loop never waits for it.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from bpr_service.errors import FatalDeviceError, NotReadyError

T = TypeVar("T")


def choose_device(name: str) -> str:
    """``name`` of `resolve_device`, checked; "auto" is the first CUDA device, the CPU where there is none."""
    from bpr_service.extras import installed
    from bpr_service.network.devices import resolve_device, torch_for

    if name == "auto":
        torch = torch_for("device cuda") if installed("torch") else None
        name = "cuda:0" if torch is not None and torch.cuda.is_available() else "cpu"
    return resolve_device(name)


def device_memory_bytes(device: str) -> int:
    """Bytes the process holds on ``device``: the CUDA caching allocator's, or the resident set on the CPU."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.memory_reserved(device))
    with open("/proc/self/statm", encoding="ascii") as handle:
        pages = int(handle.read().split()[1])
    import resource

    return pages * resource.getpagesize()


def is_out_of_memory(error: BaseException) -> bool:
    """True where the device only lacked memory for this batch: a smaller one may pass."""
    torch = sys.modules.get("torch")  # where it was never imported, no error is its
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))


def is_fatal(error: BaseException) -> bool:
    """True where no later call on the device can succeed (a sticky CUDA error): the process must be replaced."""
    torch = sys.modules.get("torch")
    if torch is None or is_out_of_memory(error):
        return isinstance(error, FatalDeviceError)
    accelerator_error: type[BaseException] = getattr(torch, "AcceleratorError", RuntimeError)
    return isinstance(error, FatalDeviceError) or (isinstance(error, accelerator_error) and "CUDA error" in str(error))


class DeviceOwner:
    """A thread that alone talks to the device; calls run in the order they came."""

    def __init__(self, name: str = "device") -> None:
        self._inbox: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._lock = threading.Lock()
        self._stopped = False
        self.failure: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Queue ``function`` for the device thread.

        After a fatal error every call fails with `DeviceError`, after `stop` with `NotReadyError`.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._stopped:
                future.set_exception(NotReadyError("the server is stopping", fix="try another one"))
            else:
                self._inbox.put((function, future))
        return future

    @property
    def is_alive(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    def stop(self, timeout_s: float | None = None) -> None:
        """Let the thread end after what is queued."""
        with self._lock:
            self._stopped = True
            self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (item := self._inbox.get()) is not None:
            function, future = item
            if not future.set_running_or_notify_cancel():
                continue
            if self.failure is not None:
                future.set_exception(FatalDeviceError("the device failed earlier", fix="restart the server"))
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                if is_fatal(error):
                    self.failure = error
                future.set_exception(error)
            del function, future, item


def bound_heap() -> None:
    """Let all threads share four malloc arenas: one a thread keeps what it once needed and lets a server grow.

    Elsewhere than on glibc nothing is done. The threshold from which blocks are mapped is left alone: lowering it
    gives memory back sooner, and makes the network's activations a third slower on the CPU.
    """
    import ctypes

    arena_max = -8
    try:
        ctypes.CDLL("libc.so.6").mallopt(arena_max, 4)
    except (OSError, AttributeError):
        return
