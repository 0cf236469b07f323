"""What the deployment files say, as data: the image, the compose services, the manifests."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bpr_service.server.http.auth import new_key

Object = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ("compose.yaml", "compose.gpu.yaml")
SERVERS, RUNS = ("cpu", "gpu", "scaled"), ("array", "ray")
"""Overlays with a server, and those of one run."""


def copy(root: Path) -> Path:
    """The repository's deployment files in an empty folder, with the secrets that an operator makes."""
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "requirements.lock", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / name)
    for name in ("docker", "k8s"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns(".env", "keys.json"))
    for name in ("bpr_service", "refiner_training"):
        (root / name).symlink_to(ROOT / name)
    _, kept = new_key("operator", ("refine", "jobs", "admin"))
    (root / "k8s/base/secrets/keys.json").write_text(json.dumps([kept.model_dump(mode="json")]))
    database = "BPR_JOBS_DATABASE=postgresql://bpr:word@db.example/bpr\n"
    (root / "k8s/overlays/scaled/secrets/jobs.env").write_text(database)
    return root


def dockerfile(root: Path) -> list[tuple[str, str]]:
    """The instructions as (name, text), in the file's order, without comments and line breaks."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (root / "Dockerfile").read_text())
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def image_environment(root: Path) -> dict[str, str]:
    """What ``ENV`` sets in the image for processors, but the folders of the build stages."""
    words = [word for name, text in dockerfile(root) if name == "ENV" for word in shlex.split(text)]
    values = dict(word.split("=", 1) for word in words)
    return {name: value for name, value in values.items() if not name.startswith(("UV_", "PIP_", "VIRTUAL_"))}


def copied(root: Path) -> list[str]:
    """Every path of the repository that the Dockerfile copies."""
    words = [word for name, text in dockerfile(root) if name == "COPY" for word in text.split()[:-1]]
    return sorted({word for word in words if word[0] not in "-/"})


def env_file(path: Path) -> dict[str, str]:
    lines = [line.strip() for line in path.read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def compose(root: Path, name: str = "compose.yaml") -> Object:
    """A compose file with its variables replaced by their defaults."""
    text = (root / "docker" / name).read_text()
    text = re.sub(r"\$\{\w+(?::?([-+])([^}]*))?\}", lambda m: m[2] if m[1] == "-" else "", text)
    return dict(yaml.safe_load(text))


def our_services(root: Path) -> Iterator[tuple[str, Object]]:
    """The services that run our image as it is, each with what the GPU file changes as another one."""
    services, over = (compose(root, name)["services"] for name in COMPOSE)
    for name, service in services.items():
        if service["image"].startswith("bpr-service:") and "entrypoint" not in service:
            yield f"compose.yaml, {name}", service
            if name in over:
                yield f"compose.gpu.yaml, {name}", {**service, **over[name]}


def manifests(root: Path) -> Iterator[tuple[str, Object]]:
    """The objects of ``k8s/`` as they are written: whole ones and patches, no kustomizations."""
    for path in sorted((root / "k8s").rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if document.get("kind") not in (None, "Kustomization"):
                yield f"{path.relative_to(root)}, {document['kind']}", document


def templates(o: Object) -> list[Object]:
    """The pods that an object makes."""
    spec = o.get("spec", {})
    if o["kind"] == "RayJob":
        cluster = spec["rayClusterSpec"]
        return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return [spec["template"]] if spec.get("template", {}).get("spec", {}).get("containers") else []


def containers(o: Object) -> list[Object]:
    return [container for pod in templates(o) for container in pod["spec"]["containers"]]


def started(root: Path) -> Iterator[tuple[str, list[str], Object]]:
    """The words after ``bpr`` of every container that runs our image, and the container."""
    yield from ((where, service["command"], service) for where, service in our_services(root))
    for where, o in manifests(root):
        yield from ((where, c["args"], o | c) for c in containers(o) if "args" in c)
        if o["kind"] == "RayJob":
            program, *words = shlex.split(o["spec"]["entrypoint"])
            yield where, words if program == "bpr" else [program], {}


def walk(value: Any) -> Iterator[Object]:
    """Every object at any depth."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(inner)
