"""One contract for all formats: read, write, read is the identity; changed masks come back exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from bpr_service.formats import FORMATS, InstancePrediction, open_predictions
from tests.formats.drawing import disc, ring
from tests.formats.samples import content, kinds, result_paths, sample, write_all

every_format = pytest.mark.parametrize("kind", kinds(), ids="-".join)


def out_path(kind: tuple[str, str], root: Path) -> Path:
    return root / ("out" if FORMATS[kind].result_is_folder else "out.json")


@every_format
def test_read_write_read_is_the_identity(kind: tuple[str, str], tmp_path: Path) -> None:
    file = sample(kind, tmp_path)
    out = out_path(kind, tmp_path)
    assert write_all(file, out, lambda unit, prediction: prediction) == []
    again = open_predictions(*kind, result_paths(file, out))
    assert content(again) == content(file)


@every_format
def test_forced_encoding_is_the_identity(kind: tuple[str, str], tmp_path: Path) -> None:
    """The masks go through the encoder, not only the bytes of what did not change."""
    file = sample(kind, tmp_path)
    out = out_path(kind, tmp_path)

    def force(unit: Any, prediction: Any) -> Any:
        if isinstance(prediction, InstancePrediction):
            return InstancePrediction(tuple(replace(item, changed=True) for item in prediction.instances))
        return prediction

    write_all(file, out, force)
    assert content(open_predictions(*kind, result_paths(file, out))) == content(file)


@every_format
def test_untouched_units_come_back_byte_for_byte(kind: tuple[str, str], tmp_path: Path) -> None:
    file = sample(kind, tmp_path)
    out = out_path(kind, tmp_path)
    write_all(file, out, None)
    if file.result_is_folder:
        source = Path(file.paths.panoptic_dir or file.paths.predictions)
        names = [p.relative_to(source) for suffix in ("png", "np[yz]") for p in source.rglob(f"*.{suffix}")] + [
            p.relative_to(source) for suffix in ("txt", "json") for p in source.rglob(f"a*.{suffix}")
        ]
        assert names
        for name in names:
            assert (out / name).read_bytes() == (source / name).read_bytes(), name
    elif file.name == "parquet":  # its bytes are its writer's; what it holds is the same, types included
        assert pq.read_table(out).equals(pq.read_table(file.paths.predictions))
    else:
        assert out.read_bytes() == Path(file.paths.predictions).read_bytes()


@pytest.mark.parametrize("kind", kinds("instance"), ids="-".join)
def test_changed_masks_are_written(kind: tuple[str, str], tmp_path: Path) -> None:
    from bpr_service.masks.mask import Mask

    file = sample(kind, tmp_path)
    out = out_path(kind, tmp_path)
    if file.name == "ids":
        pytest.skip("a label map; its changes are tested with those of semantic maps")
    new = [Mask.from_array(ring(10, 12 + i)) for i in range(3)]
    warnings = write_all(file, out, lambda unit, prediction: prediction.with_masks(new[: len(prediction.masks)]))
    assert warnings == []
    again = open_predictions(*kind, result_paths(file, out))
    for before, unit in zip(file.scan(), again.scan(), strict=True):
        old, read = file.read(before), again.read(unit)
        assert isinstance(old, InstancePrediction)
        assert isinstance(read, InstancePrediction)
        left = [(item, was) for item, was in zip(read.instances, old.instances, strict=True) if was.mask is not None]
        for (item, was), mask in zip(left, new, strict=False):
            assert item.mask is not None
            np.testing.assert_array_equal(item.mask.to_array(), mask.to_array())
            assert (item.position, item.category, item.score) == (was.position, was.category, was.score)
            if isinstance(item.record, dict):
                assert list(item.record)[: len(was.record)] == list(was.record)  # keys and their order
                assert item.record.get("my") == was.record.get("my")
                if "bbox" in item.record:
                    assert item.record["bbox"] == mask.bbox
                if "area" in item.record:
                    assert item.record["area"] == mask.area


@pytest.mark.parametrize("kind", [*kinds("semantic"), ("instance", "ids")], ids="-".join)
def test_changed_label_maps_are_written(kind: tuple[str, str], tmp_path: Path) -> None:
    from PIL import Image

    if kind[1] == "soft":
        pytest.skip("probabilities; the next test is theirs")
    file = sample(kind, tmp_path)

    def edit(unit: Any, prediction: Any) -> Any:
        new = prediction.label_map.copy()
        new[:2] = new[20, 2]
        return prediction.with_label_map(new)

    write_all(file, tmp_path / "out", edit)
    for unit in file.scan():
        old, new = tmp_path / "pred" / unit.source, tmp_path / "out" / unit.source
        with Image.open(old) as before, Image.open(new) as after:
            assert after.mode == before.mode
            assert after.getpalette() == before.getpalette()
            expected = np.asarray(before).copy()
            expected[:2] = expected[20, 2]
            np.testing.assert_array_equal(np.asarray(after), expected)


def test_changed_labels_are_written_into_probabilities(tmp_path: Path) -> None:
    file = sample(("semantic", "soft"), tmp_path)
    write_all(file, tmp_path / "out", lambda _, prediction: prediction.with_label_map(prediction.label_map * 0 + 2))
    again = open_predictions("semantic", "soft", result_paths(file, tmp_path / "out"))
    for unit in again.scan():
        assert (again.read(unit).label_map == 2).all()


def test_changed_segments_have_new_areas_and_boxes(tmp_path: Path) -> None:
    file = sample(("panoptic", "coco"), tmp_path)

    def edit(unit: Any, prediction: Any) -> Any:
        new = prediction.segment_map.copy()
        new[25:28] = 0
        new[0, 51] = 300
        return prediction.with_segments(new, prediction.segments_info)

    write_all(file, tmp_path / "out", edit)
    again = open_predictions("panoptic", None, result_paths(file, tmp_path / "out"))
    for unit in again.scan():
        read: Any = again.read(unit)
        for info in read.segments_info:  # by hand, on the full frame
            ys, xs = np.nonzero(read.segment_map == info["id"])
            assert info["area"] == ys.size
            assert info["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
    frame = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert frame["info"] == {"year": 2026}
    assert frame["categories"] == [{"id": 9, "isthing": 0}]
    assert [a["image_id"] for a in frame["annotations"]] == [2, 1]


def test_yolo_holds_holes_and_parts(tmp_path: Path) -> None:
    from bpr_service.masks.mask import Mask

    file = sample(("instance", "yolo"), tmp_path)
    masks = [Mask.from_array(ring(3, 2)), Mask.from_array(disc(20, 25))]
    assert write_all(file, tmp_path / "out", lambda unit, prediction: prediction.with_masks(masks)) == []
    again = open_predictions("instance", "yolo", result_paths(file, tmp_path / "out"))
    read: Any = again.read(next(iter(again.scan())))
    for item, mask in zip(read.instances, masks, strict=True):
        np.testing.assert_array_equal(item.mask.to_array(), mask.to_array())


def test_a_polygon_that_gets_a_hole_becomes_an_rle(tmp_path: Path) -> None:
    from bpr_service.masks.mask import Mask

    file = sample(("instance", "coco"), tmp_path)

    def become(mask: Mask, unit: Any, prediction: Any) -> Any:
        return prediction.with_masks([mask] * 2)

    for hole, kind in ((ring(3, 2), dict), (disc(20, 20), list)):
        write_all(file, tmp_path / "out.json", partial(become, Mask.from_array(hole)))
        third = json.loads((tmp_path / "out.json").read_text())[2]
        assert isinstance(third["segmentation"], kind)
