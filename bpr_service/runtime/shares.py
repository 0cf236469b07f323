"""What each caller may have of a device's process while others want it too: slots, memory, and turns in the threads.

An *owner* is whose request it is: the name of a key. Who is alone may have everything; a bound holds once another has
been seen within `RECENT_S`. Without keys all requests are one owner's, and nothing here changes anything.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

log = logging.getLogger(__name__)
NOBODY = "anonymous"
RECENT_S = 10.0
"""Who has asked within this time counts as one who wants something."""
LEFT_TO_OTHERS = 4
"""One part in so many of the memory is left to the others."""


class Shares:
    """Who has asked lately, and whose requests are worked on. The caller of `take` and `give` holds a lock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.requests = 0
        self._requests_of: Counter[str] = Counter()
        self._clock = clock
        self._seen: dict[str, float] = {}
        self._lock = threading.Lock()

    def see(self, owner: str) -> None:
        """Note that ``owner`` asks for something."""
        with self._lock:
            self._seen[owner] = self._clock()

    def owners(self, owner: str) -> int:
        """How many there are lately, ``owner`` among them."""
        with self._lock:
            until = self._clock() - RECENT_S
            self._seen = {name: at for name, at in self._seen.items() if at >= until}
            return len({*self._seen, owner})

    def take(self, owner: str) -> None:
        """Count a request of ``owner``."""
        self.requests += 1
        self._requests_of[owner] += 1

    def give(self, owner: str) -> None:
        """Count it no more."""
        self.requests -= 1
        self._requests_of[owner] -= 1
        if not self._requests_of[owner]:
            del self._requests_of[owner]

    def is_spent(self, owner: str, room: int) -> bool:
        """Whether ``owner`` has all the requests that it may of ``room``: an equal part, one at least."""
        return self._requests_of[owner] >= max(1, room // self.owners(owner))

    def most(self, room: int, owner: str) -> int:
        """What ``owner`` may have of ``room`` where a part that is left to others is enough; one at least."""
        return room if self.owners(owner) == 1 else max(1, room - max(1, room // LEFT_TO_OTHERS))


class FairThreads:
    """``count`` threads that take the task of the owner who has had the least of their time.

    One owner's tasks never hold all of them while another asks. They start with the first task.
    """

    def __init__(self, count: int, name: str, shares: Shares, clock: Callable[[], float] = time.monotonic) -> None:
        self._count, self._shares, self._clock = count, shares, clock
        self._waiting: dict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = {}
        self._running: dict[str, int] = {}
        self._spent_s: dict[str, float] = {}
        self._changed = threading.Condition()
        self._stopped = False
        self._name, self._threads = name, list[threading.Thread]()

    @property
    def alive(self) -> bool:
        """Whether every thread is there."""
        return self._stopped or all(thread.is_alive() for thread in self._threads)

    def submit(self, owner: str, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Have ``function(*args)`` called for ``owner``. Raises `RuntimeError` once the threads are stopped."""
        done: Future[Any] = Future()
        with self._changed:
            if self._stopped:
                raise RuntimeError("the threads have been stopped")
            if not self._threads:
                names = [f"{self._name}-{i}" for i in range(self._count)]
                self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
                for thread in self._threads:
                    thread.start()
            if owner not in self._waiting and not self._running.get(owner):
                # Who comes back begins where the others are: time that was not asked for is not saved up.
                least = min((self._spent_s[name] for name in {*self._waiting, *self._running}), default=0.0)
                self._spent_s[owner] = max(least, self._spent_s.get(owner, 0.0))
            self._waiting.setdefault(owner, deque()).append((done, lambda: function(*args)))
            self._changed.notify()
        return done

    def stop(self, *, cancel: bool) -> None:
        """End the threads once what waits is done, or (``cancel``) without it."""
        with self._changed:
            self._stopped = True
            dropped = [task for tasks in self._waiting.values() for task, _ in tasks] if cancel else []
            if cancel:
                self._waiting.clear()
            self._changed.notify_all()
        for task in dropped:
            task.cancel()

    def _next(self) -> str | None:
        """Whose turn it is, None where nobody may go on. Holds the lock."""
        may = [owner for owner in self._waiting if self._running.get(owner, 0) < self._shares.most(self._count, owner)]
        return min(may, key=lambda owner: self._spent_s[owner], default=None)

    def _work(self) -> None:
        while True:
            with self._changed:
                while (owner := self._next()) is None:
                    if self._stopped and not self._waiting:
                        return
                    self._changed.wait(1.0)  # others may be forgotten meanwhile
                done, call = self._waiting[owner].popleft()
                if not self._waiting[owner]:
                    del self._waiting[owner]
                self._running[owner] = self._running.get(owner, 0) + 1
            started = self._clock()
            try:
                if done.set_running_or_notify_cancel():
                    done.set_result(call())
            except BaseException as error:
                log.debug("a task failed: %r", error)
                done.set_exception(error)
            finally:
                del done, call
                self._end(owner, self._clock() - started)

    def _end(self, owner: str, seconds: float) -> None:
        with self._changed:
            self._spent_s[owner] += seconds
            self._running[owner] -= 1
            if not self._running[owner]:
                del self._running[owner]
            if not self._running and not self._waiting:
                self._spent_s.clear()
            self._changed.notify_all()
