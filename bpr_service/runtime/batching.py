"""Which patches go to the device next: fair between requests, one model version a batch."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Queued(Protocol):
    """A request as the queue sees it."""

    @property
    def batch_key(self) -> Hashable:
        """What must be equal for two requests to share a batch: model version and network size."""

    @property
    def owner(self) -> str:
        """Whose request it is."""

    @property
    def n_patches(self) -> int:
        """Patches in all."""

    next_patch: int
    """Index of the first patch that no batch has taken yet."""

    ready_at: float
    """Clock when it joined the queue, seconds."""


Q = TypeVar("Q", bound=Queued)


@dataclass(frozen=True, slots=True)
class Slice(Generic[Q]):
    """Patches ``start`` to ``stop`` of one request."""

    request: Q
    start: int
    stop: int


def _in_turn(requests: list[Q]) -> list[Q]:
    """The first of each owner, then the second of each, and so on."""
    before: Counter[str] = Counter()
    turns = []
    for request in requests:
        turns.append(before[request.owner])
        before[request.owner] += 1
    return [requests[i] for i in sorted(range(len(requests)), key=turns.__getitem__)]


class FairQueue(Generic[Q]):
    """Round robin over owners and their requests, by patches.

    A batch is divided evenly between the owners whose requests wait for the same model, and an owner's part between
    those; at least ``quantum`` patches each (a smaller slice costs more than it is worth); what a short request does
    not need goes to the others. Who was served and still waits goes to the end. So a request of 20 patches leaves with
    the next batch or two, however many patches the request before it has. Not thread-safe: the engine holds its lock.
    """

    def __init__(self, quantum: int = 8) -> None:
        self._requests: deque[Q] = deque()
        self._quantum = quantum
        self.patches = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Q]:
        return iter(self._requests)

    def push(self, request: Q) -> None:
        self._requests.append(request)
        self.patches += request.n_patches - request.next_patch

    def remove(self, request: Q) -> bool:
        """Take a request out; False where it was not waiting."""
        try:
            self._requests.remove(request)
        except ValueError:
            return False
        self.patches -= request.n_patches - request.next_patch
        return True

    def oldest_ready_at(self) -> float:
        return min(request.ready_at for request in self._requests)

    def head_patches(self) -> int:
        """Patches that could share the next batch."""
        if not self._requests:
            return 0
        key = self._requests[0].batch_key
        return sum(r.n_patches - r.next_patch for r in self._requests if r.batch_key == key)

    def take(self, room: int) -> list[Slice[Q]]:
        """Remove up to ``room`` patches that may share a batch."""
        if not self._requests:
            return []
        key = self._requests[0].batch_key
        waiting = sharing = _in_turn([r for r in self._requests if r.batch_key == key])
        starts = {id(r): r.next_patch for r in sharing}
        of = Counter(r.owner for r in sharing)
        share = {owner: max(self._quantum, -(-room // (len(of) * n))) for owner, n in of.items()}
        while room and waiting:
            for request in waiting:
                n = min(share[request.owner], room, request.n_patches - request.next_patch)
                request.next_patch += n
                room -= n
                self.patches -= n
            waiting = [r for r in waiting if r.next_patch < r.n_patches]
        served = [r for r in sharing if r.next_patch > starts[id(r)]]
        gone = {id(r) for r in served}
        self._requests = deque(r for r in self._requests if id(r) not in gone)
        self._requests.extend(r for r in served if r.next_patch < r.n_patches)
        return [Slice(r, starts[id(r)], r.next_patch) for r in served]
