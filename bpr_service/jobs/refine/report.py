"""The report of a refine run: totals, every image, times, and figures before and after."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bpr_service import storage
from bpr_service.jobs.requests import RefineRequest

NAMED = 1000
"""Failures and warnings that totals name; every image has all of its own in its line of the report."""


class Totals:
    """Sums over the headers of all units."""

    def __init__(self) -> None:
        self.images = self.images_failed = self.failed_count = self.refined = self.changed_px = self.patches = 0
        self.unchanged: dict[str, int] = {}
        self.simplified: dict[str, float] = {}
        self.failed: list[str] = []
        self.warnings: list[str] = []

    def add(self, header: Mapping[str, Any]) -> None:
        self.images += 1
        self.images_failed += bool(header["failed"])
        self.refined += header["refined"]
        self.changed_px += header["changed_px"]
        self.patches += header["patches"]
        for reason, count in header["unchanged"].items():
            self.unchanged[reason] = self.unchanged.get(reason, 0) + count
        for what, value in header.get("simplified", {}).items():
            self.simplified[what] = self.simplified.get(what, 0) + value
        self.failed_count += len(header["failed"])
        self.failed += header["failed"][: NAMED - len(self.failed)]
        self.warnings += header["warnings"][: NAMED - len(self.warnings)]

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "images_with_failures": self.images_failed,
            "masks_refined": self.refined,
            "masks_unchanged": dict(sorted(self.unchanged.items())),
            "failed_count": self.failed_count,
            "failed": self.failed,
            "warnings": self.warnings,
            "patches": self.patches,
            "changed_px": self.changed_px,
            **({"simplified": self.simplified} if self.simplified else {}),
        }


class Report:
    """Totals of a run and, in a local file until it is written, a line for every image.

    Args:
        folder: where the lines wait.
    """

    def __init__(self, folder: Path) -> None:
        self.totals = Totals()
        self._lines = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def add(self, header: Mapping[str, Any]) -> None:
        """Note a unit by the header of its frame."""
        self.totals.add(header)
        line = {key: value for key, value in header.items() if key not in ("records", "files")}
        first = self.totals.images == 1
        self._lines.write((b"\n  " if first else b",\n  ") + json.dumps(line, ensure_ascii=False).encode())

    def write(self, address: str, head: Mapping[str, Any]) -> None:
        """Write the report: ``head``, the totals, the lines."""
        self._lines.seek(0)
        with storage.replacing(address) as out:
            text = json.dumps({**head, **self.totals.to_json()}, ensure_ascii=False, indent=1)
            out.write(text[: text.rindex("\n}")].encode() + b',\n "units": [')
            shutil.copyfileobj(self._lines, out)
            out.write(b"\n ]\n}\n")


def evaluate_command(request: RefineRequest, ground_truth: str, predictions: str, classes: int | None) -> list[str]:
    """The ``bpr-train evaluate`` call that measures ``predictions``."""
    if request.task == "semantic":
        return ["semantic", "--labels", ground_truth, "--predictions", predictions, "--classes", str(classes), "--json"]
    if request.task == "panoptic":
        pngs = str(Path(predictions)) if predictions == request.out else str(request.panoptic_dir)
        file = storage.join(predictions, "panoptic.json") if predictions == request.out else predictions
        gt_pngs = str(Path(ground_truth).with_suffix(""))
        return ["panoptic", "--dataset", ground_truth, "--panoptic-dir", gt_pngs,
                "--predictions", file, "--predictions-dir", pngs, "--json"]  # fmt: skip
    return ["instance", "--dataset", ground_truth, "--predictions", predictions, "--json"]


def figures(request: RefineRequest, ground_truth: str, classes: int | None, trainer: list[str]) -> dict[str, Any]:
    """Before and after, measured by ``bpr-train evaluate`` in a process of its own; says so where it cannot be."""
    out: dict[str, Any] = {}
    for when, predictions in (("before", request.predictions), ("after", request.out)):
        command = [*trainer, "evaluate", *evaluate_command(request, ground_truth, predictions, classes)]
        out[when] = run_json(command)
        out[f"{when}_command"] = " ".join(command)
    return out


def run_json(command: list[str]) -> dict[str, Any]:
    """The JSON that a command prints last, or ``{"error": ...}``; exit code 1 is a result with items left out."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return {"error": f"{command[0]}: {error.strerror}; install bpr-service with the extra 'train'"}
    figures = read_json(done.stdout) if done.returncode in (0, 1) else {"error": ""}
    if "error" in figures and done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return figures


def read_json(text: str) -> dict[str, Any]:
    """The JSON object that ends ``text``, or ``{"error": ...}``."""
    try:
        value = json.loads(text[text.index("{") :])
    except ValueError:
        return {"error": "no JSON in the output"}
    return value if isinstance(value, dict) else {"value": value}


def default_trainer() -> list[str]:
    """``bpr-train`` beside this Python, else whatever the PATH has."""
    beside = Path(sys.executable).with_name("bpr-train")
    return [str(beside)] if beside.exists() else ["bpr-train"]
