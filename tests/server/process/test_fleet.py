"""`bpr serve --devices cpu,cpu`: two processes behind one port that answer, swap, drain and are replaced as one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bpr_service.config import PatchConfig
from bpr_service.errors import ConfigError
from bpr_service.network.registry import build_network
from bpr_service.network.weights import ModelCard, NetworkCard, save_model
from bpr_service.runtime.model_store import ModelStore
from bpr_service.server.process.fleet import share_of_cores
from bpr_service.server.process.fleet_metrics import merge
from bpr_service.server.process.run import failure
from bpr_service.server.settings import ServerSettings
from tests.server.helpers import body
from tests.server.process.test_run import ask, keep_asking, process
from tests.services import wait_for

pytestmark = pytest.mark.slow

TWO = {"BPR_DEVICES": '["cpu", "cpu"]', "OMP_NUM_THREADS": "2"}


def lines(log: Path, message: str) -> list[dict[str, Any]]:
    """Lines of a log with this message, whole ones only."""
    read = log.read_text()
    return [line for line in map(json.loads, read[: read.rfind("\n") + 1].splitlines()) if line["message"] == message]


def ready(log: Path) -> list[int]:
    return [line["process"] for line in lines(log, "ready")]


def samples(url: str, family: str) -> dict[tuple[str, ...], float]:
    """A family's samples by the values of their labels, these by their names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for found in text_string_to_metric_families(ask(url + "/metrics").text)
        if found.name == family
        for sample in found.samples
        if not sample.name.endswith("_created")
    }


def test_both_answer_metrics_hold_both_and_a_killed_one_is_replaced(tmp_path: Path) -> None:
    with process(tmp_path, **TWO) as (server, url, log):
        wait_for("both get ready", lambda: sorted(ready(log)) == [0, 1])

        def answered() -> set[int]:
            assert httpx.post(url + "/v1/refine/instance", json=body(), timeout=60).status_code == 200
            return {line["process"] for line in lines(log, "request") if line["route"] == "/v1/refine/instance"}

        wait_for("connections are shared", lambda: answered() == {0, 1})
        route = "/v1/refine/instance"

        def counted_as_told() -> bool:
            told = [str(line["process"]) for line in lines(log, "request") if line["route"] == route]
            counted = samples(url, "bpr_requests")
            return all(counted[(number, route, "200")] == told.count(number) > 0 for number in ("0", "1"))

        wait_for("what is counted is what is told", counted_as_told)
        assert samples(url, "bpr_process_up") == {("cpu", "0"): 1.0, ("cpu", "1"): 1.0}

        first = next(line for line in lines(log, "process started") if line["process"] == 0)
        os.kill(first["pid"], signal.SIGKILL)
        wait_for("a killed process is replaced", lambda: len(lines(log, "process started")) == 3)
        for _ in range(5):  # the other answers meanwhile
            assert httpx.post(url + route, json=body(), timeout=60).status_code == 200
        wait_for("the new one gets ready", lambda: sorted(ready(log)) == [0, 0, 1])
        wait_for("and answers", lambda: samples(url, "bpr_process_up") == {("cpu", "0"): 1.0, ("cpu", "1"): 1.0})
        server.send_signal(signal.SIGTERM)
        assert server.wait(90) == 0
        assert lines(log, "all processes stopped")[0]["codes"] == [0, 0]


def test_a_process_that_stands_still_is_told_of_and_replaced(tmp_path: Path) -> None:
    with process(tmp_path, BPR_HUNG_S="10", **TWO) as (server, url, log):
        wait_for("both get ready", lambda: sorted(ready(log)) == [0, 1])
        wait_for("both answer", lambda: samples(url, "bpr_process_up") == {("cpu", "0"): 1.0, ("cpu", "1"): 1.0})
        first = next(line for line in lines(log, "process started") if line["process"] == 0)
        os.kill(first["pid"], signal.SIGSTOP)
        wait_for("it is noticed", lambda: bool(lines(log, "process does not answer and is killed")))
        (told,) = lines(log, "process does not answer and is killed")
        assert (told["process"], told["pid"]) == (0, first["pid"])
        wait_for("another takes its place", lambda: sorted(ready(log)) == [0, 0, 1])
        wait_for("and answers", lambda: samples(url, "bpr_process_up") == {("cpu", "0"): 1.0, ("cpu", "1"): 1.0})
        server.send_signal(signal.SIGTERM)
        assert server.wait(90) == 0


def test_sigterm_under_load_loses_no_accepted_request(tmp_path: Path) -> None:
    with process(tmp_path, BPR_MAX_BATCH_PATCHES="2", BPR_DUMMY_CALL_MS="20", **TWO) as (server, url, log):
        wait_for("both get ready", lambda: sorted(ready(log)) == [0, 1])
        request = body()
        answers: list[int | str] = []

        # So many because the kernel spreads connections by chance.
        threads = [threading.Thread(target=keep_asking, args=(url, request, answers, 60)) for _ in range(16)]
        for thread in threads:
            thread.start()
        wait_for("the load is answered", lambda: len(answers) > 40)
        server.send_signal(signal.SIGTERM)
        assert server.wait(90) == 0
        for thread in threads:
            thread.join(90)
    assert [answer for answer in answers if answer not in (200, 503)] == [], "an accepted request was lost"
    assert sorted(line["process"] for line in lines(log, "draining")) == [0, 1]
    assert {line["process"] for line in lines(log, "request") if line["status"] == 200} == {0, 1}


def test_a_swap_reaches_both(tmp_path: Path) -> None:
    card = ModelCard(name="fast", version="2", network=NetworkCard(name="light_unet_s"), patch=PatchConfig())
    save_model(tmp_path / "export", build_network("light_unet_s"), card)
    version = ModelStore(str(tmp_path / "store")).add(str(tmp_path / "export"), "fast").id
    env = {"BPR_DUMMY": "0", "BPR_PRESETS": '["fast"]', "BPR_MODEL_STORE": str(tmp_path / "store"), **TWO}
    with process(tmp_path, **env) as (server, url, log):
        wait_for("both get ready", lambda: sorted(ready(log)) == [0, 1])
        before = ask(url + "/version").json()["presets"]["fast"]["version"]
        assert before != version
        done = httpx.post(url + "/v1/models/fast/activate", json={"version": version}, timeout=60)
        assert done.status_code == 200, done.text
        swapped = {("fast", "true", "0"): 1.0, ("fast", "true", "1"): 1.0}
        wait_for("the other follows the store", lambda: samples(url, "bpr_model_activations") == swapped)
        for _ in range(12):  # whichever process takes the connection
            assert ask(url + "/version").json()["presets"]["fast"]["version"] == version
        server.send_signal(signal.SIGTERM)
        assert server.wait(90) == 0


def test_processes_leave_with_their_parent_even_one_that_was_stopped(tmp_path: Path) -> None:
    with process(tmp_path, **TWO) as (server, _, log):
        pids = [line["pid"] for line in lines(log, "process started")]
        wait_for("both get ready", lambda: sorted(ready(log)) == [0, 1])
        os.kill(pids[0], signal.SIGSTOP)
        server.kill()
        server.wait(90)
        wait_for("without a parent they drain and leave", lambda: len(lines(log, "stopped")) == 2)
        for pid in pids:
            wait_for("they are gone", lambda pid=pid: gone(pid))  # type: ignore[misc]


def gone(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_a_process_that_never_gets_ready_ends_the_start(tmp_path: Path) -> None:
    env = {"BPR_DUMMY": "0", "BPR_PRESETS": '["fast"]', "BPR_BACKEND": "eager", "BPR_PRECISION": "int8", **TWO}
    with pytest.raises(AssertionError, match="precision of backend eager"), process(tmp_path, **env):
        pass  # it ended; its log says why


def test_a_process_whose_device_failed_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SimpleNamespace(alive=False, lanes=list, device="cpu")
    kept: list[bool] = []
    monkeypatch.setattr("bpr_service.server.process.run.keep", lambda: kept.append(True))

    async def ends() -> BaseException:
        started = asyncio.get_running_loop().create_future()
        started.set_result(None)
        return await asyncio.wait_for(failure(started, engine, ServerSettings(), replaced=True), 30)  # type: ignore[arg-type]

    assert "the device has failed" in str(asyncio.run(ends()))
    assert kept == [True], "the collector must not go through all that a ready server holds"


@pytest.mark.parametrize("devices", [("gpu",), ("cpu", "cuda:x"), ("auto",)])
def test_devices_are_named(devices: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="BPR_DEVICES"):
        ServerSettings.load(devices=devices)


def test_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [share_of_cores(devices) for devices in (("cpu",), ("cpu", "cpu"), ("cpu", "cuda:0"))] == [8, 4, 8]
    assert share_of_cores(("cpu",) * 16) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert share_of_cores(("cpu", "cpu")) == 3


def test_merged_metrics_keep_processes_apart_and_tell_shared_ones_once() -> None:
    text = (
        "# HELP bpr_masks_total Masks\n# TYPE bpr_masks_total counter\n"
        'bpr_masks_total{{status="refined"}} {0}\n'
        "# HELP bpr_jobs_workers Workers\n# TYPE bpr_jobs_workers gauge\nbpr_jobs_workers 3.0\n"
    )
    families = {family.name: family for family in merge([text.format("1.0"), None, text.format("4.0")])}
    found = {(s.labels["status"], s.labels["process"]): s.value for s in families["bpr_masks"].samples}
    assert found == {("refined", "0"): 1.0, ("refined", "2"): 4.0}
    assert [(s.labels, s.value) for s in families["bpr_jobs_workers"].samples] == [({}, 3.0)]
