"""What LabelMe files say beside what every format's contract asks."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpr_service.formats import FileOptions, Paths, open_predictions
from bpr_service.masks.mask import Mask
from tests.formats.drawing import disc, image, ring
from tests.formats.samples import sample
from tests.formats.tool_samples import SQUARE


def folder(root: Path, shapes: list[Any], **keys: Any) -> Any:
    (root / "pred").mkdir(parents=True)
    for name in ("a", "b"):
        image(root / "images" / f"{name}.jpg")
    (root / "pred" / "a.json").write_text(json.dumps({"shapes": shapes, **keys}, indent=1))
    return open_predictions("instance", "labelme", Paths(str(root / "images"), str(root / "pred")))


def changed(file: Any, array: np.ndarray) -> dict[str, Any]:
    """The first file as it is with every mask replaced."""
    unit = next(iter(file.scan()))
    before = file.read(unit)
    encoded = file.encode(unit, before.with_masks([Mask.from_array(array)] * len(before.masks)))
    return dict(json.loads(encoded.files[unit.source]))


def test_image_path_goes_before_the_file_name(tmp_path: Path) -> None:
    file = folder(tmp_path, [], imagePath="..\\images\\b.jpg", imageData="A" * 4_000_000)
    assert [unit.image for unit in file.scan()] == ["b.jpg"]


def test_an_image_path_that_is_not_there_leaves_the_file_name(tmp_path: Path) -> None:
    assert [unit.image for unit in folder(tmp_path, [], imagePath="IMG_1.jpg").scan()] == ["a.jpg"]


def test_only_the_changed_shape_differs(tmp_path: Path) -> None:
    file = folder(tmp_path, [{"label": "a", "points": SQUARE, "shape_type": "polygon"}] * 2, imageData="AAAA")
    unit = next(iter(file.scan()))
    before = file.read(unit)
    new = file.encode(unit, before.with_masks([before.masks[0], Mask.from_array(disc(20, 20))])).files[unit.source]
    old = file.source(unit)
    key = b'"points": '
    at, rest = old.rindex(key) + len(key), old.rindex(b'"shape_type"')
    assert new[:at] == old[:at]
    assert new[new.rindex(b'"shape_type"') :] == old[rest:]
    assert new != old


def test_a_polygon_that_gets_a_hole_becomes_a_mask_and_stays_a_polygon_without(tmp_path: Path) -> None:
    for array, kind in ((ring(3, 2), "mask"), (disc(20, 20), "polygon")):
        file = folder(tmp_path / kind, [{"label": "a", "points": SQUARE, "shape_type": "polygon"}])
        shape = changed(file, array)["shapes"][0]
        assert shape["shape_type"] == kind
        assert list(shape)[:3] == ["label", "points", "shape_type"]


def test_masks_can_be_written_as_polygons(tmp_path: Path) -> None:
    paths = sample(("instance", "labelme"), tmp_path).paths
    file = open_predictions(
        "instance", "labelme", Paths(paths.images, paths.predictions, options=FileOptions(encoding="polygon"))
    )
    unit = next(iter(file.scan()))
    before: Any = file.read(unit)
    shapes = json.loads(file.encode(unit, before).files[unit.source])["shapes"]
    assert [(shape["shape_type"], shape["mask"]) for shape in shapes[:2]] == [("polygon", None)] * 2
    again = Mask.from_polygons([shapes[1]["points"]], 40, 52)
    np.testing.assert_array_equal(again.to_array(), ring(3, 2))


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"points": [[1, 1]], "shape_type": "polygon"}, "shape 0: polygon 0"),
        ({"points": [[0, 0], [3, 3]], "shape_type": "mask", "mask": "x"}, "two points and a PNG"),
        ({"points": [[50, 0], [53, 3]], "shape_type": "mask", "mask": None}, "two points and a PNG"),
    ],
)
def test_a_broken_shape_is_named_and_its_good_siblings_are_read(tmp_path: Path, shape: Any, says: str) -> None:
    file = folder(tmp_path, [shape, {"points": SQUARE}])
    first, second = file.read(next(iter(file.scan()))).instances
    assert says in first.problem
    assert second.mask.area == 300


def test_a_mask_outside_of_the_image_is_named(tmp_path: Path) -> None:
    png = base64.b64encode(Mask.from_array(np.ones((4, 4), np.uint8)).to_png()).decode()
    file = folder(tmp_path, [{"points": [[50, 0], [53, 3]], "shape_type": "mask", "mask": png}])
    assert "does not fit its box" in file.read(next(iter(file.scan()))).instances[0].problem
