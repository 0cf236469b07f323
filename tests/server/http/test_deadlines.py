"""Deadlines, and callers that leave: an answer in time, and a slot that is free when the device is done."""

from __future__ import annotations

import json
import socket
import threading
from types import SimpleNamespace

import pytest

from bpr_service.runtime import dummy
from tests.server.helpers import body, serving
from tests.server.http.test_errors import RLE, post, problem, slow, whole_answer
from tests.services import wait_for


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """What the calls of a slow network wait for in this process, in place of the time that they take."""
    gate = threading.Event()
    gate.set()
    monkeypatch.setattr(dummy, "time", SimpleNamespace(sleep=lambda _: gate.wait()))
    return gate


def test_504_past_the_deadline(gate: threading.Event) -> None:
    with serving(None, slow(call_ms=1)) as server:
        gate.clear()
        try:
            response = post(server, body(options={"timeout_s": 1.5}))
            problem(response, 504, "deadline", "within 1.5 s")
            assert server.engine.requests == 1, "the slot is held while the device still works for it"
        finally:
            gate.set()


def test_504_a_body_that_comes_too_slowly() -> None:
    with serving({"grace_s": 0.2}) as server:
        port = int(server.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            head = "POST /v1/refine/instance HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            connection.sendall((head + "Content-Length: 1000\r\n\r\n{").encode())
            answer = whole_answer(connection)
        assert b" 504 " in answer.split(b"\r\n")[0]
        assert b"came too slowly" in answer


def test_a_caller_that_leaves_frees_its_slot(gate: threading.Event) -> None:
    with serving({"max_batch_patches": 1}, slow(call_ms=1)) as server:
        data = json.dumps(body(masks=[{"segmentation": RLE}] * 20)).encode()
        port = int(server.url.rsplit(":", 1)[1])
        gate.clear()
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as connection:
                head = "POST /v1/refine/instance HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
                wait_for("its patches wait", lambda: server.engine.queue_patches >= 50)
                assert server.engine.requests == 1
            wait_for("they leave the queue", lambda: server.engine.queue_patches == 0)
        finally:
            gate.set()
        wait_for("the slot is free", lambda: server.engine.requests == 0)
        assert 'status="499"' in server.client.get("/metrics").text
