"""Dockerfile, compose files and manifests say what is true of the code; a change that breaks one is reported."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import checks, dockerfile, kustomize, tree
from tests.deploy.dockerfile import ROOT


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tree.copy(tmp_path_factory.mktemp("tree"))


@pytest.mark.parametrize("check", checks.CHECKS)
def test_nothing_is_wrong(clean: Path, check: str) -> None:
    assert list(checks.CHECKS[check](clean)) == []


def test_hadolint_is_silent() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("words", [["config"], ["rules"]])
def test_prometheus_reads_its_files(words: list[str]) -> None:
    file = "prometheus.yml" if words == ["config"] else "alerts.yml"
    command = ["promtool", "check", *words, str(ROOT / "docker" / file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def _kubectl() -> bool:
    if shutil.which("kubectl") is None:
        return False
    said = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"Kustomize Version: v(\d+)", said)
    return bool(found and int(found[1]) >= 5)


@pytest.mark.skipif(not _kubectl(), reason="needs kubectl with kustomize 5")
@pytest.mark.parametrize("overlay", checks.OVERLAYS)
def test_kustomize_builds_what_ours_builds(clean: Path, overlay: str) -> None:
    folder = clean / "k8s/overlays" / overlay
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    text = re.sub(r"\b(bpr-(?:server|keys|jobs))-[a-z0-9]{10}\b", rf"\1{kustomize.SUFFIX}", done.stdout)
    theirs = {kustomize.identity(o): _plain(o) for o in yaml.safe_load_all(text)}
    ours = {kustomize.identity(o): _plain(o) for o in kustomize.build(folder)}
    assert theirs == ours


def _plain(value: Any, key: str = "") -> Any:
    """Without what means nothing: the order of lists that are joined by a key, line breaks of base64."""
    if isinstance(value, dict):
        if value.get("kind") == "Secret":
            value = {**value, "data": {name: text.replace("\n", "") for name, text in value["data"].items()}}
        return {name: _plain(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        plain = [_plain(inner) for inner in value]
        return sorted(plain, key=lambda e: e.get(by, "")) if (by := kustomize.MERGE_KEYS.get(key)) else plain
    return value


def test_our_kustomize_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("namePrefix: x-\n")
    with pytest.raises(ValueError, match="namePrefix"):
        kustomize.build(tmp_path)


@pytest.mark.parametrize("missing", ["k8s/base/secrets/keys.json", "k8s/overlays/scaled/secrets/jobs.env"])
def test_nothing_is_built_without_the_secrets(tmp_path: Path, missing: str) -> None:
    root = tree.copy(tmp_path)
    (root / missing).unlink()
    with pytest.raises(FileNotFoundError, match=Path(missing).name):
        kustomize.build(root / "k8s/overlays/scaled")


# (file, what is there, what a mistake makes of it, the check that must report it)
MUTATIONS: list[tuple[str, str, str, str]] = [
    # the image
    ("Dockerfile", "BPR_HOST=0.0.0.0", "BPR_ADDRESS=0.0.0.0", "Dockerfile"),
    ("Dockerfile", "EXPOSE 8000", "EXPOSE 8080", "Dockerfile"),
    ("Dockerfile", 'CMD ["serve"]', 'CMD ["server"]', "Dockerfile"),
    ("Dockerfile", 'CMD ["bpr", "healthcheck", "server"]', 'CMD ["bpr", "health", "server"]', "Dockerfile"),
    ("Dockerfile", "USER 10001:10001", "USER 0:0", "Dockerfile"),
    ("Dockerfile", "NUMBA_CACHE_DIR=/var/cache/bpr/numba", "NUMBA_CACHE_DIR=/opt/numba", "Dockerfile"),
    ("Dockerfile", 'ENTRYPOINT ["bpr"]', "ENTRYPOINT bpr", "Dockerfile"),
    ("Dockerfile", "COPY refiner_training refiner_training", "COPY refiner refiner", "Dockerfile"),
    ("Dockerfile", "--extra otel --extra train", "--extra otel", "Dockerfile"),
    ("Dockerfile", "slim-bookworm@sha256:65a93d69", "slim-bookworm@sha256:", "Dockerfile"),
    ("Dockerfile", '"worker", "--kind", "train"', '"worker", "--kind", "training"', "Dockerfile"),
    (".dockerignore", "!bpr_service\n", "", "Dockerfile"),
    ("Dockerfile", "COPY bpr_service bpr_service", "COPY bpr_service service", "Dockerfile"),
    ("Dockerfile", "PATH=/opt/bpr/bin", "PATH=/opt/venv/bin", "Dockerfile"),
    ("Dockerfile", '"$(command -v python)" /opt/bpr', '"$(command -v python)" /opt/venv', "Dockerfile"),
    ("Dockerfile", "COPY --from=build-cpu /opt/bpr /opt/bpr", "COPY --from=build-cpu /opt/bpr /opt/env", "Dockerfile"),
    ("Dockerfile", "--constraints requirements.lock", "--constraints lock.txt", "Dockerfile"),
    ("Dockerfile", "--mode 0750 /var/lib/bpr /var/cache/bpr", "--mode 0750 /var/lib/bpr", "Dockerfile"),
    ("Dockerfile", "--start-period=180s", "--start-time=180s", "Dockerfile"),
    # compose
    ("docker/compose.yaml", "BPR_MEMORY_MB: ", "BPR_MEMORY: ", "compose"),
    ("docker/compose.yaml", '"--api-keys-file"', '"--keys-file"', "compose"),
    ("docker/compose.yaml", '"/run/secrets/api_keys"', '"/run/secrets/keys"', "compose"),
    ("docker/compose.yaml", "BPR_JOBS_FOLDER: /var/lib/bpr/jobs", "BPR_JOBS_FOLDER: /var/jobs", "compose"),
    ("docker/compose.yaml", "stop_grace_period: 45s", "stop_grace_period: 30s", "compose"),
    ("docker/compose.yaml", ":-8000}:8000", ":-8000}:8080", "compose"),
    ("docker/compose.yaml", '["CMD", "bpr", "healthcheck", "worker"]', '["CMD", "bpr", "worker", "-c"]', "compose"),
    ("docker/compose.yaml", '"cache:/var/cache/bpr"', '"cache:/var/cache"', "compose"),
    ("docker/compose.yaml", "target: trainer", "target: training", "compose"),
    ("docker/compose.yaml", "minio: {condition: service_healthy}", "minio: {condition: service_ready}", "compose"),
    ("docker/compose.yaml", "./alerts.yml:", "./alert.yml:", "compose"),
    ("docker/compose.yaml", "prom/prometheus:v3.5.0@sha256", "prom/prometheus:latest@sha", "compose"),
    ("docker/compose.yaml", "read_only: true\n  user", "read_only: false\n  user", "compose"),
    ("docker/compose.yaml", "limits: {cpus: \"1\", memory: 512m, pids: 128}", "limits: {cpus: \"1\"}", "compose"),
    ("docker/compose.yaml", "restart: unless-stopped\n  init", "restart: never\n  init", "compose"),
    ("docker/compose.gpu.yaml", '"cuda:0", "--workers"', '"gpu:0", "--workers"', "compose"),
    ("docker/compose.gpu.yaml", "driver: nvidia", "driver: amd", "compose"),
    ("docker/.env.example", "GRAFANA_PORT", "GRAFANA_WEB_PORT", "compose"),
    ("docker/.env.example", "POSTGRES_PASSWORD=", "POSTGRES_PASSWORD=changeme", "compose"),
    ("docker/compose.yaml", "@postgres:5432/bpr", "@database:5432/bpr", "full"),
    ("docker/compose.yaml", "http://minio:9000", "http://minio:9001", "full"),
    ("docker/compose.yaml", "makedirs('bpr'", "makedirs('data'", "full"),
    ("docker/.env.example", "BPR_PORT=8000", "BPR_PORT=80", "compose"),
    ("docker/compose.gpu.yaml", "/run/secrets/api_keys", "/run/secrets/keys", "compose"),
    ("docker/compose.yaml", "POSTGRES_PASSWORD_FILE:", "POSTGRES_PASS_FILE:", "compose"),
    ("docker/compose.yaml", "GF_SECURITY_ADMIN_PASSWORD__FILE:", "GF_SECURITY_ADMIN_PASSWORD_FILE:", "compose"),
    ("docker/compose.yaml", "postgres:/var/lib/postgresql/data", "postgres:/var/lib/postgres", "compose"),
    ("docker/compose.yaml", "minio:/data", "minio:/minio", "compose"),
    ("docker/compose.yaml", "--storage.tsdb.path=/prometheus", "--storage.tsdb.path=/data", "compose"),
    ("docker/compose.yaml", ":/etc/grafana/provisioning:ro", ":/etc/grafana:ro", "compose"),
    ("docker/compose.yaml", "shm_size: 2g", "stdin_open: true", "compose"),
    ("docker/compose.yaml", '"10001:10001", "/data"]', '"10001:10001", "/jobs"]', "full"),
    ("docker/compose.yaml", "- GRAFANA_PASSWORD=${GRAFANA_PASSWORD:+set}", "", "full"),
    (
        "docker/compose.yaml",
        "passwords: {condition: service_completed_successfully}",
        "passwords: {condition: service_started}",
        "full",
    ),
    # Prometheus and Grafana
    ("docker/prometheus.yml", "127.0.0.1:9090", "127.0.0.1:9091", "monitoring"),
    ("docker/alerts.yml", "Lower BPR_MAX_BATCH_PATCHES", "Lower BPR_BATCH_PATCHES", "monitoring"),
    ("docker/grafana/dashboards/bpr.json", "label_values(bpr_ready,", "label_values(bpr_up,", "monitoring"),
    ("docker/prometheus.yml", "metrics_path: /metrics", "metrics_path: /metric", "monitoring"),
    ("docker/prometheus.yml", "server:8000", "server:9000", "monitoring"),
    ("docker/prometheus.yml", "rule_files: [alerts.yml]", "rule_files: [rules.yml]", "monitoring"),
    ("docker/alerts.yml", "bpr_queue_wait_seconds", "bpr_queue_seconds", "monitoring"),
    ("docker/alerts.yml", 'bpr_requests_total{status="429"}', 'bpr_requests_total{code="429"}', "monitoring"),
    ("docker/alerts.yml", "max by (queue) (bpr_jobs_queued) > 0", "max by (name) (bpr_jobs_queued) > 0", "monitoring"),
    ("docker/grafana/dashboards/bpr.json", "bpr_batch_fill_sum", "bpr_batch_filled_sum", "monitoring"),
    ("docker/grafana/provisioning/datasources/prometheus.yaml", "prometheus:9090", "prometheus:9091", "monitoring"),
    ("docker/grafana/provisioning/dashboards/bpr.yaml", "bpr-dashboards", "dashboards", "monitoring"),
    # Kubernetes
    ("k8s/base/server.env", "BPR_MAX_REQUESTS", "BPR_REQUESTS", "k8s"),
    ("k8s/base/server.env", "BPR_DRAIN_S=30", "BPR_DRAIN_S=60", "k8s"),
    ("k8s/base/server.env", "BPR_LOG_LEVEL=info", "BPR_LOG_LEVEL=verbose", "k8s"),
    ("k8s/base/server.yaml", "httpGet: {path: /readyz", "httpGet: {path: /ready", "k8s"),
    ("k8s/base/server.yaml", "containerPort: 8000", "containerPort: 8080", "k8s"),
    ("k8s/base/server.yaml", "targetPort: http", "targetPort: web", "k8s"),
    ("k8s/base/server.yaml", "mountPath: /tmp", "mountPath: /temp", "k8s"),
    ("k8s/base/server.yaml", "restartPolicy: Always", "restartPolicy: OnFailure", "k8s"),
    ("k8s/base/server.yaml", "selector: {app.kubernetes.io/name: bpr-server}", "selector: {app: bpr-server}", "k8s"),
    ("k8s/base/server.yaml", "minAvailable: 1", "minimumAvailable: 1", "k8s"),
    ("k8s/base/server.yaml", 'limits: {cpu: "4", memory: 8Gi, ephemeral-storage: 4Gi}', 'limits: {cpu: "4"}', "k8s"),
    ("k8s/base/server.yaml", "secretName: bpr-keys", "secretName: keys", "k8s"),
    ("k8s/base/server.yaml", "defaultMode: 288", "defaultMode: 256", "k8s"),
    ("k8s/base/server.yaml", "fsGroup: 10001", "fsGroup: 1000", "k8s"),
    ("k8s/base/server.env", "/run/secrets/bpr/keys.json", "/run/secrets/bpr/api_keys.json", "k8s"),
    ("k8s/overlays/scaled/workers.yaml", "mountPath: /dev/shm", "mountPath: /shm", "k8s"),
    ("k8s/overlays/scaled/network.yaml", "port: 5432", "port: 5433", "k8s"),
    ("k8s/base/network.yaml", "port: http", "port: https", "k8s"),
    ("k8s/overlays/cpu/server.yaml", "BPR_THREADS", "BPR_CPU_THREADS", "k8s"),
    ("k8s/overlays/gpu/server.yaml", '"--device", "cuda"', '"--gpu"', "k8s"),
    ("k8s/overlays/gpu/kustomization.yaml", "newTag: 0.1.0-cuda", "newTag: 0.1.0-gpu", "k8s"),
    ("k8s/overlays/scaled/jobs.env", "BPR_JOBS_ROOTS", "BPR_JOBS_ROOT", "k8s"),
    ("k8s/overlays/scaled/jobs.env", "BPR_JOBS_FOLDER=/var/lib/bpr/jobs", "BPR_JOBS_FOLDER=/tmp/jobs", "k8s"),
    ("k8s/overlays/scaled/workers.yaml", '"healthcheck", "worker"', '"healthcheck", "server"', "k8s"),
    ("k8s/overlays/scaled/workers.yaml", '"--kind", "refine"', '"--queue", "refine"', "k8s"),
    ("k8s/overlays/scaled/workers.yaml", "claimName: bpr-data", "claimName: data", "k8s"),
    ("k8s/overlays/scaled/scaling.yaml", "name: bpr_queue_patches", "name: bpr_queue_length", "k8s"),
    ("k8s/overlays/scaled/scaling.yaml", "name: bpr-worker}", "name: bpr-workers}", "k8s"),
    ("k8s/overlays/scaled/monitoring.yaml", "path: /metrics", "path: /metric", "k8s"),
    ("k8s/prometheus-adapter.yaml", "seriesQuery: 'bpr_jobs_queued", "seriesQuery: 'bpr_jobs_waiting", "k8s"),
    ("k8s/prometheus-adapter.yaml", '"^bpr_jobs_queued$"', '"^bpr_jobs_waiting$"', "k8s"),
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{Path(m[0]).name}: {m[1]} -> {m[2]}"[:70])
def test_a_change_that_breaks_something_is_reported(clean: Path, mutation: tuple[str, str, str, str]) -> None:
    name, there, instead, check = mutation
    path = clean / name
    text = path.read_text()
    assert there in text, "the mutation is out of date"
    path.write_text(text.replace(there, instead))
    try:
        reported = _report(clean, check)
    finally:
        path.write_text(text)
    assert reported, f"{name}: {there} -> {instead} is not noticed"


def _report(root: Path, check: str) -> list[str]:
    try:
        return list(checks.CHECKS[check](root))
    except (KeyError, StopIteration, yaml.YAMLError) as error:  # the file has lost what the check starts from
        return [repr(error)]


@pytest.mark.parametrize("empty", [[], ["GRAFANA_PASSWORD"], ["POSTGRES_PASSWORD", "MINIO_ROOT_PASSWORD"]])
def test_an_empty_password_stops_what_waits_for_it(empty: list[str]) -> None:
    """The one-shot service's own command, with the variables as compose fills them in."""
    python, *words = checks.compose(ROOT)["services"]["passwords"]["entrypoint"]
    assert python == "python"
    filled = [word + "set" if word.endswith("=") and word[:-1] not in empty else word for word in words]
    done = subprocess.run([sys.executable, *filled], capture_output=True, text=True, timeout=60)
    assert done.returncode == (1 if empty else 0)
    assert all(name in done.stderr for name in empty)
    assert len(done.stderr.splitlines()) <= 1


def test_requirements_of_the_images_are_in_the_lock() -> None:
    """uv is told to keep to the lock: a package that is not in it would come in any version."""
    project: dict[str, Any] = checks.tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {line.split("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line}
    names = [
        *project["dependencies"],
        *(n for e in checks.EXTRAS | {"train"} for n in project["optional-dependencies"][e]),
    ]
    plain = {re.split(r"[\[<>=]", name)[0].lower() for name in names}
    assert plain - {name.lower() for name in locked} == set()


def test_the_dashboard_has_an_id_a_panel() -> None:
    board = json.loads((ROOT / "docker/grafana/dashboards/bpr.json").read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids)) > 15


def test_the_cuda_build_of_torch_is_the_locked_one() -> None:
    """The lock pins CUDA's libraries; another build of torch than the one it was made with would not accept them."""
    lock = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line)
    major, minor = lock["nvidia-cuda-runtime"].split(".")[:2]
    _, stages = dockerfile.read((ROOT / "Dockerfile").read_text())
    (install,) = (step.text for step in stages["build-cuda"].all("RUN") if "--torch-backend" in step.text)
    assert f"--torch-backend cu{major}{minor} " in install
