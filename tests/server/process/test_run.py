"""`bpr serve` as a process: it starts, drains on SIGTERM under load, and exits 0."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from bpr_service.errors import ConfigError, UnknownName
from bpr_service.runtime.dummy import DummyModels
from bpr_service.runtime.engine import Engine
from bpr_service.server.logs import configure_logging
from bpr_service.server.process.build import warn_if_open
from bpr_service.server.process.run import check_free, leave_within, ready_lines, run
from bpr_service.server.server_commands import serve
from bpr_service.server.settings import ServerSettings
from tests.forks import Forked
from tests.server.helpers import body
from tests.services import free_port, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]


def ask(url: str) -> httpx.Response:
    return httpx.get(url, verify=False, timeout=20)


@contextlib.contextmanager
def process(tmp_path: Path, answers: str = "/readyz", **env: str) -> Iterator[tuple[Forked, str, Path]]:
    """A server process that is ready (or at another path answers 200), its address and the file of its log."""
    port, log = free_port(), tmp_path / "log.jsonl"
    variables = {
        **os.environ,
        "BPR_DUMMY": "1",
        "BPR_PRESETS": '["balanced"]',
        "BPR_PORT": str(port),
        "OMP_NUM_THREADS": "2",
        **env,
    }
    running = Forked(["serve"], variables, log)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert running.poll() is None, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            return ask(url + answers).status_code == 200
        return False

    try:
        wait_for("it is ready", ready, about=log.read_text)
        yield running, url, log
    finally:
        running.kill()
        running.wait(10)


def keep_asking(url: str, request: dict[str, Any], answers: list[int | str], timeout_s: float) -> None:
    """Send the same request until the answer is not 200 or nobody listens any more; keep what came back."""
    with httpx.Client(base_url=url, timeout=timeout_s) as own:
        while True:
            try:
                status = own.post("/v1/refine/instance", json=request).status_code
            except httpx.ConnectError:
                return  # after the last has left, nobody answers: such a request was not accepted
            except httpx.TransportError as error:
                answers.append(repr(error))
                return
            answers.append(status)
            if status != 200:
                return


def test_sigterm_under_load_loses_no_accepted_request(tmp_path: Path) -> None:
    with process(tmp_path, BPR_MAX_BATCH_PATCHES="2") as (server, url, log):
        request = body()
        answers: list[int | str] = []
        threads = [threading.Thread(target=keep_asking, args=(url, request, answers, 120)) for _ in range(6)]
        for thread in threads:
            thread.start()
        wait_for("the load is answered", lambda: len(answers) >= 20, about=log.read_text)
        server.send_signal(signal.SIGTERM)
        assert server.wait(90) == 0
        for thread in threads:
            thread.join(90)
    bad = [answer for answer in answers if answer not in (200, 503)]
    assert bad == [], "an accepted request was lost"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    said = [line["message"] for line in lines]
    assert {"ready", "draining", "stopped"} <= set(said)
    assert all({"time", "level", "logger", "message", "request_id"} <= line.keys() for line in lines)
    after = said.index("draining")
    finished = [line for line in lines[after:] if line.get("status") == 200]
    assert len(finished) <= 6


def admitted(url: str) -> None:
    """Return once the server works on a request."""
    wait_for("one is admitted", lambda: "bpr_requests_admitted 1.0" in ask(url + "/metrics").text)


class Gate:
    """Holds the calls of the network in a process: they wait while the file ``path`` is locked."""

    HOOK = """
import fcntl, os, types
import bpr_service.runtime.dummy as dummy
def wait(_):
    with open(os.environ["GATE"]) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
dummy.time = types.SimpleNamespace(sleep=wait)
"""

    def __init__(self, folder: Path) -> None:
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(self.HOOK)
        self.file = (folder / "gate").open("w")
        gate = str(folder / "gate")
        self.environment = {"PYTHONPATH": str(folder / "site"), "GATE": gate, "BPR_DUMMY_CALL_MS": "1"}

    def close(self) -> None:
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def open(self) -> None:
        self.file.close()


def test_while_draining_it_is_not_ready_and_finishes_what_is_in_flight(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with process(tmp_path, **gate.environment) as (server, url, _), ThreadPoolExecutor(1) as pool:
        gate.close()
        answer = pool.submit(httpx.post, url + "/v1/refine/instance", json=body(), timeout=150)
        admitted(url)
        server.send_signal(signal.SIGTERM)
        wait_for("it is not ready", lambda: ask(url + "/readyz").status_code != 200)
        assert ask(url + "/livez").status_code == 200
        refused = httpx.post(url + "/v1/refine/instance", json=body(), timeout=150)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        gate.open()
        assert server.wait(90) == 0
        assert answer.result(60).status_code == 200


def test_a_drain_that_takes_too_long_ends_and_every_caller_is_told(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with process(tmp_path, BPR_DRAIN_S="0.5", **gate.environment) as (server, url, log), ThreadPoolExecutor(1) as pool:
        gate.close()
        answer = pool.submit(httpx.post, url + "/v1/refine/instance", json=body(), timeout=150)
        admitted(url)
        server.send_signal(signal.SIGTERM)
        assert server.wait(90) == 1
        assert (answer.result(60).status_code, answer.result().json()["code"]) == (503, "not_ready")
    assert "still in flight" in log.read_text()
    gate.open()


def test_a_signal_while_models_are_loaded_is_answered_at_once_and_quietly(tmp_path: Path) -> None:
    """The device is in its first call, which takes ten minutes: the engine's own end would wait for it."""
    with process(tmp_path, "/livez", BPR_DUMMY_CALL_MS="600000", BPR_DRAIN_S="600") as (server, _, log):
        server.send_signal(signal.SIGTERM)
        wait_for("it is gone before the call", lambda: server.poll() is not None, about=log.read_text)
        assert server.wait(20) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]  # and no traceback beside them
    assert lines[-1]["message"] == "stopped"
    assert {line["level"] for line in lines} <= {"info", "warning"}


def test_what_is_not_over_after_the_drain_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    monkeypatch.setattr("bpr_service.server.process.run.os._exit", ended.put)
    monkeypatch.setattr("bpr_service.server.process.run.logging.shutdown", lambda: None)
    leave_within(0.0)
    assert ended.get(timeout=20) == 1


ENDS = """
import atexit
from bpr_service.server.process.run import end

class Held:
    def __del__(self):
        print("taken apart")

held = Held()
atexit.register(print, "asked")
end(3)
"""


def test_a_process_ends_without_taking_apart_what_it_holds() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS], cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stdout) == (3, "asked\n"), done.stderr


def test_a_model_that_cannot_be_loaded_stops_the_start(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin", "BPR_PORT": str(free_port()), "BPR_BACKEND": "eager", "BPR_PRECISION": "int8"}
    command = [sys.executable, "-m", "bpr_service.cli", "serve"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, timeout=150)
    assert done.returncode != 0
    assert b"precision of backend eager" in done.stderr


def test_an_unknown_preset_is_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bpr_service.server.process.run", None)  # its import would fail
    with pytest.raises(UnknownName, match="nope"):
        serve(presets="balanced,nope")


def test_settings_come_from_variables_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPR_MAX_REQUESTS", "7")
    monkeypatch.setenv("BPR_PORT", "1234")
    settings = ServerSettings.load(port=4321, host=None)
    assert (settings.max_requests, settings.port, settings.host) == (7, 4321, "127.0.0.1")
    assert settings.max_requests == 7
    monkeypatch.setenv("BPR_MAX_REQUESTS", "none")
    with pytest.raises(ConfigError, match="BPR_MAX_REQUESTS"):
        ServerSettings.load()


def test_answers_name_the_backend_that_was_asked_for(tmp_path: Path) -> None:
    settings = {"BPR_DUMMY": "0", "BPR_PRESETS": '["fast"]', "BPR_BACKEND": "openvino", "BPR_PRECISION": "bf16"}
    with process(tmp_path, BPR_DEVICE="cpu", BPR_MODEL_STORE=str(tmp_path / "store"), **settings) as (_, url, _log):
        answer = httpx.post(f"{url}/v1/refine/instance", json=body(), timeout=60).json()
    assert answer["device"] == "cpu, openvino bf16"
    assert answer["masks"][0]["status"] in ("refined", "unchanged")


@pytest.mark.parametrize(
    ("settings", "warned"),
    [({}, False), ({"host": "0.0.0.0"}, True), ({"host": "0.0.0.0", "api_keys_file": "keys.json"}, False)],
)
def test_a_server_without_keys_says_so_where_others_reach_it(
    settings: dict[str, Any], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_if_open(ServerSettings(**settings))
    assert ("NO KEYS" in caplog.text) == warned


def test_an_address_that_is_taken_is_named_before_anything_is_loaded() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127.0.0.1:{port}.*address already in use.*--port"):
            run(ServerSettings(port=port, dummy=True))
    check_free("127.0.0.1", port)
    with pytest.raises(ConfigError, match="a free port of this machine"):
        check_free("192.0.2.1", 80)


def test_a_ready_server_names_its_page_and_what_runs() -> None:
    engine = Engine(DummyModels(("balanced", "fast")))
    engine.start()
    try:
        said = ready_lines(engine, ServerSettings(host="0.0.0.0", port=8123))
    finally:
        engine.stop()
    assert said["lines"][0].split() == ["page", "http://127.0.0.1:8123/"]
    assert said["lines"][2].split(maxsplit=1)[1] == "balanced (dummy@v1), fast (dummy@v1) on cpu"
    assert said["fields"]["models"] == ["balanced: dummy@v1", "fast: dummy@v1"]


def test_logs_are_lines_at_a_terminal_and_json_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        for form, head in (("text", "page"), ("auto", "{"), ("json", "{")):
            configure_logging("info", form)  # type: ignore[arg-type]
            logging.getLogger("x").info("ready", extra={"lines": ["page here"], "fields": {"a": 1}})
            assert capsys.readouterr().err.startswith(head)
        configure_logging("info", "text")
        logging.getLogger("x").warning("slow", extra={"fields": {"ms": 5}})
        assert capsys.readouterr().err.strip().endswith("warning slow ms=5")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
