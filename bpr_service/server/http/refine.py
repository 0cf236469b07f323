"""One request of a task: read in a worker process, prepared for the network, its result written in a worker process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, ClassVar

from fastapi import Request
from starlette.responses import Response

from bpr_service.masks.mask import Mask
from bpr_service.refine.labels.soft_labels import SoftLabels
from bpr_service.results import unchanged
from bpr_service.runtime.engine import Engine
from bpr_service.runtime.work import Hold, Lane, Slot, Stages, Work
from bpr_service.server.codec.parse import JSON, MULTIPART, Limits, nothing
from bpr_service.server.codec.pool import Pool
from bpr_service.server.codec.shared import (
    Block,
    pack_array,
    pack_masks,
    pack_meta,
    unpack_array,
    unpack_masks,
    unpack_meta,
)
from bpr_service.server.http.body import disconnected, media_type, read_body
from bpr_service.server.logs import request_id
from bpr_service.server.metrics import Metrics
from bpr_service.server.settings import ServerSettings
from bpr_service.server.telemetry import record_steps

OVER_SHARE_S = 1.0
"""How long a caller who has its share of the slots waits for another one."""


async def admitted(request: Request, started: float) -> tuple[Slot, Block]:
    """The body, and then a slot, so that a body that comes slowly keeps nobody out.

    What could not be worked on now is not even read.
    """
    engine: Engine = request.app.state.engine
    settings: ServerSettings = request.app.state.settings
    owner = request.state.caller.name
    if engine.shares.is_spent(
        owner, settings.max_requests
    ):  # it waits a little before it is refused: a refusal costs too
        await asyncio.sleep(OVER_SHARE_S)
    engine.check_room(owner)
    hold = Hold(engine.memory, owner=owner)
    try:
        body = await read_body(request, hold, settings, started + settings.timeout_s)
        return engine.admit(hold), body
    except BaseException:
        hold.release()
        raise


class RefineCall:
    """A call of a refine route. Tasks differ in `prepare` and `result`."""

    task: ClassVar[str]
    steps: ClassVar[tuple[str, str]] = ("read", "write")

    def __init__(self, request: Request, body: Block, started: float) -> None:
        """``started``: when the call began, by `time.monotonic`."""
        state = request.app.state
        self._engine: Engine = state.engine
        self._settings: ServerSettings = state.settings
        self._pool: Pool = state.pool
        self._metrics: Metrics = state.metrics
        self._request, self._body, self._started, self._rid = request, body, started, request_id.get()
        self._meta: dict[str, Any] = {}
        self.timings_ms = {"receive": (time.monotonic() - started) * 1e3}
        self._kept: list[memoryview | None] = []
        """The masks as they came, and the map's file."""
        self.held: Hold | None = None
        """The memory of the answer, which outlives the request's slot."""

    async def run(self, slot: Slot) -> Block:
        """Take ``slot`` over and answer; the answer's memory is freed once it has been sent."""
        try:
            deadline = self._started + self._settings.timeout_s
            gone = disconnected(self._request)
            answer: Block = await self._engine.run(slot, self.decode, self.encode, deadline=deadline, gone=gone)
        finally:
            if self.held is not None:
                frees: list[Callable[[], None]] = getattr(self._request.state, "frees", [])
                self._request.state.frees = [*frees, self.held.release]
        total_ms = (time.monotonic() - self._started) * 1e3
        record_steps(self._request.app, {**self.timings_ms, "total": total_ms})
        return answer

    # ---- before the network

    def message(self) -> dict[str, Any]:
        """What the worker must know to read the body."""
        settings = self._settings
        limits = {name: getattr(settings, name) for name in Limits.__dataclass_fields__}
        presets = [lane.preset for lane in self._engine.lanes()]
        content_type = self._request.headers.get("content-type", JSON)[:200]
        return {"limits": limits, "presets": presets, "content_type": content_type, "task": self.task}

    def decode(self, work: Work) -> tuple[Lane, Stages]:
        """The lane that was asked for and the request prepared for it; in a pool thread."""
        work.timings_ms = self.timings_ms
        with work.timed("decode"):
            message, block = self._pool.step(self.steps[0], work, self._body, **self.message())
            meta = self._meta = unpack_meta(message, block)
            image = unpack_array(block, meta["image"])
            meta["size"] = image.shape[:2]
            self._kept = [None if place is None else block.view(*place) for place in meta["kept"]]
        options = meta["options"]
        if options["timeout_s"] is not None:
            work.deadline = self._started + min(options["timeout_s"], self._settings.max_timeout_s)
        work.check()
        lane = self._engine.lane(options["preset"])
        asked = {name: options[name] for name in ("nms_threshold", "gate") if options[name] is not None}
        refiner = lane.refiner.with_options(**asked) if asked else lane.refiner
        with work.timed("prepare"):
            stages = self.prepare(refiner, image, block)
        block.close()
        return lane, stages

    def prepare(self, refiner: Any, image: Any, block: Block) -> Stages:
        """The CPU steps before the network."""
        raise NotImplementedError

    def valid(self, block: Block) -> Any:
        """(H, W) which pixels of the image hold data; None where all do."""
        place = self._meta.get("valid")
        return None if place is None else unpack_array(block, place)

    # ---- after it

    def encode(self, work: Work, result: Any) -> Block:
        """The answer's bytes; in a pool thread."""
        with work.timed("encode"):
            given = Block()
            meta = self._meta | {"reports": self.reports(result), "task": self.task}
            meta |= self.result(result, given) | {"said": self.said(work, result)}
            starts = [given.append(data) if data is not None else 0 for data in self._kept]
            kept = zip(starts, self._kept, strict=True)
            meta["kept"] = [None if data is None else [start, start + len(data)] for start, data in kept]
            work.slot.reserve(given.size)
            message = pack_meta(given, meta)
            _, answer = self._pool.step(self.steps[1], work, given, **message)
            given.close()
        self.held = work.slot.hold.split(answer.size)
        self._count(result)
        return answer

    def result(self, result: Any, block: Block) -> dict[str, Any]:
        """The task's own parts of a result, their pixels put into ``block``."""
        raise NotImplementedError

    def reports(self, result: Any) -> list[dict[str, Any]]:
        """What became of each mask, JSON-ready."""
        return [asdict(report) for report in result.reports]

    def statuses(self, result: Any) -> list[str]:
        """Of each mask, for the metrics."""
        return [report.status for report in result.reports]

    def said(self, work: Work, result: Any) -> dict[str, Any]:
        """What the answer says of how it was made."""
        lane = work.lane
        assert lane is not None
        return {
            "request_id": self._rid,
            "model": {"name": lane.model, "version": lane.version, "preset": lane.preset},
            "version": f"{lane.model}@{lane.version}",
            "device": result.device,
            "timings_ms": self.timings_ms,
            "total_ms": (time.monotonic() - self._started) * 1e3,
        }

    def _count(self, result: Any) -> None:
        for step, ms in self.timings_ms.items():
            self._metrics.steps.labels(step).observe(ms / 1e3)
        statuses = self.statuses(result)
        for status in statuses:
            self._metrics.masks.labels(status).inc()
        height, width = self._meta["size"]
        self._request.state.log = {
            "masks": len(statuses),
            "pixels": height * width,
            "steps_ms": {step: round(ms, 1) for step, ms in self.timings_ms.items()},
        }


class SemanticCall(RefineCall):
    """A label map. ``background`` stands where no mask is, and is answered as the ignore label."""

    task = "semantic"

    def prepare(self, refiner: Any, image: Any, block: Block) -> Stages:
        label_map: Any = unpack_array(block, self._meta["map"])
        if (soft := self._meta["soft"]) is not None:
            label_map = SoftLabels(label_map, unpack_array(block, soft[0]), tuple(soft[1]))
        stages: Stages = refiner.prepare_semantic(image, label_map, self._meta["ignore_label"], valid=self.valid(block))
        return stages

    def result(self, result: Any, block: Block) -> dict[str, Any]:
        return {"map": pack_array(block, result.label_map), "vanished": result.vanished}


class InstanceCall(SemanticCall):
    """Masks that may overlap, of which some are left alone; or a map of instance ids."""

    task = "instance"

    def prepare(self, refiner: Any, image: Any, block: Block) -> Stages:
        if self._meta["map"] is not None:
            return super().prepare(refiner, image, block)
        masks: list[Mask] = unpack_masks(block, self._meta["masks"], *self._meta["size"])
        asked = [mask for mask, reason in zip(masks, self._meta["alone"], strict=True) if reason is None]
        stages: Stages = refiner.prepare(image, asked, valid=self.valid(block))
        return stages

    def reports(self, result: Any) -> list[dict[str, Any]]:
        found = iter(super().reports(result))
        if self._meta["map"] is not None:
            return list(found)
        reasons = enumerate(self._meta["alone"])
        return [next(found) if reason is None else asdict(unchanged(i, reason)) for i, reason in reasons]

    def result(self, result: Any, block: Block) -> dict[str, Any]:
        if self._meta["map"] is not None:
            return super().result(result, block)
        masks, nobody = iter(result.masks), nothing(*self._meta["size"])
        return {"masks": pack_masks(block, [nobody if reason else next(masks) for reason in self._meta["alone"]])}


class PanopticCall(RefineCall):
    """A segment map with its segments."""

    task = "panoptic"

    def prepare(self, refiner: Any, image: Any, block: Block) -> Stages:
        ids = unpack_array(block, self._meta["map"])
        stages: Stages = refiner.prepare_panoptic(image, ids, self._meta["asked_info"], valid=self.valid(block))
        return stages

    def result(self, result: Any, block: Block) -> dict[str, Any]:
        own = {"segments_info": result.segments_info, "vanished": result.vanished}
        return {"map": pack_array(block, result.segment_map), **own}


async def refine(request: Request, kind: type[RefineCall]) -> Response:
    """Read the body, let workers and the engine work, answer."""
    media_type(request, (JSON, MULTIPART))
    started = time.monotonic()
    slot, body = await admitted(request, started)
    call = kind(request, body, started)
    try:
        answer = await call.run(slot)
    finally:
        body.close()
    timing = ", ".join(f"{step};dur={ms:.1f}" for step, ms in call.timings_ms.items())
    view = answer.view()
    answer.close()
    return Response(view, media_type=JSON, headers={"Server-Timing": timing})
