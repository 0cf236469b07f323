"""The files of one train job, and what is fixed in them for all its attempts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bpr_service import storage
from bpr_service.config import get_preset
from bpr_service.errors import CancelledError, NotFoundError
from bpr_service.jobs.context import Context
from bpr_service.jobs.refine.report import default_trainer
from bpr_service.jobs.requests import TrainRequest
from bpr_service.jobs.roots import Roots
from bpr_service.jobs.tables import JobRow
from bpr_service.network.weights import bundled_models, find_model
from bpr_service.runtime.model_store import ModelStore

WAITING = "waiting: the trainer of a worker that gave no sign of life still runs"


class TrainingFiles:
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
        lock = FileLock(self.folder / "lock")
        while True:
            try:
                lock.acquire(timeout=0)
                break
            except Timeout:
                if self.context.cancelled(self.row):
                    raise CancelledError(f"job {self.row.id} was cancelled") from None
                self.context.database.update_job(self.row.id, self.row.attempt, message=WAITING)
                self.context.alive()
                self.context.stopping()
                time.sleep(self.context.settings.poll_s)
        try:
            self.context.database.update_job(self.row.id, self.row.attempt, message="")
            yield
        finally:
            lock.release()

    def parent(self) -> tuple[str, str]:
        """Name and folder of the version to start from: the one asked for, else the active one."""
        return self._fixed("parent")

    def active(self) -> tuple[str, str]:
        """Name and folder of the version to compare with, the one that would be replaced.

        The active version of the name; else the bundled model of that name, or of the preset.
        """
        return self._fixed("active")

    def _fixed(self, which: str) -> tuple[str, str]:
        """What was active when the job first asked stays so for all its attempts."""
        versions = self.read("versions.json")
        if versions is None:
            active = self._active()
            asked = self.request.parent
            versions = {"active": active, "parent": self.store.get(asked).ref if asked else active}
            self.write("versions.json", versions)
        ref = str(versions[which])
        return ref, self.store.fetch(ref) if "@" in ref else str(find_model(ref))

    def _active(self) -> str:
        name = self.request.name
        try:
            return self.store.get(f"{name}@active").ref
        except NotFoundError:
            return name if name in bundled_models() else get_preset(self.request.preset).model

    def config(self) -> dict[str, Any]:
        """The trainer's configuration: the recipe, or one made from the parent and the preset; and the data."""
        config: dict[str, Any] = json.loads(json.dumps(self.request.recipe or {}))
        _, folder = self.parent()
        card = json.loads(Path(folder, "card.json").read_bytes())
        if "network" not in config:
            config["network"] = {**card["network"], "start_from": folder}
        elif self.request.parent is not None:
            config["network"]["start_from"] = folder
        config.setdefault("patch", card["patch"])
        config["name"] = self.request.name
        config["data"] = {"kind": "patches", "patches": str(self.folder / "patches")}
        config["notes"] = {**config.get("notes", {}), "job": self.row.id}
        return config
