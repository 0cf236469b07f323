"""The fair queue: every patch once and in order, one key a batch, and no one waits for the longest."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from bpr_service.runtime.batching import FairQueue


@dataclass(eq=False)
class Request:
    n_patches: int
    batch_key: str = "m"
    next_patch: int = 0
    ready_at: float = 0.0
    owner: str = "a"


def drain(queue: FairQueue[Request], room: int) -> list[list[tuple[Request, int, int]]]:
    batches = []
    while slices := queue.take(room):
        batches.append([(s.request, s.start, s.stop) for s in slices])
    return batches


@given(
    st.lists(st.tuples(st.integers(1, 300), st.sampled_from("ab")), min_size=1, max_size=12),
    st.integers(1, 64),
    st.integers(1, 16),
)
def test_every_patch_leaves_once_in_order_and_keys_do_not_mix(
    sizes: list[tuple[int, str]], room: int, quantum: int
) -> None:
    queue: FairQueue[Request] = FairQueue(quantum)
    requests = [Request(n, key) for n, key in sizes]
    for request in requests:
        queue.push(request)
    assert queue.patches == sum(n for n, _ in sizes)
    at = {id(r): 0 for r in requests}
    for batch in drain(queue, room):
        assert sum(stop - start for _, start, stop in batch) <= room
        assert len({r.batch_key for r, _, _ in batch}) == 1
        for request, start, stop in batch:
            assert start == at[id(request)] < stop
            at[id(request)] = stop
    assert [at[id(r)] for r in requests] == [n for n, _ in sizes]
    assert queue.patches == len(queue) == 0


def test_batches_are_full_while_there_are_patches() -> None:
    queue: FairQueue[Request] = FairQueue()
    for n in (5, 100, 40):
        queue.push(Request(n))
    totals = [sum(stop - start for _, start, stop in batch) for batch in drain(queue, 32)]
    assert totals == [32, 32, 32, 32, 17]


def test_a_short_request_leaves_with_the_next_batch_behind_a_long_one() -> None:
    queue: FairQueue[Request] = FairQueue()
    long = Request(4000)
    queue.push(long)
    queue.take(64)
    short = Request(20)
    queue.push(short)
    queue.take(64)
    assert short.next_patch == 20
    assert long.next_patch == 64 + 44, "the room that the short one does not need goes to the long one"


def test_among_more_requests_than_a_batch_holds_each_gets_its_turn() -> None:
    queue: FairQueue[Request] = FairQueue(quantum=8)
    requests = [Request(16) for _ in range(20)]
    for request in requests:
        queue.push(request)
    for _ in range(5):  # 5 batches of 32 are 4 turns of 8 each: all 20 were served once
        queue.take(32)
    assert [r.next_patch for r in requests] == [8] * 20


def test_a_request_of_another_model_is_not_passed_over() -> None:
    queue: FairQueue[Request] = FairQueue()
    queue.push(Request(1000, "a"))
    other = Request(10, "b")
    queue.push(other)
    queue.take(64)
    queue.take(64)
    assert other.next_patch == 10


def test_remove_takes_its_patches_out() -> None:
    queue: FairQueue[Request] = FairQueue()
    first, second = Request(100), Request(7)
    queue.push(first)
    queue.push(second)
    queue.take(20)
    assert queue.remove(first)
    assert not queue.remove(first)
    assert queue.patches == 7 - second.next_patch
    assert queue.head_patches() == queue.patches


def test_an_owner_of_many_requests_gets_no_more_than_one_of_one() -> None:
    queue: FairQueue[Request] = FairQueue()
    for _ in range(10):
        queue.push(Request(100, owner="hostile"))
    for owner in ("b", "c"):
        queue.push(Request(64, owner=owner))
    taken = {"hostile": 0, "b": 0, "c": 0}
    for _ in range(6):
        for piece in queue.take(32):
            taken[piece.request.owner] += piece.stop - piece.start
    assert taken["hostile"] <= 6 * 32 / 3 + 16
    assert taken["b"] == taken["c"] == 64
