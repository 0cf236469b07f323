"""A copy of what is deployed, to be changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bpr_service.server.http.auth import new_key
from tests.deploy.dockerfile import ROOT

FILES = ("Dockerfile", ".dockerignore", "pyproject.toml", "requirements.lock", "README.md", "LICENSE")
FOLDERS = ("docker", "k8s")
CODE = ("bpr_service", "refiner_training")


def copy(root: Path) -> Path:
    """The repository's deployment files in an empty folder, with the secrets that an operator makes."""
    for name in FILES:
        shutil.copy(ROOT / name, root / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns(".env", "keys.json", "jobs.env.own"))
    for name in CODE:
        (root / name).symlink_to(ROOT / name)
    _, kept = new_key("operator", ("refine", "jobs", "admin"))
    (root / "k8s/base/secrets/keys.json").write_text(json.dumps([kept.model_dump(mode="json")]))
    filled = "BPR_JOBS_DATABASE=postgresql://bpr:word@db.example/bpr\nAWS_ACCESS_KEY_ID=id\nAWS_DEFAULT_REGION=here\n"
    (root / "k8s/overlays/scaled/secrets/jobs.env").write_text(filled)
    return root
