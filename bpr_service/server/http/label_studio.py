"""Label Studio's ML backend protocol: brush masks of a task come back with exact boundaries.

Connect it as a model in Label Studio: ``/health``, ``/setup`` and ``/predict`` are what it calls. A task's image must
be a data URI, or lie in Label Studio's media folder mounted at ``BPR_LABEL_STUDIO_MEDIA_DIR``, or be served by Label
Studio at ``BPR_LABEL_STUDIO_URL``; no other address is fetched.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from bpr_service.errors import BprError
from bpr_service.runtime.work import Hold, Lane, Slot, Stages, Work
from bpr_service.server.codec.faults import located
from bpr_service.server.codec.label_studio import media_path
from bpr_service.server.codec.parse import JSON
from bpr_service.server.codec.shared import Block
from bpr_service.server.http.body import media_type
from bpr_service.server.http.health import check_ready, engine_of
from bpr_service.server.http.openapi import problems
from bpr_service.server.http.refine import InstanceCall, admitted
from bpr_service.server.label_studio_media import LabelStudioMedia

router = APIRouter(tags=["label studio"])


class Prediction(BaseModel):
    """Regions of one task, as Label Studio takes them."""

    model_version: str
    score: float
    result: list[dict[str, Any]]


class PredictResponse(BaseModel):
    """A prediction for each task, in their order."""

    results: list[Prediction]
    model_version: str


@router.get("/health", responses=problems(503))
async def health(request: Request) -> dict[str, str]:
    """Label Studio asks this before it connects."""
    check_ready(engine_of(request))
    return {"status": "UP", "model_class": "BoundaryPatchRefinement"}


@router.post("/setup", responses=problems(400, 401, 403, 413, 422, 429, 503, 504))
async def setup(request: Request, body: dict[str, Any]) -> dict[str, str]:
    """Label Studio announces a project; the answer is the model version."""
    engine = engine_of(request)
    check_ready(engine)
    return {"model_version": _version(engine.lane(None))}


@router.post(
    "/predict",
    response_model=PredictResponse,
    responses=problems(400, 401, 403, 413, 415, 422, 429, 503, 504),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/PredictRequest"}}},
        }
    },
)
async def predict(request: Request) -> Response:
    """Refine brush masks: of the interactive context, else of a task's latest draft, annotation or prediction."""
    media_type(request, (JSON,))
    started = time.monotonic()
    slot, body = await admitted(request, started)
    try:
        pieces = await _split(request, slot, body, started)
        if not pieces[0]:
            slot.release()
    except BaseException:
        slot.release()
        raise
    finally:
        body.close()
    engine = engine_of(request)
    answers: list[bytes] = []
    for index, piece in enumerate(pieces[0]):
        call = LabelCall(request, pieces[1], started, index, *piece)
        answer = await call.run(slot if index == 0 else engine.admit(Hold(engine.memory, owner=slot.hold.owner)))
        answers.append(bytes(answer.view()))
        answer.close()
    pieces[1].close()
    version = orjson.dumps(_version(engine.lane(None)))
    return Response(b'{"results":[' + b",".join(answers) + b'],"model_version":' + version + b"}", media_type=JSON)


async def _split(request: Request, slot: Slot, body: Block, started: float) -> tuple[list[list[Any]], Block]:
    """Where each task of a body lies, in a block of their own: first byte, end, and its picture's address if any."""
    state = request.app.state
    work = Work(slot, None, None, deadline=started + state.settings.timeout_s)
    step = partial(state.pool.step, "label_studio_split", work, body)
    message, block = await asyncio.wrap_future(state.engine.decoders.submit(work.owner, step))
    return message["pieces"], block


class LabelCall(InstanceCall):
    """One task."""

    steps = ("label_studio_read", "label_studio_write")

    def __init__(
        self, request: Request, pieces: Block, started: float, index: int, start: int, stop: int, address: str | None
    ) -> None:
        super().__init__(request, pieces, started)
        self._index, self._piece, self._address = index, [start, stop], address
        self._media: list[int] | None = None

    def decode(self, work: Work) -> tuple[Lane, Stages]:
        """As every call, with the picture fetched first where only Label Studio has it; in a pool thread."""
        settings, address = self._settings, self._address
        is_here = settings.label_studio_media_dir is not None and address and media_path(address) is not None
        if settings.label_studio_url is None or address is None or is_here:
            return super().decode(work)
        token = None if settings.label_studio_token is None else settings.label_studio_token.get_secret_value()
        media = LabelStudioMedia(settings.label_studio_url, token, settings.max_body_bytes)
        try:
            data = media.fetch(address, work)
        except BprError as error:
            raise located(error, f"/tasks/{self._index}/data") from None
        own, piece = Block(), self._body.view(*self._piece)
        self._piece = [own.append(piece), own.size]
        self._media = [own.append(data), own.size]
        self._body = own
        try:
            return super().decode(work)
        finally:
            own.close()

    def message(self) -> dict[str, Any]:
        folder = self._settings.label_studio_media_dir
        own = {"index": self._index, "piece": self._piece, "media": self._media}
        return super().message() | own | {"media_dir": None if folder is None else str(folder)}


def _version(lane: Any) -> str:
    return f"{lane.model}@{lane.version}"
