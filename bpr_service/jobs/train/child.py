"""``python -m bpr_service.jobs.train.child PARENT_PID COMMAND...``: become COMMAND, and die with the parent.

The kernel kills the command when its worker is gone, so no orphan trains beside its successor.
"""

from __future__ import annotations

import os
import signal
import sys

from bpr_service.runtime.orphan import when_parent_ends


def main() -> None:
    """Replace this process by the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    when_parent_ends(signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        raise SystemExit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
