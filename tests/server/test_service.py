"""What surrounds the routes: probes, metrics, headers, logs, models, fairness over HTTP."""

from __future__ import annotations

import json
import logging
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from bpr_service.masks.mask import Mask
from bpr_service.runtime.dummy import DummyModels
from bpr_service.server.logs import JsonFormatter, request_id
from bpr_service.server.settings import ServerSettings
from tests.server.helpers import Running, b64, body, coarse, png, serving


def test_probes_and_version(server: Running) -> None:
    assert server.client.get("/livez").json() == {"status": "alive"}
    assert server.client.get("/readyz").json() == {"status": "ready"}
    answer = server.client.get("/version").json()
    assert answer["device"] == "cpu"
    assert answer["presets"]["balanced"]["model"] == "dummy"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, False),
        ({"host": "127.0.0.2"}, False),
        ({"host": "::1"}, False),
        ({"host": "localhost"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "bpr.local"}, True),
        ({"host": "0.0.0.0", "api_keys_file": "keys.json"}, False),
    ],
)
def test_a_server_without_keys_is_open_where_others_reach_it(settings: dict[str, Any], said: bool) -> None:
    assert ServerSettings(**settings).is_open == said


def test_an_open_server_says_so_to_its_page(server: Running) -> None:
    assert server.client.get("/version").json()["notice"] is None
    with serving({"host": "0.0.0.0"}) as open_server:
        assert open_server.client.get("/version").json()["notice"].startswith("NO KEYS")


def test_open_inference_protocol(server: Running) -> None:
    assert server.client.get("/v2/health/live").json() == {"live": True}
    assert server.client.get("/v2/health/ready").json() == {"ready": True}
    version = server.client.get("/version").json()["presets"]["balanced"]["version"]
    for path in ("/v2/models/dummy", f"/v2/models/dummy/versions/{version}", "/v2/models/balanced"):
        assert server.client.get(path + "/ready").json() == {"name": "dummy", "ready": True}
        assert server.client.get(path).status_code == 404, "no inference by that protocol, so no metadata of it"


def test_metrics_count_what_happened() -> None:
    with serving() as server:
        for _ in range(3):
            server.client.post("/v1/refine/instance", json=body())
        server.client.post("/v1/refine/instance", json={})
        server.client.get("/no/such/route")
        text = server.client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['bpr_requests_total{route="/v1/refine/instance",status="200"}'] == "3.0"
    assert lines['bpr_requests_total{route="/v1/refine/instance",status="422"}'] == "1.0"
    assert lines['bpr_requests_total{route="unmatched",status="404"}'] == "1.0", "paths must not become labels"
    assert lines['bpr_rejected_total{reason="invalid_input"}'] == "1.0"
    assert lines['bpr_masks_total{status="refined"}'] == "3.0"
    assert lines['bpr_step_seconds_count{step="network"}'] == "3.0"
    assert float(lines["bpr_patches_total"]) > 3
    assert float(lines["bpr_batch_fill_count"]) >= 3
    assert float(lines["bpr_device_memory_bytes"]) > 1e6
    assert lines["bpr_ready"] == "1.0"
    assert lines["bpr_requests_admitted"] == lines["bpr_queue_patches"] == lines["bpr_reserved_bytes"] == "0.0"


@pytest.mark.parametrize("path", ["/", "/v1/models", "/nothing", "/metrics"])
def test_every_answer_has_the_security_headers_and_an_id(server: Running, path: str) -> None:
    headers = server.client.get(path, headers={"Origin": "http://evil.example"}).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert len(headers["x-request-id"]) == 32
    assert "server" not in headers
    assert not [name for name in headers if name.startswith("access-control")], "CORS is off"


def test_a_request_id_that_is_not_plain_is_replaced(server: Running) -> None:
    for given in ("x" * 65, "a b", "né", '"><script>'):
        headers = [(b"X-Request-ID", given.encode())]
        assert server.client.get("/livez", headers=headers).headers["x-request-id"] != given
    assert server.client.get("/livez", headers={"X-Request-ID": "ok-1"}).headers["x-request-id"] == "ok-1"


def test_a_log_line_has_sizes_and_timings_and_nothing_of_the_request(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    secret = {"id": "patient-4711", "diagnosis": "none", "segmentation": coarse().to_rle()}
    found: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if request_id.get() == "log-1":
                found.put(record)

    listener = Listener()
    logging.getLogger("bpr_service.server").addHandler(listener)
    try:
        with caplog.at_level(logging.INFO, logger="bpr_service.server"):
            server.client.post("/v1/refine/instance", json=body(masks=[secret]), headers={"X-Request-ID": "log-1"})
            record = found.get(timeout=30)  # written once the answer has left
    finally:
        logging.getLogger("bpr_service.server").removeHandler(listener)
    token = request_id.set("log-1")
    try:
        line = json.loads(JsonFormatter().format(record))
    finally:
        request_id.reset(token)
    assert line["request_id"] == "log-1"
    assert (line["route"], line["status"], line["masks"], line["pixels"]) == ("/v1/refine/instance", 200, 1, 32000)
    assert line["received_bytes"] > 1000
    assert line["sent_bytes"] > 100
    assert line["steps_ms"]["network"] >= 0
    assert "4711" not in json.dumps(line)
    assert "diagnosis" not in json.dumps(line)


def test_models_are_listed_and_activated() -> None:
    with serving() as server:
        (model,) = server.client.get("/v1/models").json()["models"]
        assert (model["name"], model["active"], model["presets"]) == ("dummy", "v1", ["balanced"])
        answer = server.client.post("/v1/models/dummy/activate", json={"version": "v2"})
        assert answer.json() == {"name": "dummy", "version": "v2", "presets": ["balanced"]}
        assert server.client.get("/v1/models").json()["models"][0]["active"] == "v2"
        assert server.client.post("/v1/refine/instance", json=body()).json()["model"]["version"] == "v2"
        text = server.client.get("/metrics").text
        assert 'bpr_model_activations_total{model="dummy",ok="true"} 1.0' in text


def test_a_model_swap_under_load_loses_nothing_and_answers_name_the_version() -> None:
    with serving({"max_requests": 64}, DummyModels(call_ms=2)) as server:
        request = body()
        stop = threading.Event()
        answers: list[tuple[int, str]] = []

        def client() -> None:
            with httpx.Client(base_url=server.url, timeout=20) as own:
                while not stop.is_set():
                    response = own.post("/v1/refine/instance", json=request)
                    answers.append((response.status_code, response.json()["model"]["version"]))

        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(client) for _ in range(4)]
            for version in ("v2", "v3", "v4", "v5"):
                until = len(answers) + 8
                while len(answers) < until and not any(f.done() for f in futures):
                    stop.wait(0.005)
                assert server.client.post("/v1/models/dummy/activate", json={"version": version}).status_code == 200
                after = server.client.post("/v1/refine/instance", json=request).json()["model"]["version"]
                assert after == version, "what begins after the swap is served by the new version"
            stop.set()
            for future in futures:
                future.result(20)
    assert {status for status, _ in answers} == {200}
    assert {version for _, version in answers} >= {"v1", "v2", "v3", "v4"}


def test_a_short_request_is_answered_while_a_long_one_runs() -> None:
    stripes = np.zeros((160, 200), np.uint8)
    stripes[:, ::6] = 1
    long = body(masks=[{"segmentation": Mask.from_array(stripes).to_rle()}] * 12, options={"nms_threshold": 0.6})
    with serving(None, DummyModels(call_ms=5, patch_ms=0.3)) as server, ThreadPoolExecutor(1) as pool:
        server.client.post("/v1/refine/instance", json=body())
        slow = pool.submit(httpx.post, server.url + "/v1/refine/instance", json=long, timeout=30)
        while server.engine.queue_patches < 300:
            assert not slow.done()
        answer = server.client.post("/v1/refine/instance", json=body()).json()
        assert not slow.done(), "the long request must still run"
        assert answer["timings_ms"]["total"] < 1000
        result = slow.result(30)
        assert result.status_code == 200
        assert sum(m["patches"] for m in result.json()["masks"]) > 300


def test_requests_at_once_get_each_their_own_answer() -> None:
    requests = [body(masks=[{"id": i, "segmentation": coarse(cx=40 + 4 * i, r=15 + i).to_rle()}]) for i in range(24)]
    with serving({"max_batch_patches": 16}) as server:
        alone = [server.client.post("/v1/refine/instance", json=r).json()["masks"] for r in requests]
        with ThreadPoolExecutor(12) as pool, httpx.Client(base_url=server.url, timeout=30) as client:
            together = list(pool.map(lambda r: client.post("/v1/refine/instance", json=r).json()["masks"], requests))
        text = server.client.get("/metrics").text
    assert together == alone
    shared = next(
        float(x.split()[-1]) for x in text.splitlines() if x.startswith('bpr_batch_requests_bucket{le="1.0"}')
    )
    total = next(float(x.split()[-1]) for x in text.splitlines() if x.startswith("bpr_batch_requests_count"))
    assert shared < total, "some batches hold patches of several requests"


def test_nothing_of_a_request_touches_the_disk(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a temporary file was made")

    big = np.random.default_rng(0).integers(0, 256, (900, 1000, 3), dtype=np.uint8)
    mask = np.zeros((900, 1000), np.uint8)
    mask[300:600, 300:600] = 1
    files = [("image", ("a.png", png(big), "image/png")), ("masks", ("m.png", png(mask), "image/png"))]
    assert len(png(big)) > 2 << 20
    request = {"image": {"data": b64(png(big))}, "masks": [{"segmentation": Mask.from_array(mask).to_rle()}]}
    server.client.post("/v1/refine/instance", files=files)  # the first call compiles kernels, whose cache is on disk
    server.client.post("/v1/refine/instance", json=request)
    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    assert server.client.post("/v1/refine/instance", files=files).status_code == 200
    assert server.client.post("/v1/refine/instance", json=request).status_code == 200
