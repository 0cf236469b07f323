"""`POST /v1/segment` and `/v1/segment-refine`: a picture in; coarse masks, or refined ones, out.

The routes are there where a segmenter is served: `bpr serve --segmenter RUN`.
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from bpr_service.network.segmenter import Found, Segmenter
from bpr_service.runtime.work import Stages, Work
from bpr_service.server.codec.parse import JSON, MULTIPART, keep
from bpr_service.server.codec.schemas import RefineResponse
from bpr_service.server.codec.shared import Block, pack_masks
from bpr_service.server.http.openapi import problems
from bpr_service.server.http.refine import InstanceCall, refine

router = APIRouter(prefix="/v1")
COARSE = "found, not refined"


class SegmenterOut(BaseModel):
    """What found the masks."""

    name: str
    version: str
    arch: str
    head: str
    device: str


class SegmentResponse(RefineResponse):
    """`masks` are in the order of their scores, the best first; each has `category_id`, `category` and `score`."""

    segmenter: SegmenterOut


class SegmentRefineCall(InstanceCall):
    """Masks that the segmenter finds, refined."""

    steps = ("read_picture", "write")
    refined = True

    def decode(self, work: Work) -> Any:
        self._work = work
        return super().decode(work)

    def prepare(self, refiner: Any, image: Any, block: Block) -> Stages:
        segmenter: Segmenter = self._request.app.state.segmenter
        work, options, started = self._work, self._meta["options"], time.monotonic()
        taken = segmenter.taken_bytes(*image.shape[:2])
        work.slot.reserve(taken)
        try:
            found = segmenter.segment(image, min_score=options["min_score"], check=work.check)
        finally:
            work.slot.hold.free(taken)
        found = self._most(found)
        work.slot.reserve(sum(each.mask.crop.size for each in found))
        self.timings_ms["segment"] = (time.monotonic() - started) * 1e3
        self._coarse = [each.mask for each in found]
        self._meta["alone"] = [None if self.refined else COARSE] * len(found)
        entries = [{"category_id": f.category_id, "category": f.category, "score": f.score} for f in found]
        self._kept = [memoryview(keep(entries)), None]
        stages: Stages = refiner.prepare(image, self._coarse if self.refined else [])
        return stages

    def _most(self, found: list[Found]) -> list[Found]:
        most = self._settings.max_masks
        if len(found) > most:
            self._meta["warnings"].append(f"{len(found)} masks were found: the {most} best are here (max_masks)")
        return found[:most]

    def said(self, work: Work, result: Any) -> dict[str, Any]:
        segmenter: Segmenter = self._request.app.state.segmenter
        card = segmenter.card
        own = {name: getattr(card, name) for name in ("name", "version", "arch", "head")}
        return super().said(work, result) | {"segmenter": own | {"device": segmenter.device}}


class SegmentCall(SegmentRefineCall):
    """Masks that the segmenter finds, as they are."""

    refined = False

    def result(self, result: Any, block: Block) -> dict[str, Any]:
        return {"masks": pack_masks(block, self._coarse)}


_FILE = {"type": "string", "format": "binary", "description": "PNG, JPEG, WebP, TIFF or BMP"}
_TEXT = {"type": "string", "contentMediaType": JSON, "description": "JSON, as `options` of the JSON body"}
DOCS = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": {"$ref": "#/components/schemas/SegmentRequest"}},
            MULTIPART: {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": _FILE, "options": _TEXT},
                },
                "encoding": {"options": {"contentType": JSON}},
            },
        },
    }
}
_REFUSALS = problems(400, 401, 403, 413, 415, 422, 429, 503, 504)


@router.post("/segment", tags=["segment"], response_model=SegmentResponse, responses=_REFUSALS, openapi_extra=DOCS)
async def segment(request: Request) -> Response:
    """The masks of what the served segmenter finds in a picture."""
    return await refine(request, SegmentCall)


@router.post(
    "/segment-refine", tags=["segment"], response_model=SegmentResponse, responses=_REFUSALS, openapi_extra=DOCS
)
async def segment_refine(request: Request) -> Response:
    """The masks of what the served segmenter finds in a picture, with exact boundaries."""
    return await refine(request, SegmentRefineCall)
