"""Places that are lent and given back."""

from __future__ import annotations

import numpy as np

from bpr_service.refine.labels.slots import Slots


def test_a_place_is_lent_once() -> None:
    slots = Slots()
    first, second = slots.lend(5), slots.lend(40)
    assert np.unique(np.concatenate([first, second])).size == 45
    assert np.concatenate([first, second]).max() < slots.size
    assert slots.lend(0).size == 0


def test_places_given_back_are_lent_again() -> None:
    slots = Slots()
    for n in (1, 9, 4, 9):
        lent = slots.lend(n)
        assert np.unique(lent).size == n
        slots.give_back(lent)
    assert slots.size <= 10
