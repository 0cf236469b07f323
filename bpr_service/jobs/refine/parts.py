"""Refine parts of a plan: the one way in which a batch, a worker, an array task and a Ray actor do it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from bpr_service.formats import PredictionFormat, Unit
from bpr_service.jobs.refine.journal import PartWriter, sealed
from bpr_service.jobs.refine.loaders import RefinerPool
from bpr_service.jobs.refine.place import Place
from bpr_service.jobs.refine.plan import Plan
from bpr_service.jobs.refine.unit import Outcome, untouched
from bpr_service.jobs.requests import RefineRequest

R = TypeVar("R")


class Watcher:
    """What a driver is told while parts are refined. The methods of this class do nothing."""

    def begun(self, part: int, units: int, done: int) -> str:
        """A part is taken up, with ``done`` of its units done.

        Returns:
            Why its first unit that is not done is left as it is; '' where it is to be refined.
        """
        return ""

    def refined(self, writer: PartWriter, outcome: Outcome) -> None:
        """A unit is done and written down. What this raises ends the run; all that was written stays."""

    def finished(self, part: int, units: int, failed: int | None) -> None:
        """A part is whole; ``failed`` is None where it was found so."""

    def write(self, what: Callable[[], R]) -> R:
        """Do what writes to the place: here it may be tried again."""
        return what()


def refine_parts(
    pool: RefinerPool,
    request: RefineRequest,
    file: PredictionFormat,
    place: Place,
    plan: Plan,
    parts: Iterable[int],
    watcher: Watcher,
) -> int:
    """Refine what these parts still lack, all in one stream.

    Returns:
        How many units that was.

    Raises:
        ConfigError: the plan has no such part.
        ModelError: the pool's model is another one than the plan's.
        DeviceError: the device failed.
        StorageError: the place refuses.
    """
    plan.check_model(pool.refiner.card.sha256)
    owner: dict[int, PartWriter] = {}
    open_writers: dict[PartWriter, int] = {}
    count = 0

    def record(writer: PartWriter, outcome: Outcome) -> None:
        watcher.write(lambda: writer.add(outcome))
        watcher.refined(writer, outcome)

    def finish(writer: PartWriter) -> None:
        watcher.write(writer.finish)
        watcher.finished(writer.part, len(writer.done), writer.failed)

    def todo() -> Iterator[Unit]:
        for part in parts:
            _, _, _, units = plan.span(place, part)
            if sealed(place, part):
                watcher.finished(part, units, None)
                continue
            writer = watcher.write(lambda part=part: PartWriter(place, part))  # type: ignore[misc]
            open_writers[writer] = units - len(writer.done)
            missing = (unit for unit in plan.read(place, part) if unit.number not in writer.done)
            why = watcher.begun(part, units, len(writer.done))
            if why and (unit := next(missing, None)) is not None:
                failed = [f"{unit.name}: {why}"]
                given_up = Outcome(unit.number, unit.image, failed=failed, encoded=untouched(file, unit))
                watcher.write(lambda writer=writer, outcome=given_up: writer.add(outcome))  # type: ignore[misc]
                open_writers[writer] -= 1
            if not open_writers[writer]:
                del open_writers[writer]
                finish(writer)
            for unit in missing:
                owner[unit.number] = writer
                yield unit

    try:
        for outcome in pool.run(file, todo(), ignore_label=request.ignore_label, audit=request.kind == "audit"):
            writer = owner.pop(outcome.number)
            record(writer, outcome)
            open_writers[writer] -= 1
            count += 1
            if not open_writers[writer]:
                del open_writers[writer]
                finish(writer)
    finally:
        for writer in open_writers:
            writer.close()
    return count
