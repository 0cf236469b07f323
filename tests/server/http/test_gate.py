"""The gate before every route: each is called with an endless body, a slow one, none, and without a key."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import h11
import httpx
import pytest

from bpr_service.errors import ForbiddenError
from bpr_service.runtime.dummy import DummyModels
from bpr_service.runtime.engine import Engine
from bpr_service.server.app import create_app
from bpr_service.server.http.access import CLOSED, SMALL_BYTES, access_to, check_origin
from bpr_service.server.http.auth import ApiKey, Keys, hash_key
from bpr_service.server.http.connection import Framing
from bpr_service.server.http.jobs import job_router
from tests.server.helpers import Running, body, serving

KEYS = [ApiKey(name="reader", sha256=hash_key("r")), ApiKey(name="boss", sha256=hash_key("b"), scopes=("admin",))]
BOUNDS = {"max_body_bytes": 1 << 20, "grace_s": 0.3, "header_s": 0.5}


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    with serving(BOUNDS, keys=Keys(KEYS), job_router=job_router(mock.Mock())) as running:
        yield running


def all_routes() -> list[tuple[str, str]]:
    """Method and path of every route of the application, those included that OpenAPI does not show."""
    app = create_app(Engine(DummyModels()), job_router=job_router(mock.Mock()))
    documented = [(method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item]
    hidden = [("GET", path) for path in ("/", "/docs", "/openapi.json", "/page/{name}")]
    return sorted({*documented, *hidden})


ROUTES = all_routes()


def filled(path: str) -> str:
    return path.replace("{", "").replace("}", "")


def test_every_route_is_in_the_table_and_those_that_answer_401_need_a_key() -> None:
    app = create_app(Engine(DummyModels()), job_router=job_router(mock.Mock()))
    assert len(ROUTES) > 25
    for method, path in ROUTES:
        needs = access_to(method, filled(path))
        assert needs is not CLOSED, f"{method} {path} has no rule"
        documented = app.openapi()["paths"].get(path, {}).get(method.lower(), {"responses": {}})
        assert ("401" in documented["responses"]) == (needs.scope is not None), f"{method} {path}"


def raw(server: Running, head: str, *pieces: bytes) -> bytes:
    """Send by hand, and read until the other side closes or has answered."""
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), 10) as connection:
        connection.sendall(head.encode())
        try:
            for piece in pieces:
                connection.sendall(piece)
        except ConnectionError:
            pass
        data = b""
        try:
            while b"\r\n\r\n" not in data and (part := connection.recv(65536)):
                data += part
        except ConnectionError:
            pass
    return data


def head(method: str, path: str, *headers: str) -> str:
    lines = [f"{method} {filled(path)} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers]
    return "\r\n".join(lines) + "\r\n\r\n"


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_a_key_nothing_of_the_body_is_read(guarded: Running, method: str, path: str) -> None:
    scope = access_to(method, filled(path)).scope
    if scope is None:
        assert guarded.client.request(method, filled(path)).status_code in (200, 404)
        return
    answer = raw(guarded, head(method, path, "Transfer-Encoding: chunked"))  # and not a byte of it
    assert b" 401 " in answer.split(b"\r\n")[0]
    wrong = "r" if scope == "admin" else "b"
    assert guarded.client.request(method, filled(path), headers={"authorization": f"Bearer {wrong}"}).status_code == 403


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route[0] == "POST"])
def test_endless_and_slow_bodies_end(guarded: Running, method: str, path: str) -> None:
    key = "b" if access_to(method, filled(path)).scope == "admin" else "r"
    headers = (f"Authorization: Bearer {key}", "Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    assert b" 413 " in raw(guarded, head(method, path, *headers), *[chunk] * 20).split(b"\r\n")[0]
    assert b" 504 " in raw(guarded, head(method, path, *headers), b"1\r\n{\r\n").split(b"\r\n")[0]


def test_a_small_route_takes_a_small_body(guarded: Running) -> None:
    headers = {"authorization": "Bearer b", "content-type": "application/json"}
    url, text = "/v1/models/dummy/activate", json.dumps({"version": "v1"})
    assert guarded.client.post(url, content=text + " " * (SMALL_BYTES - len(text)), headers=headers).status_code == 200
    refused = guarded.client.post(url, content=text + " " * SMALL_BYTES, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (413, "too_large")


CHUNKED = "Transfer-Encoding: chunked"


def test_what_is_dear_to_take_apart_is_refused_after_a_little_of_it(guarded: Running) -> None:
    """On the event loop: 40,000 chunks of a byte, or 40,000 headers, took it a quarter of a second."""
    tiny = raw(guarded, head("POST", "/v1/refine/instance", CHUNKED, "Authorization: Bearer r"), b"1\r\n \r\n" * 40_000)
    assert b" 400 " in tiny.splitlines()[0]
    many = raw(guarded, "GET /livez HTTP/1.1\r\nHost: localhost\r\n", b"a:b\r\n" * 40_000, b"\r\n")
    assert many == b"" or b" 400 " in many.splitlines()[0]
    both = raw(guarded, head("GET", "/readyz"), b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"a:b\r\n" * 40_000)
    assert both == b"" or b" 200 " in both.splitlines()[0]


def framed(*chunks: int) -> Iterator[Any]:
    """The events of a body in chunks of so many bytes."""
    framing = Framing(h11.SERVER)
    body = b"".join(b"%x\r\n%s\r\n" % (size, bytes(size)) for size in chunks)
    framing.receive_data(head("POST", "/", CHUNKED).encode() + body + b"0\r\n\r\n")
    while not isinstance(event := framing.next_event(), h11.EndOfMessage):
        yield event


def test_chunks_may_be_small_where_they_are_few_or_others_are_large() -> None:
    assert sum(len(event.data) for event in framed(*[1] * 200) if isinstance(event, h11.Data)) == 200
    assert len(list(framed(65536, *[1] * 1000))) == 1002
    with pytest.raises(h11.RemoteProtocolError, match="too small"):
        list(framed(*[1] * 300))


def test_half_a_header_does_not_keep_a_connection(guarded: Running) -> None:
    assert raw(guarded, "POST /v1/refine/instance HTTP/1.1\r\nHost: 127.0.0.1\r\n") == b""
    assert raw(guarded, "") == b"", "nor does none"


def test_connections_beyond_the_most_are_closed_at_once() -> None:
    with serving({"max_connections": 3}) as server:
        server.client.get("/livez")  # its own stays open
        port = int(server.url.rsplit(":", 1)[1])
        kept = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(2)]
        assert raw(server, head("GET", "/livez")) == b""
        for connection in kept:
            connection.close()


def test_bodies_that_come_slowly_keep_nobody_out() -> None:
    with serving({"max_requests": 1, "grace_s": 20.0}) as server:
        port = int(server.url.rsplit(":", 1)[1])
        slow = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(8)]
        for connection in slow:
            connection.sendall(head("POST", "/v1/refine/instance", "Content-Length: 1000").encode() + b"{")
        assert server.client.post("/v1/refine/instance", json=body()).status_code == 200
        for connection in slow:
            connection.close()


def test_an_answer_that_nobody_takes_is_given_up() -> None:
    settings = {"grace_s": 0.2, "least_bytes_per_s": 1 << 20}
    with serving(settings) as server:
        request = json.dumps(body(options={"encoding": "uncompressed_rle"}) | {"masks": body()["masks"] * 300}).encode()
        port = int(server.url.rsplit(":", 1)[1])
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(20)
            connection.connect(("127.0.0.1", port))
            top = head("POST", "/v1/refine/instance", f"Content-Length: {len(request)}")
            connection.sendall(top.encode() + request)
            held = threading.Event()

            def watch() -> None:
                while not server.engine.memory.used_bytes:
                    pass
                while server.engine.memory.used_bytes:
                    pass
                held.set()

            thread = threading.Thread(target=watch, daemon=True)
            thread.start()
            assert held.wait(60), "the memory of an answer that is not read was never freed"


@pytest.mark.parametrize(
    ("headers", "hosts", "keyed", "allowed"),
    [
        ({"host": "127.0.0.1:8000"}, (), False, True),
        ({"host": "[::1]:8000"}, (), False, True),
        ({"host": "localhost"}, (), False, True),
        ({"host": "evil.example"}, (), False, False),
        ({"host": "evil.example"}, (), True, True),
        ({"host": "evil.example"}, ("bpr.local",), True, False),
        ({"host": "bpr.local:80"}, ("bpr.local",), False, True),
        ({}, (), False, False),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, (), False, True),
        ({"host": "localhost:8000", "origin": "http://evil.example"}, (), False, False),
        ({"host": "localhost:8000", "origin": "http://localhost:9000"}, (), True, False),
        ({"host": "localhost", "origin": "null"}, (), False, False),
        ({"host": "localhost", "sec-fetch-site": "cross-site"}, (), False, False),
    ],
)
def test_another_sites_page_is_not_obeyed(
    headers: dict[str, str], hosts: tuple[str, ...], keyed: bool, allowed: bool
) -> None:
    if allowed:
        check_origin(headers, hosts, keyed)
        return
    with pytest.raises(ForbiddenError):
        check_origin(headers, hosts, keyed)


def test_a_foreign_page_cannot_steer_a_server_without_keys(server: Running) -> None:
    url = "/v1/models/dummy/activate"
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        answer: Any = server.client.post(url, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert httpx.get(server.url + "/livez", headers={"Host": "evil.example"}).status_code == 200, (
        "probes go by any name"
    )
