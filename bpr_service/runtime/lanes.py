"""The models that an engine serves: one warm lane a preset, and swapping one for another while it serves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from bpr_service.errors import BprError, ConflictError, ModelError, UnknownName
from bpr_service.runtime.device import DeviceOwner
from bpr_service.runtime.settings import EngineEvents, ModelSource
from bpr_service.runtime.work import Lane, Stages


class Lanes:
    """See the module. ``source`` gives the models; ``warm`` gives whole refinements of a lane to run."""

    def __init__(
        self,
        source: ModelSource,
        owner: DeviceOwner,
        max_batch_patches: int,
        warm: Callable[[Lane], Iterable[Stages]] | None,
        events: EngineEvents,
    ) -> None:
        self._source, self._owner, self._events = source, owner, events
        self._max_batch_patches = max_batch_patches
        self._warm_stages = warm
        self._lanes: dict[str, Lane] = {}
        self._activation = threading.Lock()

    @property
    def default(self) -> str:
        """The preset of a request that names none."""
        return self._source.presets()[0]

    def open(self) -> None:
        """Load and warm every preset. Raises the error of the first that cannot be loaded."""
        for preset in self._source.presets():
            lane = self._source.open(preset)
            self._warm(lane)
            self._lanes[preset] = lane

    def all(self) -> list[Lane]:
        return list(self._lanes.values())

    def get(self, preset: str | None) -> Lane:
        """The warm lane of ``preset``, by default the first; `UnknownName` lists those that are served."""
        lanes = self._lanes
        name = preset or self.default
        if name not in lanes:
            raise UnknownName("preset", name, lanes)
        return lanes[name]

    def activate(
        self,
        model: str,
        version: str | None = None,
        commit: Callable[[], None] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> list[Lane]:
        """Serve another version of ``model``: load it, warm it, swap it in at once.

        Blocks; not for the event loop.

        Requests in flight finish on the version they started with. Where loading, warming or ``commit``
        fails, nothing has changed, and the error is raised (`ModelError` where it was none of ours). One at a
        time: `ConflictError` otherwise. ``check`` raises where nothing may be activated now.
        """
        if not self._activation.acquire(blocking=False):
            raise ConflictError("another model is being activated", fix="try again when that is done")
        try:
            check()
            presets = [lane.preset for lane in self.all() if lane.model == model]
            if not presets:
                raise UnknownName("model", model, {lane.model for lane in self.all()})
            before = dict(self._lanes)
            try:
                fresh = {preset: self._source.open(preset, model, version) for preset in presets}
                for lane in fresh.values():
                    self._warm(lane)
                self._lanes = {**before, **fresh}
                if commit:
                    commit()
            except BaseException as error:
                self._lanes = before
                self._events.activated(model, version or "", False)
                if isinstance(error, BprError):
                    raise
                raise ModelError(
                    f"model {model} could not be activated: {type(error).__name__}",
                    fix="the version served before is still served; see the server's log",
                ) from error
            self._events.activated(model, next(iter(fresh.values())).version, True)
            return list(fresh.values())
        finally:
            self._activation.release()

    def _warm(self, lane: Lane) -> None:
        """Run the network at the sizes it will see, and the CPU steps once, before anyone waits for them."""
        size = lane.network_size_px
        for n in lane.refiner.batch_sizes(self._max_batch_patches):
            blank = np.zeros((n, size, size, 4), np.uint8)
            logits = self._owner.call(partial(lane.refiner.predict, blank)).result()
            finite = bool(np.isfinite(logits).all())
            if logits.shape[0] != n or not finite:
                raise ModelError(
                    f"model {lane.model} {lane.version} does not work",
                    expected=f"finite logits for {n} patches",
                    got=f"shape {tuple(logits.shape)}, finite: {finite}",
                    fix="export it again",
                )
        if self._warm_stages is not None:
            for stages in self._warm_stages(lane):
                crops = stages.crops(0, stages.n_patches)
                stages.add(0, self._owner.call(partial(lane.refiner.logits, crops)).result())
                stages.finish()
