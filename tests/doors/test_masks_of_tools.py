"""What tools write beside a mask's outline: columns behind it, holes in it, numbers of their own."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from bpr_service.client import Client
from bpr_service.masks.mask import Mask, as_mask
from tests.doors import kind
from tests.doors.doors import Doors, H, W, blob, photo, saved

COLUMNS, HOLES, UNTOUCHED = "4 columns of YOLO", "5 holes", "6 unchanged is untouched"


def yolo(mask: np.ndarray, label: str = "0") -> str:
    ring = np.array(Mask.from_array(mask).to_polygons(slits=True)[0]).reshape(-1, 2) / [W, H]
    return label + " " + " ".join(f"{value:.6f}" for value in ring.ravel())


@pytest.mark.parametrize(
    ("label", "behind", "options"),
    [
        ("0", "", ()),
        ("0.0", " 0.91", ()),
        ("7", " 0.9137 12", ()),
        ("7", " 0.91 1", ("--columns", "confidence+track")),
    ],
)
@kind(COLUMNS, "refine", "batch")
def test_class_and_columns_of_yolo_come_back_as_they_stood(
    doors: Doors, door: str, label: str, behind: str, options: tuple[str, ...]
) -> None:
    given = f"{yolo(blob(), label)}{behind}\r\n"
    found = getattr(doors, door)(saved(photo()), given, "a.txt", "--format", "yolo", *options).decode()
    assert found != given
    assert found.startswith(label + " ")
    assert found.endswith(behind + "\r\n")
    corners = len(found.split()) - 1 - len(behind.split())
    assert corners % 2 == 0
    plain = getattr(doors, door)(saved(photo()), yolo(blob(), "0") + "\n", "a.txt", "--format", "yolo").decode()
    assert found.split()[1 : 1 + corners] == plain.split()[1:], "the columns are no points"


@kind(COLUMNS, "refine", "batch")
def test_boxes_and_notes_beside_yolo_lines_are_left_alone(doors: Doors, door: str) -> None:
    box = "3 0.5 0.5 0.25 0.25"
    doors.file("given/classes.txt", "person\ncar\n")
    found = getattr(doors, door)(saved(photo()), f"{box}\n{yolo(blob())}\n", "a.txt", "--format", "yolo").decode()
    assert found.startswith(box + "\n")
    assert "a box without a mask" in (doors.said.stderr if door == "refine" else str(doors.report))


def with_hole() -> np.ndarray:
    hole = blob()
    hole[40:50, 48:66] = 0
    return hole


@kind(HOLES, "python", "refine", "batch", "http", "client")
def test_a_keyhole_is_a_hole_and_is_never_filled(doors: Doors, door: str) -> None:
    expected = doors.mask(door, saved(photo()), with_hole())
    assert expected[43:47, 53:61].mean() < 0.5
    rings = Mask.from_array(with_hole()).to_polygons(slits=True)
    if door == "python":
        found = doors.refiner().refine(photo(), [rings]).masks[0].to_array()
    elif door == "client":
        with Client(doors.server.url) as client:
            found = client.refine(photo(), [rings]).masks[0].to_array()
    else:
        records = [{"image_id": "a", "category_id": 1, "segmentation": rings}]
        (record,) = doors.records(door, saved(photo()), records)
        found = as_mask(record["segmentation"], H, W).to_array()
    assert np.array_equal(found, expected)


@kind(HOLES, "refine", "batch")
def test_a_keyhole_of_yolo_stays_one(doors: Doors, door: str) -> None:
    found = getattr(doors, door)(saved(photo()), yolo(with_hole()) + "\n", "a.txt", "--format", "yolo").decode()
    ring = (np.array(found.split()[1:], float).reshape(-1, 2) * [W, H]).ravel().tolist()
    expected = doors.mask(door, saved(photo()), with_hole())
    assert np.array_equal(Mask.from_polygons([ring], H, W).to_array(), expected)


FULL = (
    '{"image_id": "a",  "category_id":1, "segmentation": [[0,0, 104.0,0, 104,80, 0,8e1]], "bbox":[1,2,3,4], "area":1e1}'
)


@kind(UNTOUCHED, "refine", "batch", "http", "client")
def test_an_unchanged_record_keeps_polygon_box_and_area(doors: Doors, door: str) -> None:
    other = {"image_id": "a", "category_id": 2, "segmentation": Mask.from_array(blob()).to_rle()}
    whole: dict[str, Any] = json.loads(FULL)
    if door == "client":
        with Client(doors.server.url) as client:
            found = list(client.refine(photo(), [whole, other]).raw["masks"])
    elif door == "http":
        found = doors.http(saved(photo()), [whole, other])
    else:
        text = getattr(doors, door)(saved(photo()), f"[{FULL},{json.dumps(other)}]", "masks.json")
        assert text.startswith(f"[{FULL},".encode())
        found = json.loads(text)
    assert {key: found[0][key] for key in whole} == whole
    assert found[1]["segmentation"] != other["segmentation"]
