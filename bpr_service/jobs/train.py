"""A train job: the trainer as a child process, then measured, registered, and perhaps promoted.

The run's folder holds what the trainer needs to go on (its checkpoints); a step that was done leaves a file that says
so, and is skipped. A lock on the folder keeps a second trainer out while the first one lives.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bpr_service import storage
from bpr_service.config import get_preset
from bpr_service.core.weights import bundled_models, find_model
from bpr_service.errors import BprError, CancelledError, ConfigError, LimitError, ModelError, NotFoundError, UnknownName
from bpr_service.jobs.database import JobRow
from bpr_service.jobs.refine import Context
from bpr_service.jobs.report import default_trainer, evaluate_command, run_json
from bpr_service.jobs.requests import RefineRequest, TrainRequest
from bpr_service.jobs.roots import Roots
from bpr_service.jobs.settings import JobSettings
from bpr_service.runtime.model_store import ModelStore

RECIPE: dict[str, set[str]] = {
    "network": {"name", "arguments", "start_from"},
    "patch": {"patch_size_px", "padding_px", "network_size_px", "nms_threshold", "scheme", "cover"},
    "optim": {
        "name", "lr", "weight_decay", "momentum", "schedule", "poly_power", "warmup_steps", "gradient_clip",
        "ema_decay",
    },
    "loss": {"band_px", "band_weight", "padding_weight"},
    "run": {
        "steps", "batch_size", "accelerator", "precision", "devices", "nodes", "sync_batchnorm", "workers", "threads",
        "seed", "checkpoint_every", "validate_every", "validation_batches", "patience",
    },
}  # fmt: skip
"""What a recipe may set: sections of the trainer's configuration; data and name are the job's own."""
PATCH_FORMATS = {"instance": "coco", "semantic": "labels", "panoptic": "panoptic"}
"""The ``--format`` of ``bpr-train patches`` that a task's data has."""
PRIMARY = {"instance": ("boundary_AP", "AP"), "semantic": ("AF", "mIoU"), "panoptic": ("boundary_PQ", "PQ")}
"""The figure that decides a task's promotion: the first of these that was measured."""

WAITING = "waiting: the trainer of a worker that gave no sign of life still runs"


def check_recipe(request: TrainRequest, settings: JobSettings) -> None:
    """Refuse a recipe with unknown keys, and a parent that does not exist, before any work begins.

    Raises:
        UnknownName, ConfigError, NotFoundError.
    """
    for section, values in (request.recipe or {}).items():
        if section not in RECIPE:
            raise UnknownName("section of a recipe", section, RECIPE)
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"recipe.{section}", expected="keys and values", got=repr(values)[:60], fix="see docs/jobs.md"
            )
        for key in values:
            if key not in RECIPE[section]:
                raise UnknownName(f"key of recipe.{section}", key, RECIPE[section])
    _check_task(request)
    if request.parent is not None:
        ModelStore(settings.models).get(request.parent)


def _check_task(request: TrainRequest) -> None:
    """Refuse a request that lacks what its task needs: the PNGs of panoptic files, the number of classes."""
    for name, part in (("", request), ("held_out.", request.held_out)):
        if request.task == "panoptic" and part is not None and part.predictions and not part.panoptic_dir:
            raise ConfigError(f"{name}panoptic_dir", expected="the folder of the predictions' PNGs", got="none")
    if request.task == "semantic" and request.held_out is not None and request.held_out.classes is None:
        raise ConfigError("held_out.classes", expected="the number of classes", got="none", fix="set it")


class Run:
    """The files of one train job."""

    def __init__(self, context: Context, row: JobRow) -> None:
        self.context, self.row = context, row
        self.folder = context.settings.job_folder(row.id)
        self.folder.mkdir(parents=True, exist_ok=True)
        request = Roots(context.settings.roots).confine(TrainRequest(**row.request))
        assert isinstance(request, TrainRequest)
        self.request = request
        self.store = ModelStore(context.settings.models)
        self.trainer = list(context.settings.trainer) or default_trainer()

    def read(self, name: str) -> dict[str, Any] | None:
        """A step's result, None when it is not done."""
        try:
            value: dict[str, Any] = json.loads((self.folder / name).read_bytes())
        except FileNotFoundError:
            return None
        return value

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        data = json.dumps(value, indent=1, ensure_ascii=False).encode()
        self.context.patiently(self.row, lambda: storage.write_bytes(str(self.folder / name), data))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run; waits, noticing a cancellation, while another worker's trainer lives."""
        with (self.folder / "lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if self.context.cancelled(self.row):
                        raise CancelledError(f"job {self.row.id} was cancelled") from None
                    self.context.database.update_job(self.row.id, self.row.attempt, message=WAITING)
                    self.context.alive()
                    self.context.stopping()
                    time.sleep(self.context.settings.poll_s)
            self.context.database.update_job(self.row.id, self.row.attempt, message="")
            yield

    def parent(self) -> tuple[str, str]:
        """Name and folder of the version to start from and to compare with; fixed when the job first asks.

        The one asked for; else the active version of the name; else the bundled model of that name, or of the preset.
        """
        fixed = self.read("parent.json")
        if fixed is None:
            fixed = {"parent": self._parent()}
            self.write("parent.json", fixed)
        ref = str(fixed["parent"])
        return ref, self.store.fetch(ref) if "@" in ref else str(find_model(ref))

    def _parent(self) -> str:
        name = self.request.name
        try:
            return self.store.get(self.request.parent or f"{name}@active").ref
        except NotFoundError:
            if self.request.parent is not None:
                raise
        return name if name in bundled_models() else get_preset(self.request.preset).model

    def config(self) -> dict[str, Any]:
        """The trainer's configuration: the recipe, or one made from the parent and the preset; and the data."""
        config: dict[str, Any] = json.loads(json.dumps(self.request.recipe or {}))
        _, folder = self.parent()
        card = json.loads(Path(folder, "card.json").read_bytes())
        config.setdefault("network", {**card["network"], "start_from": folder})
        config.setdefault("patch", card["patch"])
        config["name"] = self.request.name
        config["data"] = {"kind": "patches", "patches": str(self.folder / "patches")}
        config["notes"] = {**config.get("notes", {}), "job": self.row.id}
        return config


def train(context: Context, row: JobRow) -> str:
    """Build the patch set and train; the folder of the exported model. Goes on from the last checkpoint."""
    import yaml

    run = Run(context, row)
    context.database.update_job(row.id, row.attempt, started=row.started or True)
    with run.lock():
        done = run.read("trained.json")
        if done is not None:
            return str(done["path"])
        data = yaml.safe_dump(run.config(), sort_keys=False).encode()
        path = run.folder / "config.yaml"
        if not path.exists():
            context.patiently(row, lambda: storage.write_bytes(str(path), data))
        if not (run.folder / "patches.json").exists():
            request = run.request
            command = [*run.trainer, "patches", "--format", PATCH_FORMATS[request.task], "--images", request.images]
            command += ["--truth", request.ground_truth, "--out", str(run.folder / "patches")]
            command += ["--predictions", request.predictions] if request.predictions else []
            if request.task == "panoptic":
                command += ["--panoptic-dir", str(Path(request.ground_truth).with_suffix(""))]
                command += ["--predictions-dir", request.panoptic_dir] if request.panoptic_dir else []
            Child(run, command).wait()
            run.write("patches.json", {"command": command})
        child = Child(run, [*run.trainer, "refiner", str(path), "--out", str(run.folder / "run"), "--json-progress"])
        child.wait()
        if child.exported is None:
            raise ModelError("the trainer ended without an exported model", fix=f"see the log of job {row.id}")
        run.write("trained.json", {"path": child.exported})
        return child.exported


class Child:
    """A trainer process in its own session; it dies with this process. Its lines go to the job's log."""

    def __init__(self, run: Run, command: list[str]) -> None:
        self.run, self.command = run, command
        self.exported: str | None = None
        self.begun = time.monotonic()
        self.last_lines: list[str] = []
        self.noted = 0.0

    def wait(self) -> None:
        """Run the command to its end.

        Raises:
            CancelledError: the job was cancelled; the whole group is killed.
            LimitError: its time or disk limit was passed.
            ModelError: it failed; the message has its last lines.
        """
        context, row = self.run.context, self.run.row
        context.log(row.id, "$ " + " ".join(self.command))
        launcher = [sys.executable, "-m", "bpr_service.jobs.child", str(os.getpid())]
        process = subprocess.Popen(
            [*launcher, *self.command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        assert process.stdout is not None
        reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            checked = 0.0
            while process.poll() is None:
                context.alive()
                context.stopping()
                if context.cancelled(row):
                    raise CancelledError(f"job {row.id} was cancelled")
                if time.monotonic() - checked > 10 * context.settings.poll_s:
                    checked = time.monotonic()
                    self._check_limits()
                self._wait_a_little(process)
            reader.join(5)
        finally:
            kill_group(process)
        if process.returncode:
            tail = " | ".join(self.last_lines[-3:]) or "no output"
            raise ModelError(
                f"the trainer failed with exit code {process.returncode}", got=tail, fix="see the job's log"
            )

    def _wait_a_little(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(self.run.context.settings.poll_s)
        except subprocess.TimeoutExpired:
            return

    def _check_limits(self) -> None:
        request = self.run.request
        spent = float((self.run.read("time.json") or {"s": 0.0})["s"]) + time.monotonic() - self.begun
        self.run.write("time.json", {"s": spent})
        self.begun = time.monotonic()
        size_mb = sum(p.stat().st_size for p in self.run.folder.rglob("*") if p.is_file()) / 1e6
        for what, got, limit, unit in (
            ("time_limit_s", spent, request.time_limit_s, "s"),
            ("disk_limit_mb", size_mb, request.disk_limit_mb, "MB"),
        ):
            if got > limit:
                expected, fix = f"at most {limit:g} {unit}", f"submit it with a larger {what}, or less to do"
                raise LimitError(f"the job is past its {what}", expected=expected, got=f"{got:.1f} {unit}", fix=fix)

    def _read(self, lines: IO[bytes]) -> None:
        context, row = self.run.context, self.run.row
        for raw in lines:
            line = raw.decode("utf-8", "replace").rstrip()
            try:
                event = json.loads(line) if line.startswith("{") else {}
            except ValueError:
                event = {}
            if event.get("event") == "progress":
                progress = {key: value for key, value in event.items() if key != "event"}
                progress |= {"done": event.get("step"), "total": event.get("steps")}
                if time.monotonic() - self.noted >= context.settings.poll_s or progress["done"] == progress["total"]:
                    self.noted = time.monotonic()
                    context.database.update_job(row.id, row.attempt, progress=progress)
            elif event.get("event") == "exported":
                self.exported = str(event["path"])
            if line:
                self.last_lines = [*self.last_lines[-9:], line]
                context.log(row.id, line)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a child and everything it started: politely, then for good."""
    for number, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue


def compare(context: Context, row: JobRow, exported: str) -> dict[str, Any]:
    """Measure the new model, the active one and the coarse predictions on the held-out data."""
    run = Run(context, row)
    known = run.read("comparison.json")
    if known is not None:
        return known
    comparison: dict[str, Any] = {"figures": {}, "better": None}
    if run.request.held_out is not None:
        models = {"candidate": exported}
        comparison["active"], models["active"] = run.parent()
        comparison["figures"]["coarse"] = _measure(run, None)
        for name, model in models.items():
            context.stopping()
            comparison["figures"][name] = _measure(run, _refined(run, name, model))
        comparison |= _verdict(comparison["figures"], PRIMARY[run.request.task])
    run.write("comparison.json", comparison)
    return comparison


def _refined(run: Run, name: str, model: str) -> str:
    """The held-out predictions refined by one model."""
    from bpr_service.jobs.batch import Batch, run_batch

    held = run.request.held_out
    assert held is not None
    out = str(run.folder / f"held_out_{name}") + (".json" if run.request.task == "instance" else "")
    request = RefineRequest(
        task=run.request.task,
        images=held.images,
        predictions=held.predictions,
        dataset=held.ground_truth if run.request.task == "instance" else None,
        format=held.format,
        panoptic_dir=held.panoptic_dir,
        out=out,
        preset=run.request.preset,
        model=model,
    )
    options = Batch(device=run.context.device, workers=run.context.workers, resume=True)
    run_batch(request, options, on_unit=run.context.alive)
    return out


def _measure(run: Run, refined: str | None) -> dict[str, Any]:
    """Figures of the held-out predictions, or of what a model made of them."""
    held = run.request.held_out
    assert held is not None
    request = RefineRequest(
        task=run.request.task,
        images=held.images,
        predictions=held.predictions,
        panoptic_dir=held.panoptic_dir,
        out=refined or "",
    )
    arguments = evaluate_command(request, held.ground_truth, refined or held.predictions, held.classes)
    figures = run_json([*run.trainer, "evaluate", *arguments])
    if "error" in figures:
        raise ModelError("the model could not be measured", got=str(figures["error"]), fix="see the job's log")
    return figures


def _verdict(figures: Mapping[str, Mapping[str, Any]], measures: tuple[str, ...]) -> dict[str, Any]:
    """Whether the candidate's primary figure is better than the active model's."""
    new, old = figures["candidate"], figures["active"]
    for measure in measures:
        a, b = _number(new, measure), _number(old, measure)
        if a is not None and b is not None:
            return {"measure": measure, "candidate_figure": a, "before_figure": b, "better": a > b}
    return {"measure": None, "better": None}


def _number(figures: Mapping[str, Any], measure: str) -> float | None:
    value = figures.get(measure)
    return float(value) if isinstance(value, int | float) else None


def register(context: Context, row: JobRow, exported: str, comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Register the exported model, once, as the candidate; promote it where the rule says so. The job's result."""
    from bpr_service import __version__

    run = Run(context, row)
    request = run.request
    parent, _ = run.parent()
    provenance = {
        "job": row.id,
        "parent": parent,
        "recipe": run.config(),
        "data": {name: _hash(getattr(request, name)) for name in ("ground_truth", "predictions")},
        "code": __version__,
        "comparison": dict(comparison),
    }
    version = context.patiently(row, lambda: run.store.add(exported, request.name, provenance))
    done = run.read("registered.json")
    if done is None:
        run.store.propose(version.ref)
        promoted = bool(request.promote_if_better and comparison.get("better"))
        if promoted:
            run.store.activate(version.ref)
        done = {"version": version.ref, "promoted": promoted, "comparison": dict(comparison)}
        run.write("registered.json", done)
        context.log(row.id, f"registered {version.ref}{', now active' if promoted else ' as the candidate'}")
    context.database.update_job(row.id, row.attempt, result=done, message="", ended=True)
    return done


def _hash(address: str | None) -> str | None:
    """SHA-256 of a file; None for a folder, or nothing."""
    if address is None or (not storage.is_remote(address) and Path(address).is_dir()):
        return None
    try:
        return storage.sha256(address)
    except BprError:
        return None
