"""Each status code by a real request, and the body of its answer."""

from __future__ import annotations

import json
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from bpr_service.masks.label_maps import panoptic_png
from bpr_service.runtime.dummy import DummyModels
from bpr_service.server.http.auth import ApiKey, Keys, hash_key
from tests.server.helpers import HEIGHT, WIDTH, Running, b64, body, coarse, disc, picture, png, serving
from tests.services import wait_for

SMALL = {"max_body_bytes": 200_000, "max_pixels": 50_000, "max_masks": 3, "max_runs": 400, "max_patches": 60}


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    with serving(SMALL) as running:
        yield running


def problem(response: httpx.Response, status: int, code: str, *words: str) -> dict[str, Any]:
    """Check the shape of RFC 9457 and that each of ``words`` is in the detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    answer: dict[str, Any] = response.json()
    assert answer["type"] == f"urn:bpr:problem:{code}"
    assert (answer["status"], answer["code"]) == (status, code)
    assert answer["title"]
    assert answer["request_id"] == response.headers["x-request-id"]
    for word in words:
        assert word in answer["detail"], answer["detail"]
    return answer


def post(server: Running, request: Any, task: str = "instance", **headers: str) -> httpx.Response:
    return server.client.post(f"/v1/refine/{task}", json=request, headers=headers)


def whole_answer(connection: socket.socket) -> bytes:
    """Head and body of an answer on a connection that stays open."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, rest = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(rest) < length:
        rest += connection.recv(65536)
    return head + rest


# ---------------------------------------------------------------- 400


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"nan", b'{"image": ' + b"[" * 5000, b"[" * 100_000, b'{"a": NaN}']
)
def test_400_what_is_not_json(server: Running, content: bytes) -> None:
    response = server.client.post("/v1/refine/instance", content=content, headers={"content-type": "application/json"})
    answer = problem(response, 400, "malformed_body", "expected a JSON object")
    assert answer["fix"]


@pytest.mark.parametrize(
    ("content", "kind", "word"),
    [
        (b"--x\r\n", "multipart/form-data; boundary=x", "breaks off"),
        (b"whatever", "multipart/form-data", "boundary"),
        (b"", "multipart/form-data; boundary=x", "breaks off"),
        (
            b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc',
            "multipart/form-data; boundary=x",
            "breaks off",
        ),
    ],
)
def test_400_broken_multipart(server: Running, content: bytes, kind: str, word: str) -> None:
    response = server.client.post("/v1/refine/instance", content=content, headers={"content-type": kind})
    problem(response, 400, "malformed_body", word)


def test_400_what_is_not_base64(server: Running) -> None:
    answer = problem(post(server, body(image={"data": "%%%"})), 400, "malformed_body", "not base64")
    assert answer["pointer"] == "/image/data"
    masks = [{"segmentation": {"png": "ab*"}}]
    answer = problem(post(server, body(masks=masks)), 400, "malformed_body", "not base64")
    assert answer["pointer"].startswith("/masks/0/segmentation")


# ---------------------------------------------------------------- 401, 403


def test_401_and_403_where_there_are_keys() -> None:
    keys = [
        ApiKey(name="reader", sha256=hash_key("r" * 20)),
        ApiKey(name="boss", sha256=hash_key("b" * 20), scopes=("refine", "admin")),
    ]
    with serving(keys=Keys(keys)) as server:
        answer = problem(post(server, body()), 401, "unauthorized", "Authorization: Bearer")
        assert "b" * 20 not in json.dumps(answer)
        response = post(server, body(), authorization="Bearer nope")
        problem(response, 401, "unauthorized", "not known")
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert post(server, body(), authorization=f"Bearer {'r' * 20}").status_code == 200
        url = "/v1/models/dummy/activate"
        problem(
            server.client.post(url, json={}, headers={"authorization": f"Bearer {'r' * 20}"}),
            403,
            "forbidden",
            "scope admin",
            "reader",
        )
        done = server.client.post(url, json={"version": "v9"}, headers={"authorization": f"Bearer {'b' * 20}"})
        assert done.json()["version"] == "v9"
        for path in (
            "/livez",
            "/readyz",
            "/metrics",
            "/version",
            "/v2/health/live",
            "/v2/health/ready",
            "/health",
            "/",
        ):
            assert server.client.get(path).status_code == 200, path
        for path in ("/v1/models", "/v1/examples"):
            problem(server.client.get(path), 401, "unauthorized")


# ---------------------------------------------------------------- 404, 405, 409


def test_404(server: Running) -> None:
    problem(server.client.get("/nothing"), 404, "not_found")
    problem(server.client.get("/v2/models/nope/ready"), 404, "not_found", "dummy")
    problem(server.client.get("/v2/models/dummy/versions/v77/ready"), 404, "not_found")
    problem(server.client.post("/v1/models/nope/activate", json={}), 404, "not_found", "expected dummy")
    problem(server.client.post("/v1/models/dummy/activate", json={"version": "x"}), 404, "not_found")
    problem(server.client.get("/page/..%2fapp.py"), 404, "not_found")
    problem(server.client.get("/page/app.py"), 404, "not_found")


def test_405(server: Running) -> None:
    response = server.client.get("/v1/refine/instance")
    problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_409_while_another_model_is_activated(server: Running) -> None:
    with server.engine._lanes._activation:
        problem(server.client.post("/v1/models/dummy/activate", json={}), 409, "conflict")


# ---------------------------------------------------------------- 413


def test_413_a_body_is_refused_by_its_header_before_it_is_read(small: Running) -> None:
    port = int(small.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        head = "POST /v1/refine/instance HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        connection.sendall((head + "Content-Length: 99999999999999\r\n\r\n").encode())  # and not a byte of it
        answer = whole_answer(connection)
    assert b" 413 " in answer.split(b"\r\n")[0]
    assert b"at most 200000 bytes" in answer


def test_413_a_body_without_a_length_is_cut_off(small: Running) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    response = small.client.post("/v1/refine/instance", content=chunks(), headers={"content-type": "application/json"})
    problem(response, 413, "too_large", "at most 200000 bytes")


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header announces width x height."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (300, 200)])
def test_413_pixels_are_counted_from_the_header(small: Running, size: tuple[int, int]) -> None:
    answer = problem(post(small, body(image={"data": b64(bomb(*size))})), 413, "too_large", "at most 50000 pixels")
    assert answer["pointer"] == "/image"  # decoded, it would be an image that ends too early


def test_413_pixels_of_masks_too(small: Running) -> None:
    masks: Any = [{"segmentation": {"png": b64(bomb(5000, 5000))}}]
    problem(post(small, body(masks=masks)), 413, "too_large", "at most 50000 pixels")
    masks = [{"segmentation": {"size": [60_000, 60_000], "counts": "abc"}}]
    problem(post(small, body(masks=masks)), 413, "too_large", "at most 50000 pixels")


def test_413_masks_runs_points_and_patches(small: Running) -> None:
    rle = coarse().to_rle()
    problem(post(small, body(masks=[{"segmentation": rle}] * 4)), 413, "too_large", "at most 3, got 4")
    wild: Any = {"size": [HEIGHT, WIDTH], "counts": [1] * 2000}
    problem(post(small, body(masks=[{"segmentation": wild}])), 413, "too_large", "at most 400 runs, got 2000")
    wild = {"size": [HEIGHT, WIDTH], "counts": "1" * 2000}
    answer = problem(
        post(small, body(masks=[{"segmentation": rle}, {"segmentation": wild}])), 413, "too_large", "at most 400 runs"
    )
    assert answer["pointer"] == "/masks/1/segmentation"
    wild_polygon = [[float(i % 50) for i in range(2000)]]
    problem(post(small, body(masks=[{"segmentation": wild_polygon}])), 413, "too_large", "at most 400 points, got 1000")
    ragged = {"segmentation": rle}
    request = body(masks=[ragged] * 3, options={"nms_threshold": 0.95})
    problem(post(small, request), 413, "too_large", "at most 60 patches")


def test_413_more_labels_than_masks_are_allowed(small: Running) -> None:
    labels = (np.arange(HEIGHT)[:, None] // 20 + np.zeros((1, WIDTH), int)).astype(np.uint8)
    request = {"image": body()["image"], "label_map": {"data": b64(png(labels))}}
    problem(post(small, request, "semantic"), 413, "too_large", "at most 3, got 8")
    request = {
        "image": body()["image"],
        "segment_map": {"data": b64(panoptic_png(labels.astype(np.int32)))},
        "segments_info": [],
    }
    problem(post(small, request, "panoptic"), 413, "too_large", "at most 3, got 8")


def test_413_masks_that_are_too_large_together() -> None:
    with serving({"max_mask_pixels": 20_000}) as server:
        masks = [{"segmentation": coarse().to_rle()}] * 3
        answer = problem(post(server, body(masks=masks)), 413, "too_large", "20000 pixels in all")
        assert answer["pointer"] == "/masks/2/segmentation"


# ---------------------------------------------------------------- 415


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "", "application/octet-stream"])
def test_415(server: Running, kind: str) -> None:
    response = server.client.post("/v1/refine/instance", content=b"{}", headers={"content-type": kind} if kind else {})
    problem(response, 415, "unsupported_media_type", "application/json or multipart/form-data")


# ---------------------------------------------------------------- 422

RLE = coarse().to_rle()


@pytest.mark.parametrize(
    ("changes", "words", "pointer"),
    [
        ({"image": None}, ["valid"], "/image"),
        ({"image": {"url": "http://127.0.0.1/secret"}}, ["data"], "/image/url"),
        ({"masks": 7}, ["list"], "/masks"),
        ({"masks": [{"segmentation": {"size": [1], "counts": ""}}]}, ["2 items"], "/masks/0/segmentation/rle/size"),
        ({"masks": [{"segmentation": {"size": [0, 5], "counts": ""}}]}, ["greater"], None),
        ({"masks": [{"segmentation": {"size": [HEIGHT, WIDTH], "counts": [1, "x"]}}]}, ["integer"], None),
        ({"masks": [{"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-1, 5]}}]}, ["greater"], None),
        ({"masks": [{"segmentation": RLE, "score": "high"}]}, ["number"], "/masks/0/score"),
        ({"masks": [{"segmentation": 5}]}, ["segmentation"], None),
        ({"options": {"presets": "best"}}, ["not permitted"], "/options/presets"),
        ({"options": {"encoding": "jpeg"}}, ["'polygon'"], "/options/encoding"),
        ({"options": {"timeout_s": -1}}, ["greater than 0"], "/options/timeout_s"),
        ({"options": {"nms_threshold": 2}}, ["less than 1"], "/options/nms_threshold"),
        ({"extra": 1}, ["not permitted"], "/extra"),
    ],
)
def test_422_of_another_shape(server: Running, changes: dict[str, Any], words: list[str], pointer: str | None) -> None:
    answer = problem(post(server, body(**changes)), 422, "invalid_input", *words)
    assert answer["expected"]
    if pointer:
        assert answer["faults"][0]["pointer"] == pointer


@pytest.mark.parametrize("value", [5, [], "text", None, True])
def test_422_json_that_is_no_object(server: Running, value: Any) -> None:
    response = server.client.post(
        "/v1/refine/instance", content=json.dumps(value), headers={"content-type": "application/json"}
    )
    problem(response, 422, "invalid_input")


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "no bytes"),
        (b"GIF89a" + bytes(50), "another type"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "another type"),
        (png(picture())[:200], "damaged"),
        (png(picture())[:-500], "damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "damaged"),
        (b"\xff\xd8\xff\xe0" + bytes(60), "damaged"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "damaged"),
        (b"II*\0\x08\0\0\0", "damaged"),
    ],
)
def test_422_images_that_are_none(server: Running, data: bytes, word: str) -> None:
    answer = problem(post(server, body(image={"data": b64(data)})), 422, "invalid_image", word)
    assert answer["pointer"] == "/image"


@pytest.mark.parametrize(
    ("segmentation", "word"),
    [
        ({"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}, "xchange height and width"),
        ({"size": [HEIGHT, WIDTH], "counts": [5]}, "expected"),
        ({"size": [HEIGHT, WIDTH], "counts": "0000"}, "expected"),
        ({"size": [HEIGHT, WIDTH], "counts": "\x00\u20ac"}, "expected"),
        ([[1, 2, 3, 4, 5]], "expected"),
        (b64(png(disc(r=9).astype(np.uint8)[:50])), "expected 160 x 200"),
        (b64(b"no png"), "another type"),
    ],
)
def test_422_masks_that_are_none(server: Running, segmentation: Any, word: str) -> None:
    masks = [{"segmentation": RLE}, {"segmentation": segmentation}]
    answer = problem(post(server, body(masks=masks)), 422, "invalid_mask", word)
    assert answer["pointer"] == "/masks/1/segmentation"


def test_422_an_unknown_preset_lists_the_known(server: Running) -> None:
    answer = problem(post(server, body(options={"preset": "balancd"})), 422, "unknown_name", "balanced")
    assert "Did you mean 'balanced'" in answer["detail"]


def test_keys_that_are_nested_deeply_and_half_a_surrogate_pair_come_back(server: Running) -> None:
    deep = json.loads("[" * 400 + "]" * 400)
    content = json.dumps(body(masks=[{"segmentation": RLE, "x": deep, "id": 1 << 70, "name": "\ud800"}])).encode()
    response = server.client.post("/v1/refine/instance", content=content, headers={"content-type": "application/json"})
    (mask,) = json.loads(response.content)["masks"]
    assert (mask["x"], mask["id"], mask["name"]) == (deep, 1 << 70, "\ud800")


def test_422_maps(server: Running) -> None:
    image = body()["image"]
    label_map = {"data": b64(png(disc().astype(np.uint8)))}
    segment_map = {"data": b64(panoptic_png(disc().astype(np.int32) + 1))}
    both = {"image": image, "label_map": label_map, "masks": []}
    problem(post(server, both, "semantic"), 422, "invalid_input", "got both")
    problem(post(server, {"image": image}, "semantic"), 422, "invalid_input", "got neither")
    turned = {"data": b64(png(disc().astype(np.uint8).T.copy()))}
    answer = problem(post(server, {"image": image, "label_map": turned}, "semantic"), 422, "invalid_mask", "160 x 200")
    assert answer["pointer"] == "/label_map"
    colour = {"image": image, "label_map": {"data": b64(png(picture()))}}
    problem(post(server, colour, "semantic"), 422, "invalid_mask", "one channel")
    twice = [{"category_id": 1, "segmentation": RLE}] * 2
    problem(post(server, {"image": image, "masks": twice}, "semantic"), 422, "invalid_input", "no other mask")
    problem(
        post(server, {"image": image, "segment_map": segment_map}, "panoptic"), 422, "invalid_input", "segments_info"
    )
    wrong = {"image": image, "segment_map": segment_map, "segments_info": [{"id": 1, "category_id": 1}]}
    problem(post(server, wrong, "panoptic"), 422, "invalid_mask", "segment 2 in the map and not")
    nameless = [{"category_id": 1, "segmentation": RLE}]
    problem(post(server, {"image": image, "masks": nameless}, "panoptic"), 422, "invalid_input", "an id from 1")


def test_422_multipart_without_an_image_or_with_a_stranger(server: Running) -> None:
    response = server.client.post("/v1/refine/instance", files={"masks": ("m.json", b"[]", "application/json")})
    problem(response, 422, "invalid_input", "no image")
    files = {"image": ("a.png", png(picture()), "image/png"), "pickle": ("p", b"x", "text/plain")}
    problem(server.client.post("/v1/refine/instance", files=files), 422, "invalid_input", "'pickle'")


# ---------------------------------------------------------------- 429, 503


def slow(patch_ms: float = 0.0, call_ms: float = 0.0) -> DummyModels:
    return DummyModels(patch_ms=patch_ms, call_ms=call_ms)


@contextmanager
def occupied(server: Running, request: dict[str, Any]) -> Iterator[None]:
    """The server busy with a request in another thread."""
    answers: list[httpx.Response] = []
    thread = threading.Thread(
        target=lambda: answers.append(httpx.post(server.url + "/v1/refine/instance", json=request, timeout=150))
    )
    thread.start()
    wait_for("it is admitted", lambda: server.engine.requests)
    yield
    thread.join(150)
    assert answers[0].status_code == 200


def test_429_at_capacity_with_retry_after() -> None:
    # Longer than `OVER_SHARE_S`, which who has its share waits first.
    with serving({"max_requests": 1}, slow(call_ms=2000)) as server, occupied(server, body()):
        response = post(server, body())
        problem(response, 429, "busy", "at capacity")
        assert int(response.headers["retry-after"]) >= 1
        text = server.client.get("/metrics").text
        assert 'bpr_rejected_total{reason="busy"} 1.0' in text
        assert "bpr_requests_admitted 1.0" in text


def test_429_over_a_keys_rate() -> None:
    key = ApiKey(name="slow", sha256=hash_key("k"), per_minute=10)
    with serving(keys=Keys([key])) as server:
        server.client.headers["authorization"] = "Bearer k"
        assert server.client.get("/v1/models").status_code == 200
        response = server.client.get("/v1/models")
        problem(response, 429, "busy", "at most 10 requests a minute")
        assert 1 <= int(response.headers["retry-after"]) <= 6


def test_429_where_memory_is_taken() -> None:
    with serving({"memory_mb": 64}) as server:
        slot = server.engine.admit()
        slot.reserve(64 << 20)
        try:
            problem(post(server, body()), 429, "busy", "memory")
        finally:
            slot.release()
        assert post(server, body()).status_code == 200


def test_503_before_the_models_are_warm_and_while_draining() -> None:
    with serving(start=False) as server:
        assert server.client.get("/livez").status_code == 200
        for path in ("/readyz", "/v2/health/ready", "/health", "/v2/models/dummy/ready"):
            response = server.client.get(path)
            problem(response, 503, "not_ready", "starting")
            assert int(response.headers["retry-after"]) >= 1
        problem(post(server, body()), 503, "not_ready", "being loaded")
        server.engine.start()
        assert server.client.get("/readyz").status_code == 200
        assert post(server, body()).status_code == 200
        server.engine.drain()
        problem(server.client.get("/readyz"), 503, "not_ready", "draining")
        problem(post(server, body()), 503, "not_ready", "shutting down")
        assert server.client.get("/livez").status_code == 200


def test_503_when_the_device_has_failed() -> None:
    with serving() as server:
        server.engine.state = "failed"
        problem(server.client.get("/livez"), 503, "not_ready", "the device has failed")
        problem(post(server, body()), 503, "not_ready", "the device has failed")


# ---------------------------------------------------------------- 500


def test_500_tells_nothing_and_logs_under_the_request_id(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refiner = server.engine.lane(None).refiner

    def broken(*args: Any, **options: Any) -> Any:
        raise ZeroDivisionError("/etc/secret: password 123")

    monkeypatch.setattr(refiner, "prepare", broken)
    with caplog.at_level("INFO", logger="bpr_service.server"):
        response = post(server, body(), **{"X-Request-ID": "find-me"})
    answer = problem(response, 500, "internal", "logged under the request id")
    assert answer["request_id"] == "find-me"
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert any("ZeroDivisionError" in (record.exc_text or "") for record in caplog.records)
    monkeypatch.undo()
    assert post(server, body()).status_code == 200
