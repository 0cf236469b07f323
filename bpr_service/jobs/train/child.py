"""``python -m bpr_service.jobs.train.child PARENT_PID COMMAND...``: become COMMAND, and die with the parent.

The kernel kills the command when its worker is gone (PR_SET_PDEATHSIG), so no orphan trains beside its successor.
Setting this here, after the start and not between fork and exec, is safe in a parent with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replace this process by the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        raise SystemExit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
