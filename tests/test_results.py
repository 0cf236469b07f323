"""What a result can be turned into, and what the package offers to a person who types its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageShow

import bpr_service
from bpr_service import Mask, Refiner, RefineResult
from bpr_service.errors import ConfigError
from bpr_service.examples import load_example


@pytest.fixture(scope="module")
def result() -> RefineResult:
    example = load_example("coffee")
    return Refiner.load("fast").refine(example.image, [entry["segmentation"] for entry in example.instances])


def test_the_package_names_what_it_has() -> None:
    offered = dir(bpr_service)
    assert {"Refiner", "RefineResult", "Mask", "BprError", "client", "connect", "formats"} <= set(offered)
    for name in offered:
        assert getattr(bpr_service, name) is not None
    with pytest.raises(AttributeError, match=r"no attribute 'Refinr'; it has .*'Refiner'"):
        _ = bpr_service.Refinr


def test_a_picture_and_records_are_written_by_the_suffix(result: RefineResult, tmp_path: Path) -> None:
    result.save(tmp_path / "a.png")
    picture = cv2.imread(str(tmp_path / "a.png"))[:, :, ::-1]
    assert np.array_equal(picture, result.picture())
    assert picture.shape[1] == 1200
    assert result._repr_png_() == (tmp_path / "a.png").read_bytes()
    result.save(tmp_path / "a.json")
    records = json.loads((tmp_path / "a.json").read_text())
    assert records == result.to_coco()
    for name in ("a.gif", "a"):
        with pytest.raises(ConfigError, match=r"expected \.png or \.json"):
            result.save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png"]


def test_records_are_those_of_coco(result: RefineResult) -> None:
    records = result.to_coco(image_id=7, category_ids=range(3, 3 + len(result.masks)))
    assert [record["category_id"] for record in records] == [3 + i for i in range(len(result.masks))]
    for record, mask in zip(records, result.masks, strict=True):
        assert np.array_equal(Mask.from_rle(record["segmentation"]).to_array(), mask.to_array())
        assert (record["image_id"], record["bbox"], record["area"]) == (7, mask.bbox, mask.area)
    with pytest.raises(ConfigError, match=f"expected {len(result.masks)}, one a mask"):
        result.to_coco(category_ids=[1])


def test_detections_of_supervision(result: RefineResult) -> None:
    found = result.to_supervision()
    assert found.mask is not None
    assert [int(mask.sum()) for mask in found.mask] == [mask.area for mask in result.masks]
    x, y, w, h = result.masks[0].bbox
    assert found.xyxy[0].tolist() == [x, y, x + w, y + h], "as refine_detections has them"
    assert len(replace(result, masks=[], reports=[], coarse=[]).to_supervision()) == 0


def test_it_is_shown_in_the_viewer_that_the_system_has(result: RefineResult, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Image.Image] = []

    class Viewer(ImageShow.Viewer):
        def show(self, image: Image.Image, **options: Any) -> int:
            shown.append(image)
            return 1

    monkeypatch.setattr(ImageShow, "_viewers", [Viewer()])
    result.show()
    assert np.array_equal(np.asarray(shown[0]), result.picture())


def test_without_its_image_there_is_no_picture(result: RefineResult) -> None:
    bare = replace(result, image=None)
    assert bare._repr_png_() is None
    with pytest.raises(ConfigError, match="a result that holds its image"):
        bare.show()


SNIPPET = """
import numpy as np
from bpr_service import Refiner
image, mask = np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8)
result = Refiner.load("balanced").refine(image, [mask])
reveal_type(result)
reveal_type([m.to_rle() for m in result.masks])
reveal_type(result.reports[0].confidence)
reveal_type(Refiner.load().refine_semantic(image, mask).label_map)
"""


def test_a_users_lines_are_typed(tmp_path: Path) -> None:
    """What a strict checker knows of the three lines of the README, from another folder."""
    (tmp_path / "user.py").write_text(SNIPPET)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
    command += ["--cache-dir", str(tmp_path / "cache"), "user.py"]
    there = {**os.environ, "MYPYPATH": str(Path(bpr_service.__file__).parents[1])}  # wherever it is installed
    done = subprocess.run(command, cwd=tmp_path, env=there, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout
    for kind in ('"bpr_service.results.RefineResult"', '"list[dict[str, Any]]"', '"float | None"', "ndarray"):
        assert kind in done.stdout.replace("builtins.", "")
