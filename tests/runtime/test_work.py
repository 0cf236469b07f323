"""Memory that requests reserve."""

from __future__ import annotations

import pytest

from bpr_service.errors import BusyError, LimitError
from bpr_service.runtime.work import Hold, Memory, Slot


def test_memory_is_reserved_and_given_back() -> None:
    memory = Memory(100)
    slots = [Slot(Hold(memory), lambda: None), Slot(Hold(memory), lambda: None)]
    slots[0].reserve(60)
    with pytest.raises(BusyError):
        slots[1].reserve(60)
    with pytest.raises(LimitError, match="at most 100 bytes"):
        slots[0].reserve(60)
    slots[0].release()
    slots[1].reserve(60)
    slots[1].release()
    assert memory.used_bytes == 0
    slots[1].reserve(60)
    assert memory.used_bytes == 0, "a slot that is gone takes nothing more"


def test_a_part_of_a_hold_can_outlive_it() -> None:
    memory = Memory(100)
    hold = Hold(memory)
    hold.reserve(50)
    hold.free(10)
    answer = hold.split(25)
    hold.release()
    assert memory.used_bytes == 25
    answer.release()
    answer.release()
    hold.free(5)
    assert memory.used_bytes == 0
