"""Polygons of few corners in every format that holds polygons, and what is refused elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bpr_service import Refiner
from bpr_service.config import build
from bpr_service.errors import ConfigError
from bpr_service.formats import FORMATS, FileOptions, open_predictions
from bpr_service.formats.records.record_file import RecordFile
from bpr_service.formats.refining import refine_file_unit
from bpr_service.masks.encoding import form_of
from tests.formats.samples import kinds, sample, write_all


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    return Refiner.load("fast", gate=False)


def simplifying(kind: tuple[str, str], root: Path, **more: Any) -> Any:
    paths = sample(kind, root).paths
    return open_predictions(*kind, replace(paths, options=FileOptions(simplify=1.0, **more)))


@pytest.mark.parametrize("kind", [kind for kind in kinds() if "polygon" in FORMATS[kind].encodings], ids="-".join)
def test_refined_masks_go_out_as_polygons_of_few_corners(
    kind: tuple[str, str], tmp_path: Path, refiner: Refiner
) -> None:
    file = simplifying(kind, tmp_path)
    for unit in file.scan():
        refined = refine_file_unit(refiner, file, unit)
        if not refined.simplified:
            continue
        before: Any = refined.before
        after: Any = refined.after
        assert refined.simplified["masks"] == len(before.masks)
        assert refined.simplified["vertices_after"] <= refined.simplified["vertices_before"]
        assert refined.simplified["f_lost_at_1px"] < 0.02
        assert all(item.parts for item in after.instances if item.mask is not None and not item.mask.is_empty)


def test_coco_says_box_and_area_of_what_it_draws(tmp_path: Path, refiner: Refiner) -> None:
    file = simplifying(("instance", "coco"), tmp_path)
    records: dict[Any, Any] = {}
    for unit in file.scan():
        records |= refine_file_unit(refiner, file, unit).encoded.records
    file.write(str(tmp_path / "out.json"), [records[i] for i in sorted(records)])
    again = open_predictions("instance", "coco", replace(file.paths, predictions=str(tmp_path / "out.json")))
    for unit in again.scan():
        for item in again.read(unit).instances:  # type: ignore[union-attr]
            assert item.mask is not None
            assert form_of(item.record["segmentation"]) == "polygon"
            if "bbox" in item.record:
                assert item.record["bbox"] == item.mask.bbox
            if "area" in item.record:
                assert item.record["area"] == item.mask.area


def test_an_unchanged_polygon_keeps_every_byte(tmp_path: Path) -> None:
    file = simplifying(("instance", "coco"), tmp_path)
    write_all(file, tmp_path / "out.json", lambda unit, prediction: prediction)
    old = RecordFile(file.paths.predictions, (), "").scan()
    new = list(RecordFile(str(tmp_path / "out.json"), (), "").scan())
    assert [a[3] == b[3] for a, b in zip(old, new, strict=True)] == [False, False, True, False]
    assert json.loads((tmp_path / "out.json").read_text())[2]["segmentation"] == [[10, 10, 30, 10, 30, 25, 10, 25]]


@pytest.mark.parametrize("kind", [("instance", "png"), ("instance", "ids"), ("semantic", "png"), ("panoptic", "coco")])
def test_formats_without_polygons_refuse(kind: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="masks as polygon"):
        simplifying(kind, tmp_path)


@pytest.mark.parametrize("values", [{"simplify": 0.0}, {"simplify": -1.0}, {"simplify": 1.0, "encoding": "rle"}])
def test_options_that_cannot_be_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="simplify"):
        build(FileOptions, values)
