"""What a right request gets: every encoding, task, option, JSON and multipart."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from bpr_service.masks.label_maps import panoptic_png, read_label_map, read_panoptic_png
from bpr_service.masks.mask import Mask, as_mask
from bpr_service.refine.refiner import Refiner
from bpr_service.server.codec.schemas import examples
from tests.server.helpers import HEIGHT, WIDTH, Running, b64, body, coarse, disc, picture, png


def refine(server: Running, request: dict[str, Any], task: str = "instance") -> dict[str, Any]:
    response = server.client.post(f"/v1/refine/{task}", json=request)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def library(server: Running, masks: list[Mask], **options: Any) -> Any:
    refiner = server.engine.lane(None).refiner
    return refiner.refine(picture(), masks)


def decoded(segmentation: Any) -> np.ndarray:
    if isinstance(segmentation, dict) and "png" in segmentation:
        segmentation = segmentation["png"]
    if isinstance(segmentation, str):
        segmentation = base64.b64decode(segmentation)
    return as_mask(segmentation, HEIGHT, WIDTH).to_array()


def test_the_answer_is_the_librarys(server: Running) -> None:
    masks = [coarse(), coarse(cx=60, cy=60, r=30)]
    answer = refine(server, body(masks=[{"segmentation": m.to_rle()} for m in masks]))
    expected = library(server, masks)
    for entry, mask, report in zip(answer["masks"], expected.masks, expected.reports, strict=True):
        assert entry["segmentation"] == mask.to_rle()
        assert entry["bbox"] == mask.bbox
        assert entry["area"] == mask.area
        for key in ("status", "reason", "patches", "changed_px", "added_px", "removed_px", "confidence", "scale"):
            assert entry[key] == getattr(report, key)
    assert answer["masks"][0]["status"] == "refined"


def test_order_ids_and_unknown_keys_come_back(server: Running) -> None:
    masks = [
        {"id": 9, "category_id": 2, "score": 0.25, "track": [1, {"a": None}], "segmentation": coarse().to_rle()},
        {"id": "seg-b", "segmentation": coarse(r=20).to_rle(), "area": 1, "status": "mine", "name": "Füße"},
        {"segmentation": coarse(r=10).to_rle()},
    ]
    answer = refine(server, body(masks=masks))["masks"]
    assert [m.get("id", "absent") for m in answer] == [9, "seg-b", "absent"]
    assert (answer[0]["category_id"], answer[0]["score"], answer[0]["track"]) == (2, 0.25, [1, {"a": None}])
    assert answer[1]["name"] == "Füße"
    assert answer[1]["area"] > 100, "the area is measured, not repeated"
    assert answer[1]["status"] in ("refined", "unchanged")


def test_the_answer_says_what_served_and_how_long_it_took(server: Running) -> None:
    response = server.client.post("/v1/refine/instance", json=body(), headers={"X-Request-ID": "my-id.1"})
    answer = response.json()
    assert answer["request_id"] == response.headers["x-request-id"] == "my-id.1"
    assert (answer["task"], answer["size"], answer["device"]) == ("instance", [HEIGHT, WIDTH], "cpu")
    assert answer["model"]["name"] == "dummy"
    assert answer["model"]["preset"] == "balanced"
    steps = {"receive", "decode", "prepare", "crop", "network", "add", "finish", "encode", "total"}
    assert steps <= answer["timings_ms"].keys()
    assert "network;dur=" in response.headers["server-timing"]


def encodings() -> dict[str, Any]:
    mask = coarse()
    return {
        "rle": mask.to_rle(),
        "uncompressed": mask.to_rle(compressed=False),
        "polygon": mask.to_polygons(),
        "png": {"png": b64(mask.to_png())},
        "base64": b64(mask.to_png()),
        "data uri": "data:image/png;base64," + b64(mask.to_png()),
    }


@pytest.mark.parametrize("name", encodings())
def test_every_encoding_is_taken_and_given_back(server: Running, name: str) -> None:
    given = encodings()[name]
    (entry,) = refine(server, body(masks=[{"segmentation": given}]))["masks"]
    assert type(entry["segmentation"]) is type(given)
    if isinstance(given, dict):
        assert entry["segmentation"].keys() == given.keys()
        assert type(entry["segmentation"].get("counts")) is type(given.get("counts"))
    (expected,) = library(server, [coarse()]).masks
    assert np.array_equal(decoded(entry["segmentation"]), expected.to_array())


@pytest.mark.parametrize("encoding", ["rle", "uncompressed_rle", "polygon", "png"])
def test_the_answers_encoding_can_be_chosen(server: Running, encoding: str) -> None:
    (entry,) = refine(server, body(options={"encoding": encoding}))["masks"]
    (expected,) = library(server, [coarse()]).masks
    assert np.array_equal(decoded(entry["segmentation"]), expected.to_array())
    if encoding == "polygon":
        assert isinstance(entry["segmentation"], list)
    elif encoding == "uncompressed_rle":
        assert sum(entry["segmentation"]["counts"]) == HEIGHT * WIDTH


def test_a_soft_png_is_thresholded_at_a_half(server: Running) -> None:
    soft = np.where(disc(), 200, 90).astype(np.uint8)
    (hard,) = refine(server, body(masks=[{"segmentation": {"png": b64(png(soft)), "soft": True}}]))["masks"]
    (plain,) = refine(server, body(masks=[{"segmentation": {"png": b64(coarse().to_png())}}]))["masks"]
    assert hard["status"] == "refined", "as zero and non-zero it would fill the image"
    assert abs(hard["area"] - plain["area"]) < 0.05 * plain["area"]


def test_no_masks_and_empty_masks_are_answered(server: Running) -> None:
    assert refine(server, body(masks=[]))["masks"] == []
    empty = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    full = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    answer = refine(server, body(masks=[{"segmentation": empty}, {"segmentation": full}]))["masks"]
    assert [m["status"] for m in answer] == ["unchanged", "unchanged"]
    assert [m["reason"] for m in answer] == ["the mask is empty", "the mask fills the image"]
    assert [m["area"] for m in answer] == [0, HEIGHT * WIDTH]


def test_options_reach_the_refiner_of_this_request_only(server: Running) -> None:
    def patches(**options: Any) -> int:
        answer = refine(server, body(options=options))
        return int(answer["masks"][0]["patches"])

    few, usual, many = patches(nms_threshold=0.0), patches(), patches(nms_threshold=0.6)
    assert few <= usual < many
    assert patches() == usual


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tiff"])
def test_picture_types(server: Running, suffix: str) -> None:
    data = bytes(cv2.imencode(suffix, picture()[:, :, ::-1])[1].tobytes())
    assert refine(server, body(image={"data": b64(data)}))["size"] == [HEIGHT, WIDTH]


def test_base64_may_be_wrapped_in_lines(server: Running) -> None:
    wrapped = base64.encodebytes(png(picture())).decode()
    assert refine(server, body(image={"data": wrapped}))["masks"]


# ---------------------------------------------------------------- multipart


def test_multipart_gives_what_json_gives(server: Running) -> None:
    expected = refine(server, body(options={"encoding": "rle"}))["masks"]
    masks = json.dumps(body()["masks"]).encode()
    for part in (("masks.json", masks, "application/json"), ("masks", b'{"masks": ' + masks + b"}", "text/plain")):
        response = server.client.post(
            "/v1/refine/instance",
            files={"image": ("a.png", png(picture()), "image/png"), "masks": part},
            data={"options": '{"encoding": "rle"}'},
        )
        assert response.status_code == 200, response.text
        assert response.json()["masks"] == expected


def test_multipart_with_several_png_masks(server: Running) -> None:
    files = [("image", ("a.png", png(picture()), "image/png"))]
    files += [("masks", (f"{r}.png", coarse(r=r).to_png(), "image/png")) for r in (20, 40)]
    answer = server.client.post("/v1/refine/instance", files=files).json()["masks"]
    assert [set(m["segmentation"]) for m in answer] == [{"png"}, {"png"}]
    assert answer[0]["area"] < answer[1]["area"]


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_multipart_with_a_map(server: Running, task: str) -> None:
    label_map = disc().astype(np.uint8) + 1
    data = png(label_map) if task == "semantic" else panoptic_png(label_map.astype(np.int32))
    files = [("image", ("a.png", png(picture()), "image/png")), ("masks", ("m.png", data, "image/png"))]
    form = {"segments_info": json.dumps([{"id": i, "category_id": i} for i in (1, 2)])} if task == "panoptic" else {}
    response = server.client.post(f"/v1/refine/{task}", files=files, data=form)
    assert response.status_code == 200, response.text
    assert len(response.json()["masks"]) == 2


# ---------------------------------------------------------------- semantic and panoptic


def test_a_label_map_is_the_librarys(server: Running) -> None:
    label_map = np.where(disc(), 5, 2).astype(np.uint8)
    label_map[:20] = 255
    answer = refine(server, {"image": body()["image"], "label_map": {"data": b64(png(label_map))}}, "semantic")
    refined = read_label_map(base64.b64decode(answer["label_map"]["data"]))
    expected = server.engine.lane(None).refiner.refine_semantic(picture(), label_map, 255)
    assert np.array_equal(refined, expected.label_map)
    assert (refined[:20] == 255).all()
    assert [m["category_id"] for m in answer["masks"]] == [2, 5]
    for entry in answer["masks"]:
        assert np.array_equal(decoded(entry["segmentation"]) > 0, refined == entry["category_id"])


def test_semantic_masks_keep_order_and_keys(server: Running) -> None:
    masks = [
        {"category_id": 5, "name": "disc", "segmentation": coarse().to_rle()},
        {"category_id": 0, "segmentation": coarse(cx=20, cy=20, r=15).to_rle()},
    ]
    answer = refine(server, {"image": body()["image"], "masks": masks}, "semantic")
    refined = read_label_map(base64.b64decode(answer["label_map"]["data"]))
    assert [m["category_id"] for m in answer["masks"]] == [5, 0]
    assert answer["masks"][0]["name"] == "disc"
    assert set(np.unique(refined)) == {0, 5, 255}
    for entry in answer["masks"]:
        assert np.array_equal(decoded(entry["segmentation"]) > 0, refined == entry["category_id"])
        assert entry["status"] == "refined", "a mask may win and lose pixels to where no mask is"


def test_a_panoptic_map_is_the_librarys(server: Running) -> None:
    segment_map = np.where(disc(), 70000, 3).astype(np.int32)
    info = [{"id": 70000, "category_id": 8, "iscrowd": 0}, {"id": 3, "category_id": 1, "note": "stuff"}]
    request = {
        "image": body()["image"],
        "segment_map": {"data": b64(panoptic_png(segment_map))},
        "segments_info": info,
    }
    answer = refine(server, request, "panoptic")
    refined = read_panoptic_png(base64.b64decode(answer["segment_map"]["data"]))
    expected = server.engine.lane(None).refiner.refine_panoptic(picture(), segment_map, info)
    assert np.array_equal(refined, expected.segment_map)
    assert answer["segments_info"] == expected.segments_info
    assert answer["segments_info"][1]["note"] == "stuff"
    for segment in answer["segments_info"]:
        assert segment["area"] == int((refined == segment["id"]).sum())
    assert answer["vanished"] == []


def test_panoptic_masks_keep_order_and_one_that_is_hidden_is_said_so(server: Running) -> None:
    masks = [
        {"id": 4, "category_id": 1, "segmentation": coarse(r=20).to_rle()},
        {"id": 9, "category_id": 2, "segmentation": coarse().to_rle(), "isthing": True},
    ]
    answer = refine(server, {"image": body()["image"], "masks": masks}, "panoptic")
    assert [m["id"] for m in answer["masks"]] == [4, 9]
    assert answer["masks"][0]["area"] == 0
    assert answer["masks"][0]["reason"] == "no pixel of the map has it"
    assert answer["masks"][1]["isthing"] is True
    assert answer["masks"][1]["area"] > 1000


@pytest.mark.parametrize("task", ["instance", "semantic", "panoptic"])
def test_the_examples_of_openapi_run(server: Running, task: str) -> None:
    document = server.client.get("/openapi.json").json()
    operation = document["paths"][f"/v1/refine/{task}"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["examples"]["small"]["value"]
    assert example == examples()[task]
    answer = refine(server, example, task)
    assert any(m["status"] == "refined" for m in answer["masks"])


@pytest.mark.parametrize(("ignore", "category"), [(255, 255), (-1, 0), (7, 7)])
def test_pixels_without_a_mask_never_take_the_label_of_one(server: Running, ignore: int, category: int) -> None:
    masks = [{"category_id": category, "segmentation": coarse().to_rle()}]
    request = body(masks=masks, options={"ignore_label": ignore})
    response = server.client.post("/v1/refine/semantic", json=request)
    assert response.status_code == 422
    assert response.json()["pointer"] == "/options/ignore_label"
    request["options"]["ignore_label"] = 9
    refined = read_label_map(base64.b64decode(refine(server, request, "semantic")["label_map"]["data"]))
    assert set(np.unique(refined)) == {category, 9}


def test_a_request_can_switch_the_gate_off(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = server.engine.lane(None)
    gated = Refiner(lane.refiner.model, lane.refiner.config, gate=lambda *_: "the gate says no")
    monkeypatch.setitem(server.engine._lanes._lanes, lane.preset, replace(lane, refiner=gated))
    assert refine(server, body())["masks"][0]["reason"] == "the gate says no"
    assert refine(server, body(options={"gate": True}))["masks"][0]["reason"] == "the gate says no"
    assert refine(server, body(options={"gate": False}))["masks"][0]["status"] == "refined"


@pytest.mark.parametrize("absent", [{}, {"segmentation": None}, {"segmentation": []}, {"segmentation": [[1, 2, 3, 4]]}])
def test_a_mask_that_is_absent_or_without_area_comes_back_beside_the_others(
    server: Running, absent: dict[str, Any]
) -> None:
    response = server.client.post(
        "/v1/refine/instance", json=body(masks=[{"segmentation": coarse().to_rle(), "id": [1]}, absent])
    )
    assert response.status_code == 200, response.text
    first, second = response.json()["masks"]
    assert (first["id"], second["status"]) == ([1], "unchanged")
    assert second["reason"]
