"""Room for tiles that come and go."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class TilePool:
    """Tiles that are lent by number; those given back are lent first, so that few more exist than are in use.

    Attributes
    ----------
    tiles : (K, *shape), all that were ever needed at once
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        """Empty; it grows as tiles are lent."""
        self.tiles: NDArray[Any] = np.empty((0, *shape), dtype)
        self._free = np.empty(0, np.int32)

    def lend(self, n: int) -> NDArray[np.int32]:
        """Numbers of `n` tiles; what they hold is undefined."""
        if n > self._free.size:
            held = self.tiles.shape[0]
            more = max(n - self._free.size, held // 2)
            self.tiles = np.concatenate([self.tiles, np.empty((more, *self.tiles.shape[1:]), self.tiles.dtype)])
            self._free = np.concatenate([np.arange(held, held + more, dtype=np.int32)[::-1], self._free])
        cut = self._free.size - n
        lent, self._free = self._free[cut:], self._free[:cut]
        return lent

    def give_back(self, numbers: NDArray[np.int32]) -> None:
        """Tiles that were lent and are not needed any more."""
        self._free = np.concatenate([self._free, numbers])
