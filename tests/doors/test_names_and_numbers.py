"""Whose masks a file's are, where results go, and the numbers and the dress of what people bring."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from bpr_service.masks.mask import Mask, as_mask
from tests.doors import kind
from tests.doors.doors import Doors, H, W, blob, photo, saved

FILE, TARGETS, NAMES = "2 what the file itself says", "7 where results go", "8 names"
ABSENT, NUMBERS, DRESS = "9 absent is not broken", "10 numbers", "11 dress of JSON"
RLE = Mask.from_array(blob()).to_rle()
RECORD: dict[str, Any] = {"image_id": 1, "category_id": 1, "segmentation": RLE}


def data_set(*names: str) -> dict[str, Any]:
    """A data set's file with one mask an image."""
    images = [{"id": i, "file_name": name, "height": H, "width": W} for i, name in enumerate(names, 1)]
    return {"images": images, "annotations": [{**RECORD, "id": i, "image_id": i} for i in range(1, len(names) + 1)]}


@kind(FILE, "refine", "http")
def test_of_a_data_set_only_the_masks_of_the_image_are_refined(doors: Doors, door: str) -> None:
    given = data_set("b.png", "a.png")
    if door == "http":
        files = {"image": ("a.png", saved(photo())), "masks": ("set.json", json.dumps(given).encode())}
        response = doors.server.client.post("/v1/refine/instance", files=files)
        assert response.status_code == 200, response.text
        assert [mask["id"] for mask in response.json()["masks"]] == [2]
        files["image"] = ("c.png", saved(photo()))
        assert doors.server.client.post("/v1/refine/instance", files=files).status_code == 422
        return
    found = json.loads(doors.refine(saved(photo()), json.dumps(given), "set.json"))
    other, mine = found["annotations"]
    assert other == given["annotations"][0]
    assert mine["segmentation"] != RLE


@pytest.mark.parametrize("name", [".\\images\\a.png", "/data/images/A.PNG", "images/a.jpg", "a.png"])
@kind(NAMES, "refine", "batch")
def test_names_of_other_systems_find_the_image(doors: Doors, door: str, name: str) -> None:
    given = {"images": [{"id": 1, "file_name": name}], "annotations": [{**RECORD, "id": 1}]}
    found = json.loads(getattr(doors, door)(saved(photo()), json.dumps(given), "set.json"))
    assert found["annotations"][0]["segmentation"] != RLE


@pytest.mark.parametrize("nothing", [None, [], [[1.0, 2.0]]])
@kind(ABSENT, "refine", "batch", "http")
def test_a_mask_that_is_none_leaves_its_siblings_alone(doors: Doors, door: str, nothing: Any) -> None:
    image_id = "a" if door == "batch" else 1
    records = [{**RECORD, "image_id": image_id, "segmentation": nothing}, {**RECORD, "image_id": image_id}]
    empty, refined = doors.records(door, saved(photo()), records)
    assert empty["segmentation"] == nothing
    assert (as_mask(refined["segmentation"], H, W).to_array() != blob()).any()


@kind(ABSENT, "refine", "batch", "http")
def test_a_part_without_area_does_not_discard_the_others(doors: Doors, door: str) -> None:
    rings = Mask.from_array(blob()).to_polygons()
    both = []
    for segmentation in (rings, [*rings, [3.0, 3.0, 4.0, 4.0]]):
        record = {"image_id": "a" if door == "batch" else 1, "category_id": 1, "segmentation": segmentation}
        (found,) = doors.records(door, saved(photo()), [record])
        both.append(found["segmentation"])
    assert both[0] == both[1] != rings


@pytest.mark.parametrize("number", [17.0, 2**60 + 1])
@kind(NUMBERS, "batch", "http")
def test_ids_come_back_as_they_stood(doors: Doors, door: str, number: float) -> None:
    record = {"image_id": "a", "category_id": number, "id": number, "segmentation": RLE}
    (found,) = doors.records(door, saved(photo()), [record])
    assert repr([found["id"], found["category_id"]]) == repr([number, number])
    assert found["segmentation"] != RLE


def given_to(doors: Doors, door: str, given: dict[str, Any], code: int = 0) -> list[dict[str, Any]]:
    """A data set's file and the photograph a.png through a door; the annotations that come back."""
    if door == "http":
        files = {"image": ("a.png", saved(photo())), "masks": ("set.json", json.dumps(given).encode())}
        response = doors.server.client.post("/v1/refine/instance", files=files)
        assert response.status_code == 200, response.text
        masks: list[dict[str, Any]] = response.json()["masks"]
        return masks
    code = code if door == "batch" else 0
    found: list[dict[str, Any]] = json.loads(
        getattr(doors, door)(saved(photo()), json.dumps(given), "set.json", code=code)
    )["annotations"]
    return found


@kind(NUMBERS, "refine", "batch", "http")
def test_an_id_that_is_text_is_the_number(doors: Doors, door: str) -> None:
    given = data_set("a.png")
    given["annotations"][0]["image_id"] = "1"
    (found,) = given_to(doors, door, given)
    assert found["image_id"] == "1"
    assert found["segmentation"] != RLE


@pytest.mark.parametrize("crowd", [1, "1", 1.0, True])
@kind(NUMBERS, "refine", "batch", "http")
def test_a_crowd_is_one_however_it_is_written(doors: Doors, door: str, crowd: Any) -> None:
    given = data_set("a.png")
    given["annotations"] = [{**RECORD, "id": 1, "iscrowd": crowd}, {**RECORD, "id": 2, "iscrowd": "0"}]
    left, refined = given_to(doors, door, given)
    assert left["segmentation"] == RLE != refined["segmentation"]
    assert repr(left["iscrowd"]) == repr(crowd)


@pytest.mark.parametrize("image", [{}, {"image_id": None}])
@kind(ABSENT, "refine", "batch", "http")
def test_a_record_that_names_no_image_leaves_the_others_alone(doors: Doors, door: str, image: dict[str, Any]) -> None:
    given = data_set("a.png")
    given["annotations"].append({"id": 2, "segmentation": RLE, **image})
    found = given_to(doors, door, given, code=1)
    assert found[0]["segmentation"] != RLE
    if door != "http":
        assert found[1] == given["annotations"][1]
    if door == "batch":
        assert "has no image_id" in doors.report["failed"][0]


@kind(DRESS, "refine", "batch", "http")
def test_a_byte_order_mark_is_read(doors: Doors, door: str) -> None:
    text = b"\xef\xbb\xbf" + json.dumps([{**RECORD, "image_id": "a"}]).encode()
    if door == "http":
        files = {"image": ("a.png", saved(photo())), "masks": ("a.json", text)}
        response = doors.server.client.post("/v1/refine/instance", files=files)
        assert response.status_code == 200, response.text
        return
    found = getattr(doors, door)(saved(photo()), text, "a.json")
    assert RLE["counts"] not in found.decode("utf-8-sig")


@pytest.mark.parametrize(
    ("word", "data"),
    [
        ("gzip", gzip.compress(json.dumps([RECORD]).encode())),
        ("UTF-16", json.dumps([RECORD]).encode("utf-16")),
        ("UTF-16 without", json.dumps([RECORD]).encode("utf-16-le")),
        ("comma", json.dumps([RECORD]).encode()[:-1] + b",]"),
    ],
)
@kind(DRESS, "refine", "batch", "http")
def test_another_dress_is_said_by_name(doors: Doors, door: str, word: str, data: bytes) -> None:
    if door == "http":
        files = {"image": ("a.png", saved(photo())), "masks": ("a.json", data)}
        response = doors.server.client.post("/v1/refine/instance", files=files)
        if word.startswith("UTF-16"):  # a whole body is in memory, and is read in the encoding that it has
            assert response.status_code == 200, response.text
            return
        assert response.status_code in (400, 422)
        said = response.text
    else:
        getattr(doors, door)(saved(photo()), data, "a.json", code=2)
        said = " ".join(doors.said.stderr.split())
    assert word in said


@kind(TARGETS, "refine", "batch")
def test_a_place_that_cannot_be_written_is_refused_before_the_work(doors: Doors, door: str) -> None:
    image, masks = doors.file("images/a.png", saved(photo())), doors.file("m.json", json.dumps([RECORD]))
    doors.file("taken/x", b"")
    for out in ("taken", "m.json/below.json", "masks.png", "x" * 300 + ".json"):
        if door == "refine":
            said = doors.bpr("refine", image, masks, "-o", doors.folder / out)
        else:
            call = ("batch", "instance", "--images", image.parent, "--predictions", masks)
            said = doors.bpr(*call, "--out", doors.folder / out, "--workers", 0)
        assert said.returncode == 2, (out, said.stderr)
        assert "Traceback" not in said.stderr
        assert "fix" in said.stderr.lower() or out[:5] in said.stderr
    assert masks.read_text() == json.dumps([RECORD])
