"""What the deployment files say, as data: the image, the compose services, the manifests."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
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


def version(root: Path) -> str:
    (found,) = re.findall(r'(?m)^__version__ = "(.*)"$', (root / "bpr_service/__init__.py").read_text())
    return str(found)


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
    return sorted(
        {path for name, text in dockerfile(root) if name == "COPY" for path in text.split()[:-1] if path[0] not in "-/"}
    )


def env_file(path: Path) -> dict[str, str]:
    lines = [line.strip() for line in path.read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def compose(root: Path, name: str = "compose.yaml") -> Object:
    """A compose file with its variables replaced by their defaults."""
    text = (root / "docker" / name).read_text()
    text = re.sub(r"\$\{\w+(?::?([-+])([^}]*))?\}", lambda m: m[2] if m[1] == "-" else "", text)
    document: Object = yaml.safe_load(text)
    return document


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


def built(root: Path, overlay: str) -> list[Object]:
    """The objects of an overlay, as ``kubectl kustomize`` builds them."""
    command = ["kubectl", "kustomize", str(root / "k8s/overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def templates(o: Object) -> list[Object]:
    """The pods that an object makes."""
    spec = o.get("spec", {})
    if o["kind"] == "RayJob":
        cluster = spec["rayClusterSpec"]
        return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return [spec["template"]] if spec.get("template", {}).get("spec", {}).get("containers") else []


def containers(o: Object) -> list[Object]:
    return [container for pod in templates(o) for container in pod["spec"]["containers"]]


def walk(value: Any) -> Iterator[Object]:
    """Every object at any depth."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(inner)
