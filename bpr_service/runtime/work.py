"""One request inside the engine: what it holds, what it waits for, and when it has really ended."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from bpr_service.errors import BusyError, DeadlineError, LimitError
from bpr_service.runtime.shares import NOBODY, Shares


class Stages(Protocol):
    """What `Refiner.prepare` returns: one request between its steps. P patches, S network size in px."""

    @property
    def n_patches(self) -> int:
        """P."""

    def crops(self, start: int, stop: int) -> Any:
        """Patches ``start`` to ``stop``: (n, S, S, 4) uint8, RGB and mask; in the host's memory or in the device's."""

    def add(self, start: int, logits: Any) -> None:
        """Hand back what the network said of patches ``start`` ...: (n, C, S, S) float32, in the same memory."""

    def finish(self) -> Any:
        """The result, once every patch was added."""


class Predictor(Protocol):
    """The one step of a `Refiner` that touches the device."""

    def batch_sizes(self, most: int) -> list[int]:
        """The numbers of patches to warm up with, for batches of up to ``most``."""

    def logits(self, crops: Any) -> Any:
        """(n, S, S, 4) uint8 -> (n, C, S, S) float32 logits, C output maps, in the memory that the crops are in."""


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """A warm model version behind a preset.

    Requests keep the lane they started with, whatever is activated later.
    """

    preset: str
    model: str
    version: str
    network_size_px: int
    refiner: Any

    @property
    def batch_key(self) -> tuple[str, str, int]:
        return (self.model, self.version, self.network_size_px)


class Memory:
    """A budget in bytes that requests reserve from before they allocate."""

    def __init__(self, limit_bytes: int, shares: Shares | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._shares = shares or Shares()
        self._used_by: Counter[str] = Counter()
        self._lock = threading.Lock()

    def reserve(self, n_bytes: int, held_bytes: int, owner: str = NOBODY) -> None:
        """Take ``n_bytes`` for a request of ``owner`` that holds ``held_bytes`` already.

        Raises `LimitError` where the request could never fit, `BusyError` where it does not fit now.
        """
        if n_bytes + held_bytes > self.limit_bytes:
            raise LimitError(
                "request too large for the memory that the server may use",
                expected=f"at most {self.limit_bytes} bytes",
                got=f"about {n_bytes + held_bytes}",
                fix="send fewer or smaller masks, or a smaller image",
            )
        most = self._shares.most(self.limit_bytes, owner)
        with self._lock:
            if self.used_bytes + n_bytes > self.limit_bytes or self._used_by[owner] + n_bytes > most:
                raise BusyError("the memory that requests may use is taken", fix="try again later", retry_after_s=2.0)
            self.used_bytes += n_bytes
            self._used_by[owner] += n_bytes

    def free(self, n_bytes: int, owner: str = NOBODY) -> None:
        with self._lock:
            self.used_bytes -= n_bytes
            self._used_by[owner] -= n_bytes
            if not self._used_by[owner]:
                del self._used_by[owner]


class Hold:
    """Memory that one request has reserved; `release` gives it back, once."""

    def __init__(self, memory: Memory, held_bytes: int = 0, owner: str = NOBODY) -> None:
        """``held_bytes`` are reserved already; ``owner``: whose request it is."""
        self._memory, self.owner = memory, owner
        self._held_bytes = held_bytes
        self._lock = threading.Lock()
        self._released = False

    def reserve(self, n_bytes: int) -> None:
        """Reserve more; see `Memory.reserve`. Nothing once it is released."""
        with self._lock:
            if not self._released:
                self._memory.reserve(n_bytes, self._held_bytes, self.owner)
                self._held_bytes += n_bytes

    def free(self, n_bytes: int) -> None:
        """Give a part back."""
        with self._lock:
            if not self._released:
                self._memory.free(n_bytes, self.owner)
                self._held_bytes -= n_bytes

    def split(self, n_bytes: int) -> Hold:
        """Move ``n_bytes`` of what is held to a hold of their own, which may outlive this one."""
        with self._lock:
            n_bytes = 0 if self._released else min(n_bytes, self._held_bytes)
            self._held_bytes -= n_bytes
        return Hold(self._memory, n_bytes, self.owner)

    def release(self) -> None:
        with self._lock:
            held, self._held_bytes = self._held_bytes, 0
            self._released = True
            self._memory.free(held, self.owner)


class Slot:
    """The right to be worked on, and the memory of the request. Released once, when its work has really ended."""

    def __init__(self, hold: Hold, on_release: Callable[[], None]) -> None:
        self.hold = hold
        self._on_release = on_release
        self._lock = threading.Lock()
        self.released = False

    def reserve(self, n_bytes: int) -> None:
        """Reserve memory until the slot is released; see `Memory.reserve`."""
        self.hold.reserve(n_bytes)

    def release(self) -> None:
        with self._lock:
            if self.released:
                return
            self.released = True
        self.hold.release()
        self._on_release()


class Work:
    """A request from decoding to its answer.

    ``holds`` counts the stages that touch it at this moment (a pool thread, a batch on the device). A
    cancelled or late request answers at once, but its slot is freed only when the last hold is let go.
    """

    def __init__(
        self,
        slot: Slot,
        decode: Callable[[Work], tuple[Lane, Stages]] | None,
        encode: Callable[[Work, Any], Any] | None,
        *,
        deadline: float,
    ) -> None:
        self.slot = slot
        self.decode, self.encode = decode, encode
        self.deadline = deadline
        self.future: Future[Any] = Future()
        self.started_at = time.monotonic()
        self.ready_at = self.started_at
        self.timings_ms: dict[str, float] = {}
        self.lane: Lane | None = None
        self.stages: Stages | None = None
        self.n_patches = 0
        self.next_patch = 0
        self.added = 0
        self.holds = 0
        self.stage_lock = threading.Lock()
        """Held by whoever asks ``stages`` for crops or adds to it: they take one thread at a time."""
        self._lock = threading.Lock()

    @property
    def owner(self) -> str:
        """Whose request it is."""
        return self.slot.hold.owner

    @property
    def batch_key(self) -> tuple[str, str, int]:
        assert self.lane is not None
        return self.lane.batch_key

    @property
    def ended(self) -> bool:
        return self.future.done()

    def remaining_s(self) -> float:
        return self.deadline - time.monotonic()

    def check(self) -> None:
        """Raise `DeadlineError` where the deadline has passed."""
        if self.remaining_s() <= 0:
            raise past_deadline(self)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time spent inside to ``timings_ms[step]``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add_ms(step, (time.perf_counter() - start) * 1e3)

    def add_ms(self, step: str, milliseconds: float) -> None:
        self.timings_ms[step] = self.timings_ms.get(step, 0.0) + milliseconds

    def hold(self) -> None:
        with self._lock:
            self.holds += 1

    def let_go(self) -> None:
        """The counterpart of `hold`; the last one of an ended request frees its memory and its slot."""
        with self._lock:
            self.holds -= 1
        self.settle()

    def settle(self) -> None:
        """Free the slot where the request has ended and nothing touches it."""
        with self._lock:
            over = self.holds == 0 and self.future.done()
            if over:
                self.decode = self.encode = self.stages = None
        if over:
            self.slot.release()

    def succeed(self, answer: Any) -> None:
        self._end(lambda: self.future.set_result(answer))

    def fail(self, error: BaseException) -> bool:
        """End with ``error``; False where it had ended already."""
        return self._end(lambda: self.future.set_exception(error))

    def _end(self, settle: Callable[[], None]) -> bool:
        try:
            settle()
        except InvalidStateError:
            return False
        self.settle()
        return True


def past_deadline(work: Work) -> DeadlineError:
    """The error of a request whose time is over."""
    allowed = work.deadline - work.started_at
    return DeadlineError(
        "the deadline passed before the work was done",
        expected=f"an answer within {allowed:.1f} s",
        fix="send fewer masks at once, allow more time (options.timeout_s), or use a job",
    )
