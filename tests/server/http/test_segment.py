"""Pictures in, masks out: the routes of a served segmenter."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from copy import copy
from typing import Any

import pytest

from bpr_service.masks.mask import Mask, as_mask
from bpr_service.network.segmenter import Segmenter
from tests.segmenters import write_segmenter
from tests.server.helpers import HEIGHT, WIDTH, Running, b64, coarse, disc, picture, png, serving


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return Segmenter(write_segmenter(tmp_path_factory.mktemp("segmenter")))


@pytest.fixture(scope="module")
def running(segmenter: Segmenter) -> Iterator[Running]:
    with serving(segmenter=segmenter) as server:
        yield server


def asked(route: str, running: Running, **options: Any) -> dict[str, Any]:
    response = running.client.post(f"/v1/{route}", json={"image": {"data": b64(png(picture()))}, "options": options})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_segment_gives_what_the_segmenter_finds(running: Running, segmenter: Segmenter) -> None:
    answer = asked("segment", running)
    (found,) = segmenter.segment(picture(), min_score=0.5)
    (entry,) = answer["masks"]
    assert entry["segmentation"] == found.mask.to_rle()
    assert (entry["category_id"], entry["category"], entry["score"]) == (3, "bright thing", found.score)
    assert (entry["bbox"], entry["area"]) == (found.mask.bbox, found.mask.area)
    assert (entry["status"], entry["reason"]) == ("unchanged", "found, not refined")
    own = as_mask(entry["segmentation"], HEIGHT, WIDTH).to_array().astype(bool)
    assert (own & disc()).sum() / (own | disc()).sum() > 0.9
    assert answer["segmenter"] == {
        "name": "bright", "version": segmenter.card.version, "arch": "mask_rcnn", "head": "plain", "device": "cpu",
    }  # fmt: skip
    assert {"decode", "segment"} <= set(answer["timings_ms"])


def test_segment_refine_is_refine_on_what_is_found(running: Running, segmenter: Segmenter) -> None:
    answer = asked("segment-refine", running)
    (found,) = segmenter.segment(picture(), min_score=0.5)
    expected = running.engine.lane(None).refiner.refine(picture(), [found.mask])
    (entry,) = answer["masks"]
    assert entry["segmentation"] == expected.masks[0].to_rle()
    assert entry["status"] == expected.reports[0].status
    assert entry["patches"] > 0
    assert entry["score"] == found.score


def test_options_count(running: Running) -> None:
    assert len(asked("segment", running, min_score=0.1)["masks"]) == 2
    assert asked("segment", running, min_score=1)["masks"] == []
    assert asked("segment-refine", running, min_score=1)["masks"] == []
    (entry,) = asked("segment", running, encoding="png")["masks"]
    mask = Mask.from_png(base64.b64decode(entry["segmentation"]["png"]))
    assert mask.area == entry["area"]


def test_a_form(running: Running) -> None:
    files: Any = {"image": ("a.png", png(picture()), "image/png"), "options": (None, json.dumps({"min_score": 0.1}))}
    response = running.client.post("/v1/segment", files=files)
    assert response.status_code == 200, response.text
    assert len(response.json()["masks"]) == 2


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({}, 422, "/image"),
        ({"image": {"data": "AAAA"}}, 422, "image"),
        ({"image": {"data": b64(png(picture()))}, "masks": []}, 422, "masks"),
        ({"image": {"data": b64(png(picture()))}, "options": {"min_score": 2}}, 422, "min_score"),
        ({"image": {"data": b64(png(picture()))}, "options": {"preset": "none"}}, 422, "preset"),
    ],
)
def test_bodies_that_are_wrong(running: Running, body: Any, status: int, text: str) -> None:
    response = running.client.post("/v1/segment", json=body)
    assert response.status_code == status, response.text
    assert text in response.text


def test_a_form_with_masks_is_refused(running: Running) -> None:
    mask = json.dumps([{"segmentation": coarse().to_rle()}])
    files: Any = {"image": ("a.png", png(picture()), "image/png"), "masks": ("m.json", mask, "application/json")}
    response = running.client.post("/v1/segment-refine", files=files)
    assert response.status_code == 422
    assert "/v1/refine/instance" in response.text


def test_limits(segmenter: Segmenter) -> None:
    with serving({"max_masks": 1}, segmenter=segmenter) as running:
        answer = asked("segment", running, min_score=0.1)
        assert len(answer["masks"]) == 1
        assert answer["warnings"] == ["2 masks were found: the 1 best are here (max_masks)"]
    with serving({"max_pixels": 1000}, segmenter=segmenter) as running:
        request = {"image": {"data": b64(png(picture()))}}
        assert running.client.post("/v1/segment", json=request).status_code == 413


def test_memory_that_is_not_there_is_refused_before_the_network(segmenter: Segmenter) -> None:
    large = copy(segmenter)
    large.card = segmenter.card.with_options(min_size_px=800, max_size_px=1333)
    with serving({"memory_mb": 64}, segmenter=large) as running:
        response = running.client.post("/v1/segment", json={"image": {"data": b64(png(picture()))}})
        assert response.status_code == 413, response.text


def test_without_a_segmenter_there_is_no_route(server: Running) -> None:
    assert server.client.post("/v1/segment", json={}).status_code == 404
    assert "/v1/segment" not in server.client.get("/openapi.json").json()["paths"]


def test_the_routes_are_documented(running: Running) -> None:
    document = running.client.get("/openapi.json").json()
    assert {"/v1/segment", "/v1/segment-refine"} <= set(document["paths"])
    assert "min_score" in document["components"]["schemas"]["SegmentOptions"]["properties"]
