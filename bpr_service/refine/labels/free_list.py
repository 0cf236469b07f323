"""Numbers of places that come and go."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class FreeList:
    """Places that are lent by number; those given back are lent first, so that few more exist than are in use.

    Attributes:
        size: how many were ever needed at once, and some to spare.
    """

    def __init__(self) -> None:
        self.size = 0
        self._free = np.empty(0, np.int32)

    def lend(self, n: int) -> NDArray[np.int32]:
        """(n,) int32 numbers of places."""
        if n > self._free.size:
            more = max(n - self._free.size, self.size // 4)
            self._free = np.concatenate([np.arange(self.size, self.size + more, dtype=np.int32)[::-1], self._free])
            self.size += more
        cut = self._free.size - n
        lent, self._free = self._free[cut:], self._free[:cut]
        return lent

    def give_back(self, numbers: NDArray[np.int32]) -> None:
        """Places that were lent and are not needed any more."""
        self._free = np.concatenate([self._free, numbers])
