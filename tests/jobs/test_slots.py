"""Shared memory without a name."""

import multiprocessing
from pathlib import Path

import numpy as np

from bpr_service.jobs.slots import Slot


def add_one(slot: Slot) -> None:
    view = np.frombuffer(slot.memory, np.uint8)
    view += 1


def test_a_spawned_process_writes_what_the_owner_reads() -> None:
    slot = Slot(1000)
    np.frombuffer(slot.memory, np.uint8)[:] = 41
    process = multiprocessing.get_context("spawn").Process(target=add_one, args=(slot,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert set(slot.memory[:]) == {42}
    slot.close()


def test_closing_frees_the_files() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    slots = [Slot(4096) for _ in range(8)]
    for slot in slots:
        slot.close()
        slot.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    assert all(slot.memory.closed for slot in slots)


def test_a_view_outlives_its_slot() -> None:
    slot = Slot(4096)
    view = np.frombuffer(slot.memory, np.uint8)
    slot.close()
    assert view.sum() == 0
