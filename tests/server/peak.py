"""What reading a bomb took against what was reserved for it: a worker's step, in a process of its own.

    python -m tests.server.peak SIDE [NAME ...]

prints one line of JSON for each bomb of `tests.server.bombs`: reserved and peak resident bytes, and what came of it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from bpr_service.errors import BprError
from bpr_service.server.codec import memory
from bpr_service.server.codec.parse import Limits
from bpr_service.server.codec.shared import Block
from bpr_service.server.codec.steps import STEPS, try_all
from tests.server.bombs import BOMBS

LIMITS = Limits(max_pixels=1 << 26, max_masks=1000, max_runs=1_000_000, max_mask_pixels=1 << 27, max_body_bytes=1 << 26)


def main(side: int, names: list[str]) -> None:
    """Print the figures of each bomb. Each is made in one process and read in another, so that neither finds memory
    that the other left.
    """
    try_all()
    for name in names or BOMBS:
        body, told = Block(), Block()

        def make(name: str = name, body: Block = body, told: Block = told) -> None:
            shot = BOMBS[name](side)
            body.append(shot.body)
            told.append(json.dumps([shot.path, shot.content_type]).encode())

        _apart(make)
        path, content_type = json.loads(bytes(Block(os.dup(told.fd)).view()))
        _apart(partial(_tell, name, body, path, content_type))
        body.close()
        told.close()


def _apart(function: Callable[[], Any]) -> None:
    """Call a function in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def _tell(name: str, body: Block, path: str, content_type: str) -> None:
    print(json.dumps({"name": name, **read(body, path, content_type)}), flush=True)


def read(body: Block, path: str, content_type: str) -> dict[str, Any]:
    """Read a body as a worker does, held to what it reserved; the figures of it."""
    reserved = [memory.QUANTUM_BYTES, memory.QUANTUM_BYTES]

    def ask(lasting: int, passing: int) -> None:
        reserved[0] += lasting
        reserved[1] += passing

    block = Block(os.dup(body.fd))
    task = path.rsplit("/", 1)[1]
    step = "label_studio_split" if task == "predict" else "read"
    message = {"task": task, "content_type": content_type, "presets": ["balanced"], "limits": asdict(LIMITS)}
    memory.begin()
    memory.limit_process(memory.QUANTUM_BYTES)
    before = _status("VmRSS:")
    outcome = "read"
    try:
        STEPS[step](message, block, memory.Allowance(ask))
    except BprError as error:
        outcome = error.code
    except MemoryError:
        outcome = "out of memory"
    except RecursionError:
        outcome = "too deep"
    return {"reserved": sum(reserved) + block.size, "peak": _status("VmHWM:") - before, "outcome": outcome}


def _status(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
