"""The client against a real server, and against one that refuses, drops and says when to come back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import supervision

from bpr_service import errors
from bpr_service.client import AsyncClient, Client
from bpr_service.connect import from_detections, to_detections
from bpr_service.masks.label_maps import panoptic_png
from bpr_service.server.http.auth import ApiKey, Keys, hash_key
from tests.server.helpers import HEIGHT, WIDTH, Running, coarse, disc, picture, png, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


def test_all_that_a_mask_can_be(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(png(picture()))
    mask = coarse()
    expected = server.engine.lane(None).refiner.refine(picture(), [mask]).masks[0].to_array()
    forms = [mask, mask.to_array(), mask.to_rle(), mask.to_rle(compressed=False), mask.to_polygons(), mask.to_png()]
    forms.append({"id": 5, "note": "kept", "segmentation": mask.to_rle()})
    with Client(server.url) as client:
        for image in (path, str(path), path.read_bytes(), picture()):
            result = client.refine(image, forms)
            for refined in result.masks:
                assert np.array_equal(refined.to_array(), expected)
                assert refined.status == "refined"
            assert result.masks[-1].extra == {"id": 5, "note": "kept"}
        assert (result.model, result.device) == ("dummy", "cpu")
        assert result.timings_ms["network"] >= 0
        assert result.request_id


def test_maps(server: Running) -> None:
    refiner = server.engine.lane(None).refiner
    labels = np.where(disc(), 3, 1).astype(np.uint8)
    info = [{"id": 1, "category_id": 4}, {"id": 3, "category_id": 5}]
    with Client(server.url) as client:
        expected = refiner.refine_semantic(picture(), labels).label_map
        for given in (labels, png(labels)):
            assert np.array_equal(client.refine_semantic(picture(), given).label_map, expected)
        expected = refiner.refine_panoptic(picture(), labels.astype(np.int32), info).segment_map
        for given in (labels, panoptic_png(labels.astype(np.int32))):
            answer = client.refine_panoptic(picture(), given, info)
            assert np.array_equal(answer.segment_map, expected)
        with pytest.raises(errors.InputError, match="label_map"):
            _ = answer.label_map


def test_other_routes_and_options(server: Running) -> None:
    with Client(server.url) as client:
        assert client.get("/v1/models")["models"][0]["name"] == "dummy"
        assert client.post("/v1/models/dummy/activate", {"version": "v1"})["version"] == "v1"
        few = client.refine(picture(), [coarse()], nms_threshold=0.0, encoding="polygon").masks[0]
        assert isinstance(few.segmentation, list)
        with pytest.raises(errors.NotFoundError, match="expected dummy"):
            client.post("/v1/models/nope/activate", {})


def test_errors_come_back_as_exceptions(server: Running) -> None:
    with Client(server.url) as client:
        with pytest.raises(errors.ImageError, match="another type"):
            client.refine(b"no picture", [coarse()])
        with pytest.raises(errors.MaskError, match="of another size") as caught:
            client.refine(picture()[:50], [coarse()])
        error = caught.value
        assert (error.expected, error.got) == ("50 x 200 (height x width)", "160 x 200")
        assert error.fix
        assert error.pointer == "/masks/0/segmentation"  # type: ignore[attr-defined]
        with pytest.raises(errors.UnknownName, match="balanced"):
            client.refine(picture(), [coarse()], preset="nope")
        with pytest.raises(errors.InputError):
            client.refine(picture(), [coarse()], no_such_option=1)


def test_the_key_is_sent() -> None:
    with serving(keys=Keys([ApiKey(name="a", sha256=hash_key("k1"))])) as server:
        with Client(server.url, api_key="k1") as client:
            assert client.refine(picture(), [coarse()]).masks
        with Client(server.url) as client, pytest.raises(errors.AuthError):
            client.refine(picture(), [coarse()])


def test_the_asynchronous_client(server: Running) -> None:
    labels = np.where(disc(), 3, 1).astype(np.uint8)
    info = [{"id": 1, "category_id": 4}, {"id": 3, "category_id": 5}]

    async def calls() -> list[Any]:
        async with AsyncClient(server.url) as client:
            return list(
                await asyncio.gather(
                    client.refine(picture(), [coarse()]),
                    client.refine_semantic(picture(), labels),
                    client.refine_panoptic(picture(), labels, info),
                    client.get("/version"),
                    client.post("/v1/models/dummy/activate", {"version": "v1"}),
                )
            )

    instance, semantic, panoptic, version, model = asyncio.run(calls())
    with Client(server.url) as client:
        assert client.refine(picture(), [coarse()]).raw["masks"] == instance.raw["masks"]
    assert semantic.label_map.shape == panoptic.segment_map.shape == (HEIGHT, WIDTH)
    assert version["device"] == "cpu"
    assert model["version"] == "v1"


# ---------------------------------------------------------------- retries

Handler = Callable[[httpx.Request], httpx.Response]
ANSWER = {
    "size": [2, 2], "masks": [], "model": {"name": "m", "version": "1"}, "device": "cpu", "timings_ms": {},
    "request_id": "r", "task": "instance",
}  # fmt: skip


def scripted(*answers: Any) -> tuple[Handler, list[tuple[float, bytes]]]:
    """A handler that gives ``answers`` one by one, and what it was sent and when."""
    seen: list[tuple[float, bytes]] = []
    left = list(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append((time.monotonic(), request.read()))
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, headers = answer
        problem = {"code": "busy" if status == 429 else "not_ready", "detail": "later"}
        return httpx.Response(status, headers=headers, json=ANSWER if status == 200 else problem)

    return handle, seen


def test_429_and_503_are_tried_again_after_the_time_they_name(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(picture()))
    handler, seen = scripted(
        (429, {"Retry-After": "1"}), (503, {"Retry-After": "0"}), httpx.ConnectError("x"), (200, {})
    )
    with Client(transport=httpx.MockTransport(handler)) as client:
        client.refine(path, [coarse()])
    assert len(seen) == 4
    assert seen[1][0] - seen[0][0] >= 1.0
    sizes = [len(content) for _, content in seen]
    assert len(set(sizes)) == 1, "the image is streamed whole each time"
    assert png(picture()) in seen[3][1]


@pytest.mark.parametrize("status", [400, 413, 422, 500, 504])
def test_other_answers_are_not_tried_again(status: int) -> None:
    handler, seen = scripted((status, {}))
    with Client(transport=httpx.MockTransport(handler)) as client, pytest.raises(errors.BprError):
        client.refine(picture(), [coarse()])
    assert len(seen) == 1


def test_it_gives_up() -> None:
    handler, seen = scripted(*[(429, {"Retry-After": "0"})] * 3)
    with Client(retries=2, transport=httpx.MockTransport(handler)) as client:
        with pytest.raises(errors.BusyError, match="later"):
            client.get("/v1/models")
    assert len(seen) == 3
    handler, seen = scripted((503, {"Retry-After": "20"}))
    with Client(timeout_s=5, transport=httpx.MockTransport(handler)) as client:
        with pytest.raises(errors.NotReadyError) as caught:
            client.get("/v1/models")
    assert caught.value.retry_after_s == 20, "a wait that would outlast the call is not begun"
    handler, seen = scripted(*[httpx.ConnectError("no")] * 2)
    with Client(retries=1, transport=httpx.MockTransport(handler)) as client:
        with pytest.raises(errors.NotReadyError, match=r"http://127\.0\.0\.1:8000 cannot be reached.*got no\."):
            client.get("/v1/models")


def test_the_asynchronous_client_tries_again_too() -> None:
    handler, seen = scripted((429, {"Retry-After": "0"}), httpx.ReadError("x"), (200, {}))

    async def call() -> None:
        async with AsyncClient(transport=httpx.MockTransport(handler)) as client:
            await client.refine(picture(), [coarse()])

    asyncio.run(call())
    assert len(seen) == 3
    assert json.dumps([{"segmentation": coarse().to_rle()}]).encode() in seen[2][1]


# ---------------------------------------------------------------- supervision


def test_detections_there_and_back(server: Running) -> None:
    masks = np.stack([disc(r=40), disc(cx=60, r=20), np.zeros((HEIGHT, WIDTH), bool)])
    detections = supervision.Detections(
        xyxy=supervision.mask_to_xyxy(masks).astype(np.float32),
        mask=masks,
        class_id=np.array([3, 1, 2]),
        confidence=np.array([0.5, 0.9, 0.1], np.float32),
        tracker_id=np.array([7, 8, 9]),
    )
    entries = from_detections(detections)
    assert [e["category_id"] for e in entries] == [3, 1, 2]
    assert [round(e["score"], 3) for e in entries] == [0.5, 0.9, 0.1]
    with Client(server.url) as client:
        refined = client.refine(picture(), entries)
    out = to_detections(refined, detections)
    expected = server.engine.lane(None).refiner.refine(picture(), list(masks)).masks
    assert np.array_equal(np.asarray(out.mask), np.stack([m.to_array() for m in expected]) > 0)
    assert out.mask.dtype == bool
    for i in range(2):
        assert tuple(out.xyxy[i]) == expected[i].box
    assert np.array_equal(out.tracker_id, detections.tracker_id)
    assert np.array_equal(detections.mask, masks), "the detections that came in are not touched"
    with pytest.raises(errors.InputError, match="another number"):
        to_detections(refined, detections[:2])  # type: ignore
    with pytest.raises(errors.InputError, match="without masks"):
        from_detections(supervision.Detections(xyxy=np.zeros((1, 4))))


def test_a_fix_that_is_a_command_stays_as_it_is_typed() -> None:
    assert str(errors.NotFoundError("job", fix="bpr jobs list")) == "job. bpr jobs list"
    assert str(errors.NotFoundError("job", fix="see the list")) == "job. See the list"
    assert "one of balanced, fast," in str(errors.UnknownName("model", "x", ["fast", "balanced", "fast"]))
