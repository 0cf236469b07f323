"""``POST /v1/audit``: what the library says of one picture's masks, under the limits of every route."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpr_service.audit.suspicion import judge_of
from bpr_service.audit.unit import Listed, audit_masks, measured
from bpr_service.audit.verdict import verdicts
from bpr_service.client import Client
from bpr_service.errors import DeadlineError
from bpr_service.masks.mask import Mask
from bpr_service.refine.refiner import Refiner
from bpr_service.runtime.dummy import DummyModels
from bpr_service.runtime.work import Lane
from tests.audit.samples import auditing_model
from tests.jobs.samples import SETTINGS
from tests.server.helpers import HEIGHT, WIDTH, Running, b64, body, coarse, picture, png, serving


class AuditingModels(DummyModels):
    """A tiny model that can audit."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.refiner = Refiner.load(auditing_model(folder), **SETTINGS)

    def open(self, preset: str, model: str | None = None, version: str | None = None) -> Lane:
        return Lane(preset, "tiny", "0", SETTINGS["network_size_px"], self.refiner)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(models=AuditingModels(tmp_path_factory.mktemp("model"))) as running:
        yield running


def expected(running: Running, masks: list[Mask]) -> list[dict[str, Any]]:
    refiner = running.engine.lane(None).refiner
    rows, inputs = audit_masks(refiner, picture(), [Listed(i, None, None, m, {}) for i, m in enumerate(masks)])
    return verdicts(judge_of(refiner.card), rows, inputs)


FOUND = ("suspicion", "expected_iou", "expected_boundary_f", "kinds", "where", "replacement", "bbox", "area")


def test_the_answer_is_the_librarys(running: Running) -> None:
    masks = [coarse(), coarse(cx=60, cy=60, r=30), coarse(cx=100, cy=81)]
    sent = [{"id": f"m{i}", "category_id": 3, "note": [i], "segmentation": m.to_rle()} for i, m in enumerate(masks)]
    answer = running.client.post("/v1/audit", json=body(masks=sent))
    assert answer.status_code == 200, answer.text
    told = answer.json()
    for entry, row, given in zip(told["masks"], expected(running, masks), sent, strict=True):
        assert {key: entry[key] for key in FOUND} == {key: row[key] for key in FOUND}
        assert (entry["id"], entry["category_id"], entry["note"]) == (given["id"], 3, given["note"])
        assert "segmentation" not in entry
    assert told["masks"][0]["kinds"][0] == "looks like another mask twice"
    assert (told["size"], told["model"]["name"], told["device"]) == ([HEIGHT, WIDTH], "tiny", "cpu")
    assert {"decode", "network", "audit", "encode", "total"} <= told["timings_ms"].keys()


def test_a_map_of_ids_is_audited_id_by_id(running: Running) -> None:
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[coarse().to_array() > 0] = 7
    ids[coarse(cx=30, cy=30, r=20).to_array() > 0] = 200
    request = body(label_map={"data": b64(png(ids))})
    del request["masks"]
    answer = running.client.post("/v1/audit", json=request).json()
    masks = [Mask.from_array(ids == label) for label in (7, 200)]
    assert [(m["id"], m["suspicion"]) for m in answer["masks"]] == [
        (label, row["suspicion"]) for label, row in zip((7, 200), expected(running, masks), strict=True)
    ]


def test_what_cannot_be_judged_says_so(running: Running) -> None:
    empty, full = (Mask.from_array(np.full((HEIGHT, WIDTH), value, np.uint8)) for value in (0, 1))
    masks = [
        {"id": 1, "segmentation": empty.to_rle()},
        {"id": 2, "segmentation": full.to_rle()},
        {"id": 3, "segmentation": None},
        {"id": 4, "iscrowd": 1, "segmentation": coarse().to_rle()},
    ]
    found = running.client.post("/v1/audit", json=body(masks=masks)).json()["masks"]
    assert [m["suspicion"] for m in found] == [1.0, 0.0, None, None]
    assert found[0]["kinds"] == ["empty"]
    assert found[1]["unjudged"] == "it fills the picture"
    assert "crowd" in found[3]["reason"]


def test_refusals_are_problems(running: Running, server: Running) -> None:
    for change, status in (
        ({"masks": [{"segmentation": {"size": [3, 3], "counts": "x"}}]}, 422),
        ({"image": {"data": base64.b64encode(b"no picture").decode()}}, 422),
        ({"options": {"preset": "typo"}}, 422),
        ({"options": {"timeout_s": 1e-9}}, 504),
    ):
        answer = running.client.post("/v1/audit", json=body(**change))
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert running.client.get("/v1/audit").status_code == 405
    refused = server.client.post("/v1/audit", json=body())  # the dummy's card has no audit
    assert refused.status_code == 422
    assert "cannot audit" in refused.json()["detail"]


def test_the_client_asks(running: Running) -> None:
    with Client(running.url) as client:
        found = client.audit(picture(), [coarse()])
    assert found["masks"][0]["suspicion"] == expected(running, [coarse()])[0]["suspicion"]


def test_measuring_stops_at_the_deadline() -> None:
    def late() -> None:
        raise DeadlineError("late")

    with pytest.raises(DeadlineError):
        measured(picture(), [Listed(0, None, None, coarse(), {})], [None], late)
