"""The processes that read and write: one that forks, warm, and those that it forked, one for each worker."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from bpr_service.errors import BprError, InputError, LimitError, fields_of, rebuild
from bpr_service.runtime.orphan import when_parent_ends
from bpr_service.server.codec import memory
from bpr_service.server.codec.shared import Block, receive, send

NICE = 5
"""How far workers step back behind the server's own threads: probes are answered while bombs are decoded."""

Steps = Mapping[str, Callable[[dict[str, Any], Block, memory.Allowance], tuple[dict[str, Any], Block]]]


def main() -> int:
    """Fork a worker for each socket that comes over the socket on standard input, and answer with its process id."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's
    when_parent_ends(signal.SIGCONT)
    control = socket.socket(fileno=0)
    steps = warm()
    gc.freeze()  # what is here is the workers' too, and stays shared while nobody writes to it
    while True:
        data, fds, _, _ = socket.recv_fds(control, 1, 1)
        if not data:
            return 0
        pid = os.fork()
        if pid == 0:
            control.close()
            with socket.socket(fileno=fds[0]) as server:
                work(server, steps)
            os._exit(0)
        os.close(fds[0])
        control.send(pid.to_bytes(8, "little"))


def warm() -> Steps:
    """Every step by its name, imported and compiled once for all workers."""
    import cv2

    from bpr_service.server.codec.steps import STEPS, try_all

    cv2.setNumThreads(0)
    try_all()
    return STEPS


def work(server: socket.socket, steps: Steps) -> None:
    """Take steps until the server is gone. What a step did not foresee is its own end, not the process's."""

    def ask(lasting: int, passing: int) -> None:
        send(server, {"lasting": lasting, "passing": passing})
        answer = receive(server)
        if answer is None:
            os._exit(0)
        if "error" in answer[0]:
            raise rebuild(**answer[0]["error"])

    when_parent_ends(signal.SIGCONT)  # a fork has none from its parent
    os.nice(NICE)
    memory.begin()
    while (asked := receive(server)) is not None:
        message, blocks = asked
        memory.limit_process(memory.QUANTUM_BYTES)
        made: Block | None = None
        try:
            answer, made = steps[message["step"]](message, blocks[0], memory.Allowance(ask))
        except BprError as error:
            answer = {"error": fields_of(error)}
        except MemoryError:
            answer = {"error": fields_of(too_much())}
        except RecursionError:
            answer = {"error": fields_of(InputError("the request is nested too deeply", fix="see /docs"))}
        except Exception:
            answer = {"failure": traceback.format_exc()[-8000:]}
        send(server, answer, *([made] if made is not None else []))
        for block in (*blocks, *([made] if made is not None else [])):
            block.close()
        del asked, message, blocks, made, answer
        if memory.has_grown():
            return


def too_much() -> LimitError:
    """The error of a step that needs more memory than its kind may."""
    return LimitError(
        "the request takes more memory than its kind may",
        expected="pictures and masks that decode within the memory reserved for them",
        got="more",
        fix="save the picture again as PNG or JPEG, or send less at once",
    )


if __name__ == "__main__":
    sys.exit(main())
