"""``@kernel``: a function of numpy arrays that numba compiles on its first call, without holding the GIL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

_F = TypeVar("_F", bound=Callable[..., object])


def kernel(function: _F) -> _F:
    """Compile `function` with numba; the machine code is cached on disk where a folder can be written.

    ``error_model="numpy"`` drops the test for division by zero; kernels never divide by what may be zero, but where
    they drop the result.
    """
    return _compile(function, set())


def fused_kernel(function: _F) -> _F:
    """As `kernel`, with ``a * b + c`` in one step where the processor has it.

    For values that need not be equal to the last bit on every processor.
    """
    return _compile(function, {"contract"})


def _compile(function: _F, fastmath: set[str]) -> _F:
    jit: Any = numba.njit
    try:
        compiled: _F = jit(cache=True, nogil=True, error_model="numpy", fastmath=fastmath)(function)
    except RuntimeError:  # no folder for the cache (a read-only container): compile again in each process
        compiled = jit(nogil=True, error_model="numpy", fastmath=fastmath)(function)
    return compiled
