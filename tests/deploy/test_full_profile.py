"""The parts of the profile `full`, started by hand on loopback with the commands and variables of the compose file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from bpr_service.jobs.batch import Batch, run_batch
from tests.deploy import checks
from tests.deploy.dockerfile import ROOT
from tests.jobs.samples import coco_set
from tests.services import Postgres, free_port

PATIENCE_S = 150
QUICK = {
    "BPR_JOBS_POLL_S": "0.1", "BPR_JOBS_BEAT_S": "0.2", "BPR_JOBS_DEAD_AFTER_S": "5", "BPR_JOBS_RETRY_S": "0.2",
    "BPR_JOBS_LOG_UNITS": "true", "BPR_PRESETS": '["fast"]', "OMP_NUM_THREADS": "1",
}  # fmt: skip
"""So that a test of a lost worker takes seconds; everything else is as in the compose file."""


class Host:
    """This machine in the place of the containers: their paths and addresses stand for folders and ports of it."""

    def __init__(self, folder: Path, database: str, s3: str) -> None:
        self.folder, self.services = folder, checks.compose(ROOT)["services"]
        self.port, self.prometheus_port = free_port(), free_port()
        for name in ("state", "cache", "data", "prometheus"):
            (folder / name).mkdir()
        self.places = {
            "postgresql://bpr:@postgres:5432/bpr": database,
            "http://minio:9000": s3,
            "/run/secrets/api_keys": str(folder / "keys.json"),
            "/var/lib/bpr": str(folder / "state"),
            "/var/cache/bpr": str(folder / "cache"),
            '"/data"': json.dumps(str(folder / "data")),
            "/etc/prometheus": str(folder / "config"),
            "=/prometheus": f"={folder / 'prometheus'}",
            "0.0.0.0:9090": f"127.0.0.1:{self.prometheus_port}",
            "127.0.0.1:9090": f"127.0.0.1:{self.prometheus_port}",
            "server:8000": f"127.0.0.1:{self.port}",
        }
        self.running: list[subprocess.Popen[bytes]] = []

    def place(self, text: str) -> str:
        for there, here in self.places.items():
            text = text.replace(there, here)
        return text

    def environment(self, service: str) -> dict[str, str]:
        given = {k: self.place(str(v)) for k, v in self.services[service].get("environment", {}).items()}
        given |= {"AWS_SECRET_ACCESS_KEY": "test", "BPR_HOST": "0.0.0.0", "BPR_PORT": str(self.port)}
        return {**os.environ, **given, **QUICK}

    def words(self, service: str, key: str = "command") -> list[str]:
        return [self.place(word) for word in self.services[service][key]]

    def bpr(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "bpr_service.cli", *words]

    def start(self, service: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{service}.log").open("ab") as log:
            self.running.append(
                subprocess.Popen(command, env=self.environment(service), stdout=log, stderr=log, cwd=self.folder)
            )
        return self.running[-1]

    def healthy(self, service: str) -> bool:
        """Whether the service's own health check says so, run as the engine would."""
        kind, *words = self.services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        command = self.bpr(*words[1:]) if words[0] == "bpr" else [self.place(word) for word in words]
        return subprocess.run(command, env=self.environment(service), capture_output=True, timeout=60).returncode == 0

    def wait(self, what: str, until: Callable[[], Any]) -> Any:
        give_up = time.monotonic() + PATIENCE_S
        while not (found := until()):
            assert time.monotonic() < give_up, f"{what}\n{self.logs()}"
            time.sleep(0.1)
        return found

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.log"))

    def query(self, expression: str) -> dict[str, float]:
        """The values of an instant query by queue, or by nothing."""
        with contextlib.suppress(httpx.TransportError):
            url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/query"
            found = httpx.get(url, params={"query": expression}).json()["data"]["result"]
            return {entry["metric"].get("queue", ""): float(entry["value"][1]) for entry in found}
        return {}

    def close(self) -> None:
        for process in reversed(self.running):
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def host(tmp_path: Path, postgres_url: str, s3_server: str) -> Iterator[Host]:
    host = Host(tmp_path, postgres_url, s3_server)
    yield host
    host.close()


def start_prometheus(host: Host) -> None:
    shutil.copytree(ROOT / "docker", host.folder / "config", ignore=shutil.ignore_patterns("grafana", ".env"))
    config = yaml.safe_load(host.place((ROOT / "docker/prometheus.yml").read_text()))
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    (host.folder / "config/prometheus.yml").write_text(yaml.safe_dump(config))
    host.start("prometheus", ["prometheus", *host.words("prometheus")])


def make_bucket(host: Host) -> None:
    """The one-shot service, twice: the second time there is nothing to do."""
    python, *words = host.words("bucket", "entrypoint")
    assert python == "python"
    for _ in range(2):
        subprocess.run([sys.executable, *words], env=host.environment("bucket"), check=True, timeout=60)


def make_key(host: Host) -> str:
    words = ["keys", "operator", "--file", str(host.folder / "keys.json"), "--scopes", "refine,jobs,admin"]
    done = subprocess.run(host.bpr(*words), capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def submission(data: Path) -> tuple[dict[str, Any], bytes]:
    """A job over pictures in ``data``, as a client sends it, and what an undisturbed run gives."""
    request = coco_set(data, 16)
    run_batch(request.model_copy(update={"out": str(data / "expected.json")}), Batch(workers=0))
    values = request.model_dump(exclude_defaults=True)
    for name in ("images", "predictions", "dataset", "out"):
        values[name] = f"data:{Path(values[name]).relative_to(data)}"
    return values, (data / "expected.json").read_bytes()


def holder(host: Host, log: str) -> int:
    """The process that refined the last image: the id in its line is HOST-PID-RANDOM."""
    line = [line for line in log.splitlines() if " refined " in line][-1]
    return int(line.split()[1].rsplit("-", 2)[1])


def test_a_job_outlives_its_worker_and_prometheus_sees_it(host: Host, postgres: Postgres) -> None:
    make_bucket(host)
    key = make_key(host)
    start_prometheus(host)
    server = host.start("server", host.bpr(*host.words("server")))
    values, expected = submission(host.folder / "data")
    host.wait("the server is healthy", lambda: host.healthy("server"))
    # "--workers 2" asks for loader processes too, which a small test machine has no room for.
    worker = [word if word != "2" else "0" for word in host.words("worker")]
    workers = [host.start("worker", host.bpr(*worker)) for _ in range(2)]
    host.wait("both workers", lambda: (host.folder / "worker.log").read_text().count(": ready") == 2)
    assert host.healthy("worker")
    ready = host.services["postgres"]["healthcheck"]["test"][1:]
    assert subprocess.run([*ready, "--port", str(postgres.port)], capture_output=True, timeout=60).returncode == 0

    with httpx.Client(base_url=f"http://127.0.0.1:{host.port}", timeout=60) as client:
        assert client.post("/v1/jobs/refine", json=values).status_code == 401
        client.headers["Authorization"] = f"Bearer {key}"
        values.pop("kind", None)
        answer = client.post("/v1/jobs/refine", json=values, headers={"Idempotency-Key": "end-to-end"})
        assert answer.status_code == 202, answer.text

        def refined() -> str:
            log = client.get("/v1/jobs/end-to-end/log").text
            return log if log.count(" refined ") >= 2 else ""

        victim = holder(host, host.wait("two images", refined))
        assert victim in {process.pid for process in workers}
        os.kill(victim, signal.SIGKILL)
        states = []
        with client.stream("GET", "/v1/jobs/end-to-end/events", timeout=PATIENCE_S) as events:
            states = [json.loads(line[5:])["state"] for line in events.iter_lines() if line.startswith("data:")]
        assert states[-1] == "done", host.logs()
        job = client.get("/v1/jobs/end-to-end").json()
        assert (job["progress"]["done"], job["progress"]["total"]) == (16, 16)
        result = client.get("/v1/jobs/end-to-end/result").json()
        assert (result["images"], result["failed_count"]) == (16, 0)
        assert (host.folder / "data/out.json").read_bytes() == expected

    assert host.healthy("prometheus")
    host.wait("one worker is left", lambda: host.query("max(bpr_jobs_workers)") == {"": 1.0})
    assert host.query('up{job="bpr"}') == {"": 1.0}
    submitted = 'sum(bpr_requests_total{route="/v1/jobs/refine",status="202"})'
    host.wait("the request is counted", lambda: host.query(submitted) == {"": 1.0})
    assert host.query("max by (queue) (bpr_jobs_queued)") == {"jobs": 0.0, "shards": 0.0, "train": 0.0}
    rules = httpx.get(f"http://127.0.0.1:{host.prometheus_port}/api/v1/rules").json()["data"]["groups"]
    loaded = {rule["name"]: rule["health"] for group in rules for rule in group["rules"]}
    named = yaml.safe_load((ROOT / "docker/alerts.yml").read_text())["groups"]
    assert loaded == {rule["alert"]: "ok" for group in named for rule in group["rules"]}

    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0
    assert not host.healthy("server")
