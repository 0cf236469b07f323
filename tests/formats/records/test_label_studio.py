"""What Label Studio's exports say beside what every format's contract asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bpr_service.errors import FormatError
from bpr_service.formats import Paths, open_predictions
from bpr_service.formats.records.label_studio import file_name
from bpr_service.masks.mask import Mask
from tests.formats.drawing import disc, image, ring
from tests.formats.samples import sample, write_all

KIND = ("instance", "label-studio")


def opened(root: Path, tasks: Any) -> Any:
    image(root / "images" / "a.jpg")
    (root / "a.json").write_text(json.dumps(tasks))
    return open_predictions(*KIND, Paths(str(root / "images"), str(root / "a.json")))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("/data/upload/1/0a1b2c3d-a%20b.jpg", "upload/1/0a1b2c3d-a b.jpg"),
        ("/data/local-files/?d=x%2Fa.jpg", "x/a.jpg"),
        ("s3://bucket/x/a.jpg", "x/a.jpg"),
        ("https://example.org/x/a.jpg?token=1", "x/a.jpg"),
        ("data:image/png;base64,AAAA", None),
    ],
)
def test_the_image_of_a_task_is_found_by_every_kind_of_address(value: str, name: str | None) -> None:
    assert file_name(value) == name


def test_only_the_value_of_a_changed_region_differs(tmp_path: Path) -> None:
    file = sample(KIND, tmp_path)
    old = json.loads(Path(file.paths.predictions).read_text())
    new_mask = Mask.from_array(disc(20, 20))
    write_all(file, tmp_path / "out.json", lambda unit, read: read.with_masks([new_mask] * len(read.masks)))
    new = json.loads((tmp_path / "out.json").read_text())
    for tasks in (old, new):
        assert tasks[0]["annotations"][0]["result"][0]["value"].pop("rle")
        assert tasks[1]["predictions"][0]["result"][0]["value"].pop("points")
    assert new == old


def test_a_polygon_holds_holes_and_parts(tmp_path: Path) -> None:
    file = sample(KIND, tmp_path)
    unit = list(file.scan())[1]
    read: Any = file.read(unit)
    encoded = file.encode(unit, read.with_masks([Mask.from_array(ring(3, 2))]))
    again = opened(tmp_path / "again", [{**json.loads(encoded.records[1]), "data": {"image": "a.jpg"}}])
    assert (again.read(next(iter(again.scan()))).masks[0].to_array() == ring(3, 2)).all()


def test_an_image_that_is_not_there_stays_its_own_problem(tmp_path: Path) -> None:
    file = opened(tmp_path, [{"id": 1, "data": {"image": "/data/upload/x.jpg"}}, {"id": 2, "data": {"image": "a.jpg"}}])
    first, second = file.scan()
    assert "upload/x.jpg" in first.problem
    assert second.problem is None


def test_regions_that_cannot_be_read_are_named_or_left_alone(tmp_path: Path) -> None:
    points: dict[str, Any] = {"points": [[10, 10], [50, 10], [50, 50]]}
    regions = [
        {"id": "turned", "image_rotation": 90, "value": points},
        {"id": "size", "original_width": 40, "original_height": 52, "value": points},
        {"id": "brush", "value": {"rle": [1, 2, 3, 4, 5, 6, 7, 8]}},
        {"id": "points", "value": {"points": ["x"]}},
        {"id": "good", "value": points},
    ]
    file = opened(tmp_path, [{"data": {"image": "a.jpg"}, "annotations": [{"result": regions}, None]}])
    turned, size, brush, bad, good = file.read(next(iter(file.scan()))).instances
    assert turned.skipped
    assert "region size: another size" in size.problem
    assert "region brush" in brush.problem
    assert "in percent" in bad.problem
    assert good.mask.area > 0


def test_another_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="keys image_id"):
        list(opened(tmp_path, [{"image_id": 1}]).scan())
