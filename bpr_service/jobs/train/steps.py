"""A train job: the trainer as a child process, then measured, registered, and perhaps promoted.

The run's folder holds what the trainer needs to go on (its checkpoints); a step that was done leaves a file that says
so, and is skipped. A lock on the folder keeps a second trainer out while the first one lives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bpr_service import storage
from bpr_service.errors import BprError, ConfigError, ModelError
from bpr_service.jobs.context import Context
from bpr_service.jobs.requests import TrainRequest
from bpr_service.jobs.settings import JobSettings
from bpr_service.jobs.tables import JobRow
from bpr_service.jobs.train.trainer import Child
from bpr_service.jobs.train.training_files import TrainingFiles
from bpr_service.runtime.model_store import ModelStore

PATCH_FORMATS = {"instance": "coco", "semantic": "labels", "panoptic": "panoptic"}
"""The ``--format`` of ``bpr-train patches`` that a task's data has."""


def check_recipe(request: TrainRequest, settings: JobSettings) -> None:
    """Refuse a recipe that the trainer would not take, and a parent that does not exist, before any work begins.

    Raises:
        UnknownName, ConfigError, NotFoundError.
    """
    recipe = request.checked_recipe()
    if recipe.patch.scheme != "dense":
        fix = "leave it out"
        raise ConfigError("recipe.patch.scheme", expected="dense", got=repr(recipe.patch.scheme), fix=fix)
    _check_task(request)
    if request.parent is not None:
        ModelStore(settings.models).get(request.parent)


def _check_task(request: TrainRequest) -> None:
    """Refuse a request that lacks what it needs: PNGs of panoptic files, the number of classes, data to compare on."""
    if request.promote_if_better and request.held_out is None:
        raise ConfigError(
            "promote_if_better", expected="held_out, on which models are compared", got="none", fix="name held-out data"
        )
    for name, part in (("", request), ("held_out.", request.held_out)):
        if request.task == "panoptic" and part is not None and part.predictions and not part.panoptic_dir:
            raise ConfigError(f"{name}panoptic_dir", expected="the folder of the predictions' PNGs", got="none")
    if request.task == "semantic" and request.held_out is not None and request.held_out.classes is None:
        raise ConfigError("held_out.classes", expected="the number of classes", got="none", fix="set it")


def train(context: Context, row: JobRow) -> str:
    """Build the patch set and train; the folder of the exported model. Goes on from the last checkpoint."""
    import yaml

    files = TrainingFiles(context, row)
    context.database.update_job(row.id, row.attempt, started=row.started or True)
    with files.lock():
        done = files.read("trained.json")
        if done is not None:
            return str(done["path"])
        data = yaml.safe_dump(files.config(), sort_keys=False).encode()
        path = files.folder / "config.yaml"
        if not path.exists():
            context.patiently(row, lambda: storage.write_bytes(str(path), data))
        if files.read("patches.json") is None:
            _build_patches(files)
        child = Child(
            files, [*files.trainer, "refiner", str(path), "--out", str(files.folder / "run"), "--json-progress"]
        )
        child.wait()
        if child.exported is None:
            raise ModelError("the trainer ended without an exported model", fix=f"see the log of job {row.id}")
        files.write("trained.json", {"path": child.exported})
        return child.exported


def _build_patches(files: TrainingFiles) -> None:
    """Cut the patch set to the sizes that the trainer's configuration has.

    An image that cannot be read is left out and named in the log, as everywhere; the set's manifest counts them.
    """
    request, folder, patch = files.request, files.folder / "patches", files.config()["patch"]
    command = [*files.trainer, "patches", "--format", PATCH_FORMATS[request.task], "--images", request.images]
    command += ["--truth", request.ground_truth, "--out", str(folder)]
    command += ["--predictions", request.predictions] if request.predictions else []
    if request.task == "panoptic":
        command += ["--panoptic-dir", str(Path(request.ground_truth).with_suffix(""))]
        command += ["--predictions-dir", request.panoptic_dir] if request.panoptic_dir else []
    for key in ("patch_size_px", "padding_px"):
        if key in patch:
            command += [f"--{key.replace('_', '-')}", str(patch[key])]
    Child(files, command, accept=(0, 1)).wait()
    manifest = files.read("patches/manifest.json")
    if manifest is None:
        raise ModelError("no patch set was built", fix=f"see the log of job {files.row.id}")
    counts = {key: manifest[key] for key in ("patches", "images", "images_skipped")}
    files.write("patches.json", {"command": command, **counts})


def register(context: Context, row: JobRow, exported: str, comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Register the exported model, once, as the candidate; promote it where the rule says so. The job's result."""
    from bpr_service import __version__

    files = TrainingFiles(context, row)
    request = files.request
    recipe = files.config()
    provenance = {
        "job": row.id,
        "parent": files.parent()[0] if "start_from" in recipe["network"] else None,
        "recipe": recipe,
        "data": {name: _hash(getattr(request, name)) for name in ("ground_truth", "predictions")},
        "patches": {key: value for key, value in (files.read("patches.json") or {}).items() if key != "command"},
        "code": __version__,
        "comparison": dict(comparison),
    }
    version = context.patiently(row, lambda: files.store.add(exported, request.name, provenance))
    done = files.read("registered.json")
    if done is None:
        files.store.propose(version.ref)
        promoted = bool(request.promote_if_better and comparison.get("better"))
        if promoted:
            files.store.activate(version.ref)
        done = {"version": version.ref, "promoted": promoted, "comparison": dict(comparison)}
        files.write("registered.json", done)
        context.log(row.id, f"registered {version.ref}{', now active' if promoted else ' as the candidate'}")
    context.database.update_job(row.id, row.attempt, result=done, message="", ended=True)
    return done


def _hash(address: str | None) -> str | None:
    """SHA-256 of a file; of a local folder, over the names and hashes of its files; None for nothing."""
    if address is None:
        return None
    try:
        if storage.is_remote(address) or not Path(address).is_dir():
            return storage.sha256(address)
        whole = hashlib.sha256()
        for path in sorted(path for path in Path(address).rglob("*") if path.is_file()):
            whole.update(f"{path.relative_to(address)} {storage.sha256(str(path))}\n".encode())
        return whole.hexdigest()
    except BprError:
        return None
