"""The subset of kustomize that ``k8s/`` uses, so that overlays are built where no kubectl is.

Known: resources (files and folders), namespace, images, configMapGenerator and secretGenerator (envs, files) with a
suffix on the names and on what refers to them, patches by path (strategic merge). Anything else in a kustomization is
an error. Where a kubectl is installed, a test holds this against ``kubectl kustomize``.
"""

from __future__ import annotations

import base64
import copy
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
KNOWN = {
    "apiVersion", "kind", "namespace", "resources", "images", "configMapGenerator", "secretGenerator", "patches",
}  # fmt: skip
CLUSTER_WIDE = {"Namespace"}
SUFFIX = "-hash"
MERGE_KEYS = {"containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath", "ports": "name"}
"""Lists that a strategic merge joins by a key; others are replaced."""


def build(folder: Path) -> list[Object]:
    """The objects of an overlay. Raises ``FileNotFoundError`` for a file that is missing, ``ValueError`` else."""
    generated: list[Object] = []
    objects = _collect(folder, generated)
    for made in generated:  # at the very end, as kustomize does: a patch above names what a base generates
        name = made["metadata"]["name"]
        made["metadata"]["name"] = name + SUFFIX
        for o in objects:
            _rename(o, made["kind"], name)
    return objects


def _collect(folder: Path, generated: list[Object]) -> list[Object]:
    config = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := set(config) - KNOWN:
        raise ValueError(f"{folder}: {', '.join(sorted(unknown))} is not known here")
    objects: list[Object] = []
    for name in config.get("resources", []):
        path = folder / name
        objects += (
            _collect(path, generated) if path.is_dir() else [o for o in yaml.safe_load_all(path.read_text()) if o]
        )
    made = [_config_map(folder, entry) for entry in config.get("configMapGenerator", [])]
    made += [_secret(folder, entry) for entry in config.get("secretGenerator", [])]
    objects += made
    if namespace := config.get("namespace"):
        for o in objects:
            if o["kind"] not in CLUSTER_WIDE:
                o["metadata"]["namespace"] = namespace
    for patch in config.get("patches", []):
        for change in yaml.safe_load_all((folder / patch["path"]).read_text()):
            found = [o for o in objects if identity(o) == identity(change)]
            if len(found) != 1:
                raise ValueError(f"{folder}/{patch['path']}: {identity(change)} is there {len(found)} times")
            objects[objects.index(found[0])] = _merge(found[0], change)
    for image in config.get("images", []):
        for container in (c for o in objects for c in containers(o) if c["image"] == image["name"]):
            container["image"] = f"{image['newName']}:{image['newTag']}"
    generated += made
    return objects


def identity(o: Object) -> tuple[str, str, str]:
    """Kind, namespace and name."""
    return o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"]


def pod(o: Object) -> Object:
    """The pod's spec of a workload; empty for other objects."""
    found = o.get("spec", {}).get("template", {}) if o["kind"] in ("Deployment", "StatefulSet", "Job") else {}
    spec: Object = found.get("spec", {})
    return spec


def containers(o: Object) -> list[Object]:
    return [*pod(o).get("initContainers", []), *pod(o).get("containers", [])]


def _env_file(path: Path) -> dict[str, str]:
    lines = [line.strip() for line in path.read_text().splitlines()]
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {key: value for key, _, value in pairs}


def _data(folder: Path, entry: Object) -> dict[str, str]:
    values: dict[str, str] = {}
    for name in entry.get("envs", []):
        values |= _env_file(folder / name)
    for name in entry.get("files", []):
        values[Path(name).name] = (folder / name).read_text()
    return values


def _config_map(folder: Path, entry: Object) -> Object:
    return {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": entry["name"]}, "data": _data(folder, entry),
    }  # fmt: skip


def _secret(folder: Path, entry: Object) -> Object:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in _data(folder, entry).items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": entry["name"]}, "data": data, "type": "Opaque"}


def _merge(old: Any, new: Any, key: str = "") -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        merged = dict(old)
        for name, value in new.items():
            if value is None:
                merged.pop(name, None)
            else:
                merged[name] = _merge(old[name], value, name) if name in old else _pruned(value)
        return merged
    if isinstance(old, list) and isinstance(new, list) and key in MERGE_KEYS:
        by = MERGE_KEYS[key]
        names = [entry.get(by) for entry in old]
        changed = {entry.get(by): entry for entry in new}
        kept = [_merge(entry, changed[entry.get(by)]) if entry.get(by) in changed else entry for entry in old]
        return [*kept, *(_pruned(entry) for entry in new if entry.get(by) not in names)]
    return copy.deepcopy(new)


def _pruned(value: Any) -> Any:
    return {k: _pruned(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _rename(o: Any, kind: str, name: str) -> None:
    """Follow a generated object's new name, where something refers to it."""
    keys = {"ConfigMap": ("configMapRef", "configMap", "configMapKeyRef"), "Secret": ("secretRef", "secretKeyRef")}
    if isinstance(o, dict):
        for key, value in o.items():
            if key in keys[kind] and isinstance(value, dict) and value.get("name") == name:
                value["name"] = name + SUFFIX
            elif kind == "Secret" and key == "secretName" and value == name:
                o[key] = name + SUFFIX
            else:
                _rename(value, kind, name)
    elif isinstance(o, list):
        for entry in o:
            _rename(entry, kind, name)
