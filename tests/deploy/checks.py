"""Where the deployment files speak of the code: each check gives what is not true of it, and nothing where all is well.

What any file of its kind must be is left to hadolint, promtool, kubernetes-validate, kubectl and the compose schema.
The checks take the tree's root, so that the tests can hold them against changed copies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from bpr_service.server.settings import ServerSettings
from tests.deploy import deployment as deployed
from tests.deploy import known
from tests.deploy.deployment import Object, containers, env_file, templates, walk

SECRET = "/run/secrets/"
EXTRAS = dict.fromkeys(("cpu", "cuda"), "torch server jobs s3 otel")
EXTRAS |= {name: f"{EXTRAS['cpu']} {more}" for name, more in (("trainer", "train"), ("ray", "ray"))}


def settings(root: Path) -> Iterator[str]:
    """Variables that nobody reads, values that are refused."""
    given = [("Dockerfile", deployed.image_environment(root))]
    given += [(where, service.get("environment", {})) for where, service in deployed.our_services(root)]
    given += [(str(path), env_file(path)) for path in (root / "k8s").rglob("*.env")]
    pods = [(where, c.get("env", [])) for where, o in deployed.manifests(root) for c in containers(o)]
    given += [(where, {e["name"]: e["value"] for e in env}) for where, env in pods]
    for where, values in given:
        yield from (f"{where}: {p}" for p in known.settings_problems({k: str(v) for k, v in values.items()}))
    texts = [(root / "docker" / name).read_text() for name in ("compose.yaml", "compose.gpu.yaml")]
    used, offered = set(re.findall(r"\$\{(\w+)", "".join(texts))), env_file(root / "docker/.env.example")
    yield from (f"{name}: either .env.example or the compose files have it not" for name in used ^ offered.keys())
    yield from (f".env.example gives {n}" for n, value in offered.items() if n.endswith("PASSWORD") and value)


def commands(root: Path) -> Iterator[str]:
    """Commands and options that ``bpr`` has not; health checks of another command than the one that runs."""
    for name, text in deployed.dockerfile(root):
        if name in ("CMD", "HEALTHCHECK"):
            yield from known.command_problems([w for w in json.loads(text[text.index("[") :]) if w != "bpr"])
    for where, words, container in deployed.started(root):
        probe = container.get("readinessProbe", {}).get("exec", {}).get("command", ["bpr", "healthcheck", "server"])
        check = container["healthcheck"]["test"][2:] if "healthcheck" in container else probe[1:]
        yield from (f"{where}: {p}" for given in (words, check) for p in known.command_problems(given))
        if (words[0] == "worker") != (check[-1] == "worker"):
            yield f"{where}: the health check is not of a {words[0]}"


def routes(root: Path) -> Iterator[str]:
    """Paths that are asked of the server and that it has not, ports it does not listen on."""
    prometheus = yaml.safe_load((root / "docker/prometheus.yml").read_text())
    port = deployed.image_environment(root)["BPR_PORT"]
    ours = [(where, o) for where, o in deployed.manifests(root) if o["kind"] != "RayJob"]  # its routes are Ray's
    for where, document in [*ours, ("prometheus.yml", prometheus)]:
        for found in walk(document):
            paths = [found.get("metrics_path"), found.get("httpGet", {}).get("path")]
            paths += [endpoint["path"] for endpoint in found.get("endpoints", [])]
            yield from (f"{where}: no route {path}" for path in paths if path and path not in known.PATHS)
            ports = [str(found["containerPort"])] if "containerPort" in found else []
            ports += [t.removeprefix("server:") for t in found.get("targets", []) if t.startswith("server:")]
            yield from (f"{where}: port {p} is not BPR_PORT {port}" for p in ports if p != port)
    for where, service in deployed.our_services(root):
        yield from (f"{where}: port {p}" for p in service.get("ports", []) if not re.fullmatch(rf"127.*:{port}", p))


def metrics(root: Path) -> Iterator[str]:
    """Series and labels in alerts, dashboard and autoscaling that the server does not export."""
    adapter = yaml.safe_load((root / "k8s/prometheus-adapter.yaml").read_text())
    alerts, board = (root / "docker/alerts.yml", root / "docker/grafana/dashboards/bpr.json")
    for found in walk([adapter, yaml.safe_load(alerts.read_text()), json.loads(board.read_text())]):
        for query in (found.get(key) for key in ("expr", "query", "definition", "seriesQuery")):
            yield from known.query_problems(query) if isinstance(query, str) else ()
    named = set(re.findall(r"\bBPR_[A-Z_]+", alerts.read_text()))
    yield from (f"alerts.yml: no setting {name}" for name in named - known.SETTINGS)
    made = {rule["name"]["as"] for rules in ("custom", "external") for rule in adapter["rules"][rules]}
    asked = {found["metric"]["name"] for _, o in deployed.manifests(root) for found in walk(o) if "metric" in found}
    yield from (f"prometheus-adapter makes no metric {name}" for name in asked - made)


def images(root: Path) -> Iterator[str]:
    """Versions, extras and files of the images."""
    steps = deployed.dockerfile(root)
    (version,) = re.findall(r'(?m)^__version__ = "(.*)"$', (root / "bpr_service/__init__.py").read_text())
    sent = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    lost = (path for path in deployed.copied(root) if path not in sent or not (root / path).exists())
    yield from (f"Dockerfile: no file {path}, or .dockerignore keeps it" for path in lost)
    extras = [set(re.findall(r"--extra (\S+)", text)) for name, text in steps if "--extra" in text]
    if extras != [set(names.split()) for names in EXTRAS.values()]:
        yield f"Dockerfile: extras {extras}"
    if ("ARG", f"VERSION={version}") not in steps:
        yield f"Dockerfile: VERSION is not {version}"
    used = [text.split(" AS ")[0] for name, text in steps if name == "FROM" and ":" in text]
    for service in (s for name in deployed.COMPOSE for s in deployed.compose(root, name)["services"].values()):
        used += [service["image"], f"bpr-service:{version}-{service.get('build', {}).get('target', 'cpu')}"]
    for path in (root / "k8s").rglob("kustomization.yaml"):
        used += [f"{i['newName']}:{i['newTag']}" for i in yaml.safe_load(path.read_text()).get("images", [])]
    ours = re.compile(rf"bpr-service:{re.escape(version)}-({'|'.join(EXTRAS)})(-cpu)?|.+:.+@sha256:[0-9a-f]{{64}}")
    yield from (f"no image {name}, or it is not pinned" for name in used if not ours.fullmatch(name))


def storage(root: Path) -> Iterator[str]:
    """Folders that a read-only root cannot write or that nobody keeps; keys that are not there; drains cut short."""
    image = deployed.image_environment(root)
    (volumes,) = (json.loads(text) for name, text in deployed.dockerfile(root) if name == "VOLUME")
    places = [("Dockerfile", image, volumes, 45.0)]
    files = {"serve": "k8s/base/server.env", "worker": "k8s/overlays/scaled/jobs.env"}
    for where, words, container in deployed.started(root):
        if "volumes" in container:
            mounts = [entry.split(":")[1] for entry in container["volumes"]]
            mounts += [SECRET + name for name in container.get("secrets", [])]
            given = container.get("environment", {}) | {f"{w}_FILE": w for w in words if w.startswith(SECRET)}
            places.append((where, image | given, mounts, float(container["stop_grace_period"].rstrip("s"))))
        elif "volumeMounts" in container:
            mounts = [entry["mountPath"] for entry in container["volumeMounts"]]
            grace = container["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            given = env_file(root / files[words[0]]) if words[0] in files else {}
            places.append((where, image | given, mounts, grace - 5))
    for where, values, mounts, grace_s in places:
        kept = [values[n] for n in values if n.endswith(("_DIR", "_HOME", "_STORE", "_FOLDER", "_FILE"))]
        roots = json.loads(values.get("BPR_JOBS_ROOTS", "{}")).values()
        for path in [*volumes, *kept, *(root if isinstance(root, str) else root["path"] for root in roots)]:
            if "://" not in path and not any(f"{path}/".startswith(f"{folder}/") for folder in mounts):
                yield f"{where}: {path} is in no volume"
        drain_s = float(values.get("BPR_DRAIN_S", ServerSettings.model_fields["drain_s"].default))
        if grace_s < drain_s + 5:
            yield f"{where}: stopped after {grace_s:g} s, drains for {drain_s:g} s"


NEIGHBOURS = {"postgres": {"server", "worker", "trainer", "minio", "bucket"}, "grafana": {"prometheus", "server"}}
"""Who may reach the database, and whom the dashboards may reach."""


def rights(root: Path) -> Iterator[str]:
    """Servers without keys, containers with capabilities, networks that join what has nothing to say to each other."""
    compose = deployed.compose(root)
    services = compose["services"]
    for name, s in services.items():
        yield from [f"{name}: keeps its capabilities"] if "ALL" not in s.get("cap_drop", []) else []
        yield from [f"{name}: may gain more"] if "no-new-privileges:true" not in s.get("security_opt", []) else []
        yield from [f"{name}: on the network of all"] if not {"networks", "network_mode"} & s.keys() else []
    of_pods = "BPR_API_KEYS_FILE" in env_file(root / "k8s/base/server.env")
    for where, words, _ in deployed.started(root):
        if words[0] == "serve" and not (any(w.startswith(SECRET) for w in words) or ("k8s" in where and of_pods)):
            yield f"{where}: serves without keys"
    if not (compose["networks"].get("jobs") or {}).get("internal"):
        yield "the network of the database leads out"
    for name, allowed in NEIGHBOURS.items():
        mine = set(services[name].get("networks", []))
        near = {other for other, s in services.items() if other != name and mine & set(s.get("networks", []))}
        yield from (f"{name} and {other} share a network" for other in near - allowed)


def references(objects: list[Object]) -> Iterator[str]:
    """What a built overlay's objects name and is not there."""
    there = {(o["kind"], o["metadata"]["name"]) for o in objects}
    pods = [pod["metadata"]["labels"].items() for o in objects for pod in templates(o)]
    kinds = {"configMapRef": "ConfigMap", "secretRef": "Secret", "scaleTargetRef": "Deployment"}
    for found in (found for o in objects for found in walk(o)):
        names = [(kind, found[key]["name"]) for key, kind in kinds.items() if key in found]
        names += [("Secret", found["secretName"])] if "secretName" in found else []
        names += [("PersistentVolumeClaim", found["claimName"])] if "claimName" in found else []
        yield from (f"no {kind} {name}" for kind, name in names if (kind, name) not in there)
        labels = found.get("matchLabels", found.get("selector", {}) if found.get("type") == "ClusterIP" else {})
        if "app.kubernetes.io/name" in labels and not any(labels.items() <= pod for pod in pods):
            yield f"no pod has {labels}"


CHECKS: dict[str, Callable[[Path], Iterator[str]]] = {
    check.__name__: check for check in (settings, commands, routes, metrics, images, storage, rights)
}
