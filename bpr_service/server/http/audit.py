"""`POST /v1/audit`: the masks of one picture, each with how suspicious it is, and where."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from bpr_service.audit.suspicion import judge_of
from bpr_service.audit.task import prepare_seeing
from bpr_service.audit.unit import Listed, measured
from bpr_service.audit.verdict import verdicts
from bpr_service.refine.labels.regions import LabelRegions
from bpr_service.runtime.work import Stages, Work
from bpr_service.server.codec.schemas import AuditResponse, InstanceRequest
from bpr_service.server.codec.shared import Block, unpack_array, unpack_masks
from bpr_service.server.http.openapi import problems, refine_docs
from bpr_service.server.http.refine import InstanceCall, refine

router = APIRouter(prefix="/v1")
BYTES_A_PX = 64
"""What measuring a mask takes, at most, for each pixel of the picture."""
OF_FILES = ("key", "image_id", "image", "size", "id", "category_id")
"""Keys of a row that speak of a mask's place in a data set."""


class AuditCall(InstanceCall):
    """Masks, or a map of instance ids; each is judged among the others of its picture."""

    steps = ("read", "write_audit")

    def prepare(self, refiner: Any, image: Any, block: Block) -> Stages:
        self._judge = judge_of(refiner.card)
        if self._meta["map"] is None:
            masks = unpack_masks(block, self._meta["masks"], *self._meta["size"])
            each = [mask for mask, reason in zip(masks, self._meta["alone"], strict=True) if reason is None]
        else:
            regions = LabelRegions(unpack_array(block, self._meta["map"]), 0)
            each, self._meta["labels"], self._meta["alone"] = list(regions), regions.labels, [None] * len(regions)
        self._masks = [Listed(i, None, None, mask, {}) for i, mask in enumerate(each)]
        self._picture: Any = np.array(image)  # the block that it came in is closed before the network has run
        return prepare_seeing(refiner, self._picture, each)

    def encode(self, work: Work, result: Any) -> Block:
        taken = BYTES_A_PX * self._picture.shape[0] * self._picture.shape[1]
        work.slot.reserve(taken)
        with work.timed("audit"):
            rows, inputs = measured(self._picture, self._masks, result.masks, work.check)
            self._told = verdicts(self._judge, rows, inputs)
        work.slot.hold.free(taken)
        return super().encode(work, result)

    def reports(self, result: Any) -> list[dict[str, Any]]:
        told = iter(self._told)
        return [
            {"suspicion": None, "reason": reason} if reason else
            {key: value for key, value in next(told).items() if key not in OF_FILES}
            for reason in self._meta["alone"]
        ]  # fmt: skip

    def result(self, result: Any, block: Block) -> dict[str, Any]:
        return {}

    def statuses(self, result: Any) -> list[str]:
        return ["audited" if reason is None else "unchanged" for reason in self._meta["alone"]]


@router.post(
    "/audit",
    tags=["audit"],
    response_model=AuditResponse,
    responses=problems(400, 401, 403, 413, 415, 422, 429, 503, 504),
    openapi_extra=refine_docs("instance", InstanceRequest),
)
async def audit(request: Request) -> Response:
    """How likely each mask of a picture is wrong, what kind of error it may have, and where on its boundary."""
    return await refine(request, AuditCall)
