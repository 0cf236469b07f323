"""A running server takes up what others activate: a retraining job, a command, another server."""

from __future__ import annotations

import logging
import threading
from functools import partial
from typing import TYPE_CHECKING

from bpr_service.errors import BprError, ConflictError, NotReadyError

if TYPE_CHECKING:
    from bpr_service.runtime.engine import Engine
    from bpr_service.runtime.model_store import ModelStore

log = logging.getLogger(__name__)


class StoreFollower:
    """Looks at the store's active versions every ``every_s`` and has the engine serve them.

    The engine loads and warms a version before it swaps it in, and requests in flight finish on the one they began
    with, so none is lost. A version that cannot be loaded is logged once, and the one before stays.
    """

    def __init__(self, engine: Engine, store: ModelStore, *, every_s: float = 5.0) -> None:
        self.engine, self.store, self.every_s = engine, store, every_s
        self._refused: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-follower", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends after the activation that may be under way."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            if self.engine.state == "ready":
                self.look()

    def look(self) -> None:
        """Look once."""
        for name, served in {lane.model: lane.version for lane in self.engine.lanes()}.items():
            active = None
            try:
                active = self.store.aliases(name)["active"]
                if active is None or active == served or self._refused.get(name) == active:
                    continue
                self.engine.activate(name, active, partial(self._still, name, active))
                log.info("model %s: version %s was activated in the store and is served now", name, active)
            except (ConflictError, NotReadyError):
                continue  # somebody else activates right now: the next look tells
            except (BprError, OSError) as error:
                log.warning("model %s: what is active in the store cannot be served: %s", name, error)
                if active is not None:
                    self._refused[name] = active

    def _still(self, name: str, version: str) -> None:
        """Raise where another version was activated meanwhile; the engine then takes its step back."""
        if self.store.aliases(name)["active"] != version:
            raise ConflictError(f"model {name}: another version was activated meanwhile")
