"""Places that are lent and given back."""

from __future__ import annotations

import numpy as np

from bpr_service.refine.labels.free_list import FreeList


def test_a_place_is_lent_once() -> None:
    rooms = FreeList()
    first, second = rooms.lend(5), rooms.lend(40)
    assert np.unique(np.concatenate([first, second])).size == 45
    assert np.concatenate([first, second]).max() < rooms.size
    assert rooms.lend(0).size == 0


def test_places_given_back_are_lent_again() -> None:
    rooms = FreeList()
    for n in (1, 9, 4, 9):
        lent = rooms.lend(n)
        assert np.unique(lent).size == n
        rooms.give_back(lent)
    assert rooms.size <= 10
