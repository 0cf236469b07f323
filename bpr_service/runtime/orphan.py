"""What becomes of a process whose parent is gone, by the kernel's own hand: it needs nothing of the process to work."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


def when_parent_ends(number: signal.Signals) -> None:
    """Have this process sent a signal when its parent ends (the thread that started it, where a thread did).

    ``SIGKILL`` ends it. ``SIGCONT`` wakes it where it was stopped, so that it sees the end of what its parent held
    open; where it runs, nothing happens. Called after the start and not between fork and exec, which is safe in a
    parent with threads; a parent that ended before is not seen.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
