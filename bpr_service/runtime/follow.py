"""A running server takes up what others activate: a retraining job, a command, another server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from bpr_service.errors import BprError, ConflictError, NotReadyError

if TYPE_CHECKING:
    from bpr_service.runtime.engine import Engine

log = logging.getLogger(__name__)


AGAIN_S, AGAIN_MAX_S = 10.0, 600.0
"""Pause before a version that could not be served is tried again, doubled each time."""


class StoreFollower:
    """Looks every ``every_s`` at which versions a start would choose now, and has the engine serve them.

    The engine loads and warms a version before it swaps it in, and requests in flight finish on the one they began
    with, so none is lost. A version that cannot be served (storage that fails, a damaged file) is tried again after a
    pause, and the one before stays meanwhile.

    Args:
        engine: whose models are swapped.
        chosen: the version of a model that a start would serve; may raise `BprError` or `OSError`.
        every_s: pause between two looks, in seconds.
        clock: seconds, for the pauses after a failure.
    """

    def __init__(
        self,
        engine: Engine,
        chosen: Callable[[str], str],
        *,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine, self.chosen, self.every_s = engine, chosen, every_s
        self._clock = clock
        self._failed: dict[str, tuple[str, float, float]] = {}  # of a model: version, pause, when to try it again
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-follower", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Look no more. An activation that is under way is not waited for."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            try:
                if self.engine.state == "ready":
                    self.look()
            except Exception:  # whatever it was: the next look may do better, and nobody else looks
                log.exception("the model store could not be followed")

    def look(self) -> None:
        """Look once."""
        for name, served in {lane.model: lane.version for lane in self.engine.lanes()}.items():
            version = ""
            try:
                version = self.chosen(name)
                if version == served:
                    self._failed.pop(name, None)
                    continue
                if self._waits(name, version):
                    continue
                self.engine.activate(name, version, partial(self._still, name, version))
                self._failed.pop(name, None)
                log.info("model %s: version %s was chosen in the store and is served now", name, version)
            except (ConflictError, NotReadyError):
                continue  # somebody else activates right now: the next look will see
            except (BprError, OSError) as error:
                log.warning("model %s: what the store chose cannot be served: %s", name, error)
                self._put_off(name, version)

    def _waits(self, name: str, version: str) -> bool:
        """Whether ``version`` failed and its pause is not over; another version is tried at once."""
        failed, _, again_at = self._failed.get(name, ("", 0.0, 0.0))
        return failed == version and self._clock() < again_at

    def _put_off(self, name: str, version: str) -> None:
        failed, pause_s, _ = self._failed.get(name, ("", 0.0, 0.0))
        pause_s = min(AGAIN_MAX_S, 2 * pause_s) if failed == version else AGAIN_S
        self._failed[name] = (version, pause_s, self._clock() + pause_s)

    def _still(self, name: str, version: str) -> None:
        """Raise where another version was chosen meanwhile; the engine then takes its step back."""
        if self.chosen(name) != version:
            raise ConflictError(f"model {name}: another version was chosen meanwhile")
