"""Shared memory without a name."""

import multiprocessing
from pathlib import Path

import numpy as np

from bpr_service.jobs.refine.shared_buffer import SharedBuffer


def add_one(buffer: SharedBuffer) -> None:
    view = np.frombuffer(buffer.memory, np.uint8)
    view += 1


def test_a_spawned_process_writes_what_the_owner_reads() -> None:
    buffer = SharedBuffer(1000)
    np.frombuffer(buffer.memory, np.uint8)[:] = 41
    process = multiprocessing.get_context("spawn").Process(target=add_one, args=(buffer,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert set(buffer.memory[:]) == {42}
    buffer.close()


def test_closing_frees_the_files() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    buffers = [SharedBuffer(4096) for _ in range(8)]
    for buffer in buffers:
        buffer.close()
        buffer.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    assert all(buffer.memory.closed for buffer in buffers)


def test_a_view_outlives_its_slot() -> None:
    buffer = SharedBuffer(4096)
    view = np.frombuffer(buffer.memory, np.uint8)
    buffer.close()
    assert view.sum() == 0
