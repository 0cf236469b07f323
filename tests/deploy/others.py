"""What the images of others read, keep and speak: the part of the deployment files that our own code cannot tell.

Each entry is a statement of that image's documentation; the checks hold the compose file against it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

Object = dict[str, Any]


class Image(NamedTuple):
    """``variables`` it reads, the folder it ``keeps``, ``secrets`` by the variables that name them."""

    variables: frozenset[str]
    keeps: str
    secrets: tuple[str, ...] = ()


IMAGES = {
    "postgres": Image(
        frozenset({"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD_FILE"}),
        "/var/lib/postgresql/data",
        ("POSTGRES_PASSWORD_FILE",),
    ),
    "minio": Image(
        frozenset({"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD_FILE"}), "/data", ("MINIO_ROOT_PASSWORD_FILE",)
    ),
    "prometheus": Image(frozenset(), "/prometheus"),
    "grafana": Image(
        frozenset({
            "GF_SECURITY_ADMIN_PASSWORD__FILE", "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH",
            "GF_ANALYTICS_REPORTING_ENABLED", "GF_ANALYTICS_CHECK_FOR_UPDATES", "GF_USERS_ALLOW_SIGN_UP",
        }),
        "/var/lib/grafana",
        ("GF_SECURITY_ADMIN_PASSWORD__FILE",),
    ),
}  # fmt: skip
PROVISIONING = "/etc/grafana/provisioning"


def problems(service: Object) -> Iterator[str]:
    """What is wrong with a service of somebody else's image."""
    name = service["image"].split(":")[0].rsplit("/", 1)[-1]
    if name not in IMAGES:
        yield f"nothing is known of {name}"
        return
    image, environment = IMAGES[name], service.get("environment", {})
    yield from (f"{name} reads no {variable}" for variable in environment.keys() - image.variables)
    yield from (f"{variable} is not set" for variable in image.secrets if variable not in environment)
    mounts = {entry.split(":")[1]: entry.split(":")[0] for entry in service.get("volumes", [])}
    if mounts.get(image.keeps, ".").startswith("."):
        yield f"{image.keeps}, which {name} keeps, is in no volume"
    words = [word for word in service.get("command", []) if not word.startswith("--") or "storage.tsdb.path" in word]
    kept = {word.partition("=")[2] or word for word in words if "/" in word}
    yield from (f"the command writes to {path}, which is in no volume" for path in kept - mounts.keys())
    if name == "grafana" and PROVISIONING not in mounts:
        yield f"nothing is mounted at {PROVISIONING}"


def password_problems(services: Object, secrets: Object) -> Iterator[str]:
    """Whether each password that comes from ``.env`` is asked for before what uses it starts."""
    asked = {word[:-1] for word in services["passwords"]["entrypoint"] if re.fullmatch(r"[A-Z_]+=", word)}
    for secret, variable in ((name, s["environment"]) for name, s in secrets.items() if "environment" in s):
        if variable not in asked:
            yield f"nobody asks whether {variable} is empty"
        for name, service in services.items():
            waits = service.get("depends_on", {}).get("passwords", {}).get("condition")
            if secret in service.get("secrets", []) and waits != "service_completed_successfully":
                yield f"{name} does not wait until {variable} is known to be set"
