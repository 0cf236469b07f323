"""Tiles that are lent and given back."""

from __future__ import annotations

import numpy as np

from bpr_service.refine.labels.tile_pool import TilePool


def test_a_tile_is_lent_once_and_keeps_what_it_holds() -> None:
    pool = TilePool((2, 2), np.uint16)
    first = pool.lend(5)
    pool.tiles[first] = 7
    second = pool.lend(40)
    assert np.intersect1d(first, second).size == 0
    assert np.unique(second).size == 40
    assert (pool.tiles[first] == 7).all()
    assert pool.lend(0).size == 0


def test_tiles_given_back_are_lent_again() -> None:
    pool = TilePool((2, 2), np.uint16)
    for n in (1, 9, 4, 9):
        tiles = pool.lend(n)
        assert np.unique(tiles).size == n
        pool.give_back(tiles)
    assert pool.tiles.shape == (9, 2, 2)
