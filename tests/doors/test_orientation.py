"""A photograph's EXIF orientation: what masks speak of is the format's convention or a choice, never a guess."""

from __future__ import annotations

import numpy as np
import pytest

from bpr_service.masks.brush_rle import decode_brush, encode_brush
from bpr_service.masks.mask import Mask
from tests.doors import kind
from tests.doors.doors import Doors, H, W, b64, blob, photo, saved, stored

ORIENTATION = "1 orientation"
pytestmark = pytest.mark.filterwarnings("ignore:the photograph has EXIF")


@pytest.mark.parametrize("turn", [3, 5, 6])
@kind(ORIENTATION, "python", "refine", "batch", "http", "client")
def test_masks_speak_of_the_stored_pixels_or_of_the_upright_view(doors: Doors, door: str, turn: int) -> None:
    turned, upright = saved(photo(), orientation=turn), saved(photo())
    expected = doors.mask(door, upright, blob())
    assert (expected != blob()).any()
    assert np.array_equal(doors.mask(door, turned, blob(), exif="apply"), expected)
    as_stored = saved(stored(photo(), turn))
    lying = stored(blob(), turn)
    assert np.array_equal(doors.mask(door, turned, lying), doors.mask(door, as_stored, lying))


@kind(ORIENTATION, "refine", "batch")
def test_yolo_speaks_of_the_upright_view(doors: Doors, door: str) -> None:
    ring = np.array(Mask.from_array(blob()).to_polygons()[0]).reshape(-1, 2) / [W, H]
    line = "0 " + " ".join(f"{value:.6f}" for value in ring.ravel()) + "\n"
    call = getattr(doors, door)
    options = ("--format", "yolo")
    expected = call(saved(photo()), line, "a.txt", *options)
    assert expected != line.encode()
    assert call(saved(photo(), orientation=6), line, "a.txt", *options) == expected


@kind(ORIENTATION, "python", "refine", "batch", "http", "client")
def test_another_orientation_than_upright_is_said(doors: Doors, door: str) -> None:
    turned, lying = saved(photo(), orientation=3), stored(blob(), 3)
    if door == "python":
        with pytest.warns(UserWarning, match="EXIF orientation 3; its pixels were taken as stored"):
            doors.refiner().refine(turned, [lying])
        return
    doors.mask("http" if door == "client" else door, turned, lying)
    said = doors.answer["warnings"] if door in ("http", "client") else [doors.said.stderr]
    assert "EXIF orientation 3" in said[0]
    if door == "batch":
        assert "EXIF orientation 3" in doors.report["warnings"][0]


@kind(ORIENTATION, "label studio")
def test_an_annotator_draws_on_the_upright_photograph(doors: Doors) -> None:
    value = {"format": "rle", "rle": encode_brush(blob()), "brushlabels": ["x"]}
    region = {"id": "r", "type": "brushlabels", "original_width": W, "original_height": H, "value": value}
    found = []
    for orientation in (1, 6):
        data = "data:image/png;base64," + b64(saved(photo(), orientation=orientation))
        body = {"tasks": [{"data": {"image": data}, "annotations": [{"result": [region]}]}]}
        response = doors.server.client.post("/predict", json=body)
        assert response.status_code == 200, response.text
        found.append(decode_brush(response.json()["results"][0]["result"][0]["value"]["rle"], H, W))
    assert np.array_equal(found[0], found[1])
    assert (found[0] != blob()).any()
