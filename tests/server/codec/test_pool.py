"""The processes that read and write: killed at the deadline, replaced, and held to the memory they asked for."""

from __future__ import annotations

import io
import json
import signal
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bpr_service.errors import DeadlineError, LimitError
from bpr_service.runtime.work import Hold, Memory, Slot, Work
from bpr_service.server.codec.memory import QUANTUM_BYTES, Allowance
from bpr_service.server.codec.parse import Limits
from bpr_service.server.codec.shared import Block, unpack_meta
from bpr_service.server.codec.steps import STEPS
from tests.server.bombs import BOMBS
from tests.server.helpers import Running, b64, body, pool

LIMITS = Limits(max_pixels=1 << 26, max_masks=99, max_runs=1 << 20, max_mask_pixels=1 << 26, max_body_bytes=1 << 26)
CALL: dict[str, Any] = {
    "task": "instance",
    "content_type": "application/json",
    "presets": ["balanced"],
    "limits": asdict(LIMITS),
}


def work(memory: Memory, seconds: float = 60.0) -> Work:
    return Work(Slot(Hold(memory), lambda: None), None, None, deadline=time.monotonic() + seconds)


def sent() -> Block:
    block = Block()
    block.append(json.dumps(body()).encode())
    return block


def read(one: Work) -> dict[str, Any]:
    message, block = pool().step("read", one, sent(), **CALL)
    return unpack_meta(message, block)


def test_a_step_gives_pixels_and_what_is_said_of_them() -> None:
    memory = Memory(1 << 30)
    one = work(memory)
    meta = read(one)
    assert meta["image"][1] == [160, 200, 3]
    assert memory.used_bytes > 160 * 200 * 3, "what lasts is reserved until the slot is released"
    one.slot.release()
    assert memory.used_bytes == 0


def test_a_worker_that_hangs_is_killed_at_the_deadline_and_replaced() -> None:
    killed = pool().killed
    with pool()._worker() as worker:
        signal.pidfd_send_signal(worker._pidfd, signal.SIGSTOP)
    with pytest.raises(DeadlineError):
        read(work(Memory(1 << 30), 0.2))
    assert pool().killed == killed + 1
    assert read(work(Memory(1 << 30)))["masks"]


def test_a_worker_goes_with_the_request_that_it_works_for() -> None:
    one = work(Memory(1 << 30))
    with pool()._worker() as worker:
        signal.pidfd_send_signal(worker._pidfd, signal.SIGSTOP)
    one.future.add_done_callback(lambda _: None)
    one.fail(DeadlineError("late"))
    with pytest.raises(DeadlineError):
        read(one)
    with pool()._worker() as worker:
        worker.kill()
    assert read(work(Memory(1 << 30)))["masks"]


def test_a_worker_that_died_in_peace_costs_nobody_a_request() -> None:
    with pool()._worker() as worker:
        signal.pidfd_send_signal(worker._pidfd, signal.SIGKILL)
        while not worker.is_gone():
            pass
    assert read(work(Memory(1 << 30)))["masks"]


def test_what_does_not_fit_the_memory_is_refused_and_frees_what_it_had() -> None:
    memory = Memory(1 << 20)
    one = work(memory)
    with pytest.raises(LimitError, match="memory that the server may use"):
        read(one)
    one.slot.release()
    assert memory.used_bytes == 0


def test_a_small_request_asks_for_no_memory_beyond_what_every_step_has() -> None:
    asked: list[tuple[int, int]] = []
    allowance = Allowance(lambda lasting, passing: asked.append((lasting, passing)), limit=False)
    message, _ = STEPS["read"](CALL, sent(), allowance)
    assert message
    assert asked == [], "each question is a way to the server and back"
    assert 0 < allowance.passing <= QUANTUM_BYTES


def test_large_bodies_and_pictures_fit_what_is_reserved_for_them() -> None:
    """What the JSON parser maps, and the room that WebP's decoder has from the start, are not what they use."""
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    wide = np.zeros((3000, 3000, 3), np.uint8)
    for array, kind in ((noise, "BMP"), (wide, "WEBP")):
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, kind)
        block = Block()
        block.append(json.dumps({"image": {"data": b64(stream.getvalue())}, "masks": []}).encode())
        one = work(Memory(1 << 30))
        message, answer = pool().step("read", one, block, **CALL)
        assert unpack_meta(message, answer)["image"][1] == list(array.shape)
        one.slot.release()


def test_what_is_parsed_is_kept_beside_what_is_decoded() -> None:
    allowance = Allowance(lambda lasting, passing: None, limit=False)
    allowance.take(1000)
    allowance.at_least(500)
    allowance.at_least(300)
    assert allowance.passing == 1500


@pytest.mark.parametrize("name", ["a soft mask of 16 bits", "answered as PNG"])
def test_a_mask_that_came_as_a_long_text_is_answered(server: Running, name: str) -> None:
    """Its text is parsed once more where the answer is written, in a process that is held to what it asked for."""
    shot = BOMBS[name](2048)
    answer = server.client.post(shot.path, content=shot.body, headers={"content-type": shot.content_type})
    assert answer.status_code in (200, 422), answer.text[:300]
