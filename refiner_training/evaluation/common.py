"""What the three evaluations share: their outcome, processes over images, and the rules of JSON."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Job = TypeVar("Job")
Done = TypeVar("Done")


@dataclass(frozen=True, slots=True)
class Failure:
    """An item that could not be measured and was left out."""

    file: str
    entry: str
    error: str


@dataclass(frozen=True, slots=True)
class Example:
    """One measured object: an instance, a segment, or a class of one image."""

    label: str  # of its class
    image: str
    iou_before: float | None
    iou_after: float
    area_px: int
    key: tuple[Any, ...]  # how `Evaluation.crop` finds its pixels

    @property
    def gain(self) -> float:
        """IoU after less IoU before; the IoU itself where there is no before."""
        return self.iou_after - (self.iou_before or 0.0)


@dataclass(frozen=True, slots=True)
class Crop:
    """The pixels of one example: (h, w, 3) uint8 RGB where there is an image, and (h, w) {0, 1} masks."""

    image: NDArray[np.uint8] | None
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    before: NDArray[np.uint8] | None


@dataclass(slots=True)
class Evaluation:
    """The outcome of one evaluation: `summary` is flat; masks and pixels of examples are read on demand."""

    task: str
    summary: dict[str, Any]
    per_class: dict[str, dict[str, Any]]
    per_class_before: dict[str, dict[str, Any]] | None
    examples: list[Example]
    failures: list[Failure]
    crop: Callable[[Example], Crop]
    inputs: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give all that was measured in JSON's own types; a number that is not finite becomes null."""
        out = {"task": self.task, **self.summary, "per_class": self.per_class}
        if self.per_class_before is not None:
            out["before"] = {**out["before"], "per_class": self.per_class_before}
        out["inputs"] = self.inputs
        out["failed"] = len(self.failures)
        out["failures"] = [{"file": f.file, "entry": f.entry, "error": f.error} for f in self.failures]
        plain: dict[str, Any] = plain_json(out)
        return plain


def plain_json(value: Any) -> Any:
    """Turn numpy's numbers into Python's, and what JSON cannot say (nan, infinities) into None."""
    if isinstance(value, dict):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def default_workers() -> int:
    """Give the number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(
    work: Callable[[Job], Done],
    jobs: Sequence[Job],
    *,
    workers: int | None,
    label: str,
    serial_below: int,
    preload: str,
) -> Iterator[Done]:
    """Yield ``work(job)`` in order, from processes where there are jobs enough to pay for their start.

    Processes come from a fork server, which is safe whatever threads the caller runs; `work` and the jobs are
    pickled; `preload` is the module it needs, imported once. The progress bar goes to stderr where that is a terminal.
    """
    count = min(workers or default_workers(), len(jobs))
    if count <= 1 or len(jobs) < serial_below:
        yield from _progress(map(work, jobs), len(jobs), label)
        return
    context = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
    if sys.platform != "win32":
        context.set_forkserver_preload([preload])
    chunk = max(1, min(32, len(jobs) // (4 * count)))
    with ProcessPoolExecutor(max_workers=count, mp_context=context) as pool:
        first = work(jobs[0])  # here, so that kernels are compiled once and the others find them on disk
        results = pool.map(work, jobs[1:], chunksize=chunk)
        yield from _progress(chain([first], results), len(jobs), label)


def _progress(results: Iterable[Done], total: int, label: str) -> Iterable[Done]:
    from rich.console import Console
    from rich.progress import track

    quiet = not sys.stderr.isatty()
    return track(results, label, total, console=Console(stderr=True), disable=quiet, transient=True)
