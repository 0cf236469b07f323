"""Dockerfile, compose files and manifests are right by the tools of the trade, and say what is true of the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.deploy import checks, deployment
from tests.deploy.deployment import ROOT, RUNS, SERVERS, containers

KUBERNETES = "1.32"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deployment.copy(tmp_path_factory.mktemp("tree"))


def run(*words: str | Path) -> str:
    """A tool of this environment or of the machine, content and silent of warnings."""
    beside = Path(sys.executable).with_name(str(words[0]))
    found = beside if beside.exists() else words[0]
    done = subprocess.run([found, *words[1:]], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_tools_accept_the_files(tmp_path: Path) -> None:
    run("hadolint", ROOT / "Dockerfile")
    run("promtool", "check", "config", ROOT / "docker/prometheus.yml")
    run("promtool", "check", "rules", ROOT / "docker/alerts.yml")
    for name in deployment.COMPOSE:
        (tmp_path / name).write_text(yaml.safe_dump(deployment.compose(ROOT, name)))
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *tmp_path.iterdir())


def kubernetes_problems(objects: list[deployment.Object]) -> Iterator[str]:
    for o in objects:
        known = not re.search(r"(coreos\.com|ray\.io)/", o["apiVersion"])  # those are no part of Kubernetes itself
        pods = [{"apiVersion": "v1", "kind": "PodTemplate", "template": pod} for pod in deployment.templates(o)]
        for checked in [o] if known else pods:
            try:
                kubernetes_validate.validate(checked, KUBERNETES, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{o['kind']} {o['metadata']['name']}: {error.message[:200]}"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl 1.27 or later")
@pytest.mark.parametrize("overlay", [*SERVERS, *RUNS])
def test_overlays_are_what_kubernetes_takes(clean: Path, overlay: str) -> None:
    objects = list(yaml.safe_load_all(run("kubectl", "kustomize", clean / "k8s/overlays" / overlay)))
    assert list(kubernetes_problems(objects)) == []
    assert list(checks.references(objects)) == []
    assert all("/" in c["image"] or c["image"].startswith("bpr-service:") for o in objects for c in containers(o))
    if overlay in RUNS:
        return
    service, server = (next(o for o in objects if o["kind"] == kind) for kind in ("Service", "Deployment"))
    service["spec"]["selector"]["app.kubernetes.io/name"] = "other"
    server["spec"]["template"]["spec"]["volumes"][0] = {"name": "state", "secret": {"secretName": "other"}}
    assert {text.split()[1] for text in checks.references(objects)} == {"pod", "Secret"}
    server["spec"]["template"]["spec"]["restart"] = "Always"
    assert list(kubernetes_problems([server]))


def test_an_indexed_job_does_every_part_once(clean: Path) -> None:
    """Whole without kustomize: the share of a task is its index of as many as there are completions."""
    jobs = [o for where, o in deployment.manifests(clean) if o["kind"] == "Job"]
    assert [o["metadata"]["name"] for o in jobs] == ["bpr-parts", "bpr-merge"]
    assert list(kubernetes_problems(jobs)) == []
    parts, merge = (o["spec"]["template"]["spec"]["containers"][0]["args"] for o in jobs)
    assert parts[:-1] == merge[:-1]
    assert (parts[-1], merge[-1]) == (f"--part=$(JOB_COMPLETION_INDEX)/{jobs[0]['spec']['completions']}", "--merge")
    assert jobs[0]["spec"]["completionMode"] == "Indexed"
    assert jobs[1]["spec"]["suspend"], "it would run before the parts"


def test_a_rayjob_has_room_for_its_actors(clean: Path) -> None:
    """An actor and its loaders fill a pod; as many are asked for as there may be pods, and none where the driver is."""
    (job,) = (o for where, o in deployment.manifests(clean) if o["kind"] == "RayJob")
    assert list(kubernetes_problems([job])) == []
    cluster, given = job["spec"]["rayClusterSpec"], dict(re.findall(r"--(\w+)=(\S+)", job["spec"]["entrypoint"]))
    (group,), head = cluster["workerGroupSpecs"], cluster["headGroupSpec"]
    assert (given["engine"], int(given["actors"])) == ("ray", group["maxReplicas"])
    (container,) = group["template"]["spec"]["containers"]
    assert int(container["resources"]["limits"]["cpu"]) == int(given["workers"]) + 1
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert f"\nray=={cluster['rayVersion']} " in (ROOT / "requirements.lock").read_text()
    container["volumeMounts"][0]["mountPat"] = "/data"
    assert list(kubernetes_problems([job]))


@pytest.mark.parametrize("check", checks.CHECKS)
def test_the_files_say_what_is_true_of_the_code(clean: Path, check: str) -> None:
    assert list(checks.CHECKS[check](clean)) == []


# (file, what is there, what a mistake makes of it, the check that must report it)
MUTATIONS = [
    ("Dockerfile", "BPR_HOST=0.0.0.0", "BPR_ADDRESS=0.0.0.0", "settings"),
    ("docker/compose.yaml", "BPR_MEMORY_MB: ", "BPR_MEMORY: ", "settings"),
    ("docker/.env.example", "POSTGRES_PASSWORD=", "POSTGRES_PASSWORD=changeme", "settings"),
    ("k8s/overlays/cpu/server.yaml", "BPR_THREADS", "BPR_CPU_THREADS", "settings"),
    ("Dockerfile", 'CMD ["bpr", "healthcheck", "server"]', 'CMD ["bpr", "health", "server"]', "commands"),
    ("docker/compose.gpu.yaml", '"cuda:0", "--workers"', '"gpu:0", "--workers"', "commands"),
    ("k8s/overlays/scaled/workers.yaml", '"healthcheck", "worker"', '"healthcheck", "server"', "commands"),
    ("docker/prometheus.yml", "server:8000", "server:9000", "routes"),
    ("docker/compose.yaml", ":-8000}:8000", ":-8000}:8080", "routes"),
    ("k8s/base/server.yaml", "httpGet: {path: /readyz", "httpGet: {path: /ready", "routes"),
    ("docker/alerts.yml", 'bpr_requests_total{status="429"}', 'bpr_requests_total{code="429"}', "metrics"),
    ("docker/alerts.yml", "max by (queue) (bpr_jobs_queued) > 0", "max by (name) (bpr_jobs_queued) > 0", "metrics"),
    ("docker/alerts.yml", "Lower BPR_MAX_BATCH_PATCHES", "Lower BPR_BATCH_PATCHES", "metrics"),
    ("docker/grafana/dashboards/bpr.json", "label_values(bpr_ready,", "label_values(bpr_up,", "metrics"),
    ("k8s/overlays/scaled/scaling.yaml", "name: bpr_queue_patches", "name: bpr_queue_length", "metrics"),
    ("Dockerfile", "--extra otel --extra train", "--extra otel", "images"),
    ("Dockerfile", "slim-bookworm@sha256:", "slim-bookworm@", "images"),
    (".dockerignore", "!bpr_service\n", "", "images"),
    ("docker/compose.yaml", "target: trainer", "target: training", "images"),
    ("k8s/overlays/gpu/kustomization.yaml", "-cuda", "-gpu", "images"),
    ("Dockerfile", "NUMBA_CACHE_DIR=/var/cache/bpr/numba", "NUMBA_CACHE_DIR=/opt/numba", "storage"),
    ("docker/compose.yaml", "BPR_JOBS_FOLDER: /var/lib/bpr/jobs", "BPR_JOBS_FOLDER: /var/jobs", "storage"),
    ("docker/compose.yaml", "stop_grace_period: 45s", "stop_grace_period: 30s", "storage"),
    ("docker/compose.yaml", '"/run/secrets/api_keys"', '"/run/secrets/keys"', "storage"),
    ("k8s/base/server.env", "BPR_DRAIN_S=30", "BPR_DRAIN_S=60", "storage"),
    ("docker/compose.yaml", '["serve", "--api-keys-file", "/run/secrets/api_keys"]', '["serve"]', "rights"),
    ("k8s/base/server.env", "BPR_API_KEYS_FILE=/run/secrets/bpr/keys.json", "", "rights"),
    ("docker/compose.yaml", "cap_drop: [ALL]\n    cap_add: [CHOWN, DAC", "cap_add: [CHOWN, DAC", "rights"),
    ("docker/compose.yaml", "networks: [jobs, console]", "networks: [jobs, metrics]", "rights"),
    ("docker/compose.yaml", "networks: [jobs]\n    environment", "environment", "rights"),
    ("docker/compose.yaml", "jobs: {internal: true}", "jobs:", "rights"),
    ("k8s/overlays/scaled/workers.yaml", "mountPath: /data", "mountPath: /date", "storage"),
    ("k8s/overlays/ray/rayjob.yaml", "--engine=ray", "--engines=ray", "commands"),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{Path(m[0]).name}: {m[1]} -> {m[2]}"[:70])
def test_a_mistake_is_reported(clean: Path, mutation: tuple[str, str, str, str]) -> None:
    name, there, instead, check = mutation
    text = (clean / name).read_text()
    assert there in text, "the mutation is out of date"
    (clean / name).write_text(text.replace(there, instead))
    reported = list(checks.CHECKS[check](clean))
    (clean / name).write_text(text)
    assert reported != []


@pytest.mark.parametrize("empty", [[], ["GRAFANA_PASSWORD"], ["POSTGRES_PASSWORD", "MINIO_ROOT_PASSWORD"]])
def test_an_empty_password_stops_what_waits_for_it(empty: list[str]) -> None:
    """The one-shot service's own command, with the variables as compose fills them in."""
    _, *words = deployment.compose(ROOT)["services"]["passwords"]["entrypoint"]
    filled = [word + "set" if word.endswith("=") and word[:-1] not in empty else word for word in words]
    done = subprocess.run([sys.executable, *filled], capture_output=True, text=True, timeout=60)
    assert done.returncode == (1 if empty else 0)
    assert all(name in done.stderr for name in empty)
