"""The parts of the profile `full`, started by hand on loopback with the commands and variables of the compose file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from bpr_service.jobs.refine.batch import Batch, run_batch
from tests.deploy import deployment
from tests.deploy.deployment import ROOT
from tests.forks import Forked
from tests.jobs.samples import coco_set
from tests.services import Process, Processes, free_port

pytestmark = pytest.mark.slow

BPR = [sys.executable, "-m", "bpr_service.cli"]
JOBS = {"POLL_S": "0.1", "BEAT_S": "0.2", "DEAD_AFTER_S": "5", "RETRY_S": "0.2", "LOG_UNITS": "true"}
QUICK = {f"BPR_JOBS_{k}": v for k, v in JOBS.items()} | {"BPR_PRESETS": '["fast"]', "OMP_NUM_THREADS": "1"}
"""So that a test of a lost worker takes seconds; everything else is as in the compose file."""


class Host(Processes):
    """This machine in the place of the containers: their paths and addresses stand for folders and ports of it."""

    def __init__(self, folder: Path, database: str, s3: str) -> None:
        super().__init__(folder)
        self.services = deployment.compose(ROOT)["services"]
        self.port, self.prometheus_port = free_port(), free_port()
        for name in ("state", "cache", "data", "prometheus"):
            (folder / name).mkdir()
        shutil.copytree(ROOT / "docker", folder / "config", ignore=shutil.ignore_patterns("grafana", ".env"))
        self.places = {
            "postgresql://bpr:@postgres:5432/bpr": database,
            "http://minio:9000": s3,
            "/run/secrets/api_keys": str(folder / "keys.json"),
            "/var/lib/bpr": str(folder / "state"),
            "/var/cache/bpr": str(folder / "cache"),
            '"/data"': json.dumps(str(folder / "data")),
            "/etc/prometheus": str(folder / "config"),
            "=/prometheus": f"={folder / 'prometheus'}",
            "0.0.0.0:9090": "127.0.0.1:9090",
            ":9090": f":{self.prometheus_port}",
            "server:8000": f"127.0.0.1:{self.port}",
        }

    def place(self, text: str) -> str:
        for there, here in self.places.items():
            text = text.replace(there, here)
        return text

    def environment(self, service: str) -> dict[str, str]:
        given = {k: self.place(str(v)) for k, v in self.services[service].get("environment", {}).items()}
        given |= {"AWS_SECRET_ACCESS_KEY": "test", "BPR_HOST": "0.0.0.0", "BPR_PORT": str(self.port)}
        return {**os.environ, **given, **QUICK}

    def words(self, given: list[str]) -> list[str]:
        """A command of the compose file; ``bpr`` and ``python`` are this environment's."""
        words = [self.place(word) for word in given]
        starts = {"python": [sys.executable], "bpr": BPR, "serve": [*BPR, "serve"], "worker": [*BPR, "worker"]}
        return [*starts.get(words[0], words[:1]), *words[1:]]

    def start(self, name: str, command: list[str], environment: dict[str, str]) -> Process:
        if command[: len(BPR)] != BPR:
            return super().start(name, command, environment)
        self.running.append(Forked(command[len(BPR) :], environment, self.folder / f"{name}.log", self.folder))
        return self.running[-1]

    def up(self, service: str, **instead: str) -> Process:
        words = [*(["prometheus"] if service == "prometheus" else []), *self.words(self.services[service]["command"])]
        return self.start(service, [instead.get(f"_{word}", word) for word in words], self.environment(service))

    def healthy(self, service: str) -> bool:
        """Whether the service's own health check says so, run as the engine would."""
        command = self.words(self.services[service]["healthcheck"]["test"][1:])
        if command[: len(BPR)] == BPR:
            return Forked(command[len(BPR) :], self.environment(service), self.folder / "health").wait(150) == 0
        return subprocess.run(command, env=self.environment(service), capture_output=True, timeout=150).returncode == 0

    def query(self, expression: str) -> dict[str, float]:
        """The values of an instant query by queue, or by nothing."""
        with contextlib.suppress(httpx.TransportError):
            url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/query"
            found = httpx.get(url, params={"query": expression}).json()["data"]["result"]
            return {entry["metric"].get("queue", ""): float(entry["value"][1]) for entry in found}
        return {}


@pytest.fixture
def host(tmp_path: Path, postgres_url: str, s3_server: str) -> Iterator[Host]:
    with contextlib.closing(Host(tmp_path, postgres_url, s3_server)) as host:
        yield host


@pytest.mark.timeout(600)  # a dozen processes one after the other, and each waits for all others of a busy machine
def test_a_job_outlives_its_worker_and_prometheus_sees_it(host: Host) -> None:
    bucket = host.words(host.services["bucket"]["entrypoint"])
    for _ in range(2):  # the second time there is nothing to do
        subprocess.run(bucket, env=host.environment("bucket"), check=True, timeout=150)
    words = ["keys", "operator", "--file", str(host.folder / "keys.json"), "--scopes", "refine,jobs,admin"]
    key = subprocess.run([*BPR, *words], capture_output=True, text=True, check=True, timeout=150).stdout.strip()
    config = yaml.safe_load(host.place((ROOT / "docker/prometheus.yml").read_text()))
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    (host.folder / "config/prometheus.yml").write_text(yaml.safe_dump(config))
    host.up("prometheus")
    server = host.up("server")
    # "--workers 2" asks for loader processes too, which a small test machine has no room for.
    workers = [host.up("worker", _2="0") for _ in range(2)]
    request, data = coco_set(host.folder / "data", 16), host.folder / "data"
    run_batch(request.model_copy(update={"out": str(data / "expected.json")}), Batch(workers=0))
    values = request.model_dump(exclude_defaults=True, exclude={"kind"})
    for name in ("images", "predictions", "dataset", "out"):
        values[name] = f"data:{Path(values[name]).relative_to(data)}"
    host.wait("the server is healthy", lambda: host.healthy("server"))
    host.wait("both workers", lambda: (host.folder / "worker.log").read_text().count(": ready") == 2)
    assert host.healthy("worker")

    with httpx.Client(base_url=f"http://127.0.0.1:{host.port}", timeout=60) as client:
        assert client.post("/v1/jobs/refine", json=values).status_code == 401
        client.headers["Authorization"] = f"Bearer {key}"
        answer = client.post("/v1/jobs/refine", json=values, headers={"Idempotency-Key": "end-to-end"})
        assert answer.status_code == 202, answer.text

        def refined() -> str:
            log = client.get("/v1/jobs/end-to-end/log").text
            return log if log.count(" refined ") >= 2 else ""

        line = [line for line in host.wait("two images", refined).splitlines() if " refined " in line][-1]
        victim = int(line.split()[1].rsplit("-", 2)[1])  # of HOST-PID-RANDOM, the worker that refined the last image
        assert victim in {process.pid for process in workers}
        os.kill(victim, signal.SIGKILL)
        with client.stream("GET", "/v1/jobs/end-to-end/events", timeout=150) as events:
            states = [json.loads(line[5:])["state"] for line in events.iter_lines() if line.startswith("data:")]
        assert states[-1] == "done", host.logs()
        result = client.get("/v1/jobs/end-to-end/result").json()
        assert (result["images"], result["failed_count"]) == (16, 0)
        assert (data / "out.json").read_bytes() == (data / "expected.json").read_bytes()

    assert host.healthy("prometheus")
    host.wait("one worker is left", lambda: host.query("max(bpr_jobs_workers)") == {"": 1.0})

    def settled() -> bool:
        submitted = host.query('sum(bpr_requests_total{route="/v1/jobs/refine",status="202"})')
        queued = host.query("max by (queue) (bpr_jobs_queued)")
        return submitted == {"": 1.0} and queued == {"jobs": 0.0, "parts": 0.0, "train": 0.0}

    host.wait("the request is counted and the queues are empty, as of the next scrape", settled)
    assert host.query('up{job="bpr"}') == {"": 1.0}
    server.send_signal(signal.SIGTERM)
    assert server.wait(150) == 0
    assert not host.healthy("server")
