"""A folder of soft masks beside a prediction file: which belongs to which mask, and what is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bpr_service.errors import BprError
from bpr_service.formats import FileOptions, Paths, PredictionFormat, open_predictions
from bpr_service.formats.refining import RefinedUnit, refine_file_unit
from bpr_service.masks.images import read_image
from bpr_service.masks.mask import Mask, as_mask
from tests.formats.drawing import disc, image
from tests.scenes import Keep, Shift, refiner


def soft_of(mask: NDArray[np.uint8], top: float = 0.8) -> NDArray[np.float32]:
    return np.where(mask > 0, top, 0.3).astype(np.float32)


def opened(root: Path, softs: dict[str, NDArray[Any]], **options: Any) -> PredictionFormat:
    """COCO results of one image: a disc of id 40, a disc without an id, a record without a mask."""
    image(root / "images" / "a.jpg")
    discs = [Mask.from_array(disc(20, 20, 9)).to_rle(), Mask.from_array(disc(20, 36, 6)).to_rle()]
    records = [
        {"image_id": 1, "category_id": 3, "id": 40, "segmentation": discs[0]},
        {"image_id": 1, "category_id": 3, "segmentation": None},
        {"image_id": 1, "category_id": 3, "segmentation": discs[1]},
    ]
    (root / "pred.json").write_text(json.dumps(records))
    (root / "ann.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}]}))
    (root / "soft").mkdir()
    for name, array in softs.items():
        if name.endswith(".png"):
            (root / "soft" / name).write_bytes(Mask.from_array(array).to_png())
        else:
            np.save(root / "soft" / name, array)
    paths = Paths(str(root / "images"), str(root / "pred.json"), str(root / "ann.json"), soft=str(root / "soft"))
    return open_predictions("instance", "coco", Paths(**{**vars(paths), "options": FileOptions(**options)}))


def refined(file: PredictionFormat, network: Any) -> RefinedUnit:
    (unit,) = file.scan()
    return refine_file_unit(refiner(network), file, unit)


def test_masks_are_refined_with_their_probabilities(tmp_path: Path) -> None:
    softs = [soft_of(disc(20, 20, 10)), soft_of(disc(20, 36, 6))]
    file = opened(tmp_path, {"40.npy": softs[0], "a_2.npy": softs[1]})
    result = refined(file, Shift())
    photo = read_image(tmp_path / "images" / "a.jpg")
    want = refiner(Shift()).refine(photo, softs).masks
    records = [json.loads(data) for data in result.encoded.records.values()]
    for record, mask in zip((records[0], records[2]), want, strict=True):
        np.testing.assert_array_equal(
            as_mask(record["segmentation"], *mask.to_array().shape).to_array(), mask.to_array()
        )
    assert result.warnings == []
    assert result.failed == []


def test_what_is_not_refined_stays_as_the_file_has_it(tmp_path: Path) -> None:
    """A disc that is larger where it is cut at one half is still the file's where nothing was refined."""
    file = opened(tmp_path, {"40.npy": soft_of(disc(20, 20, 10))})
    result = refined(file, Keep())
    assert [r.status for r in result.reports] == ["unchanged"] * 2
    records = json.loads((tmp_path / "pred.json").read_text())
    assert [json.loads(data) for data in result.encoded.records.values()] == records
    assert result.warnings == [f"1: 1 of 2 masks have no file in {tmp_path / 'soft'}; refined without"]


def test_logits_beside_the_masks(tmp_path: Path) -> None:
    soft = soft_of(disc(20, 20, 10))
    logits = {"40.npy": np.log(soft / (1 - soft))}
    one, other = (
        refined(opened(tmp_path / name, given, logits=name == "logits"), Shift()).encoded.records
        for name, given in (("plain", {"40.npy": soft}), ("logits", logits))
    )
    assert one == other


@pytest.mark.parametrize(
    ("soft", "word"),
    [
        (soft_of(disc(20, 36, 9)), "of another object than its mask"),
        (np.where(disc(20, 20, 9) > 0, np.nan, 0.2), "range"),
        (soft_of(disc(20, 20, 9))[1:], "another size"),
        (soft_of(disc(20, 20, 9))[None], r"shape \(1, "),
    ],
)
def test_a_soft_mask_that_cannot_be_used_leaves_its_mask_alone(tmp_path: Path, soft: Any, word: str) -> None:
    result = refined(opened(tmp_path, {"40.npy": soft}), Shift())
    assert len(result.failed) == 1
    assert "40.npy: the soft mask of 1, mask 0: " in result.failed[0]
    assert re.search(word, result.failed[0])
    assert len(result.reports) == 1
    records = json.loads((tmp_path / "pred.json").read_text())
    assert json.loads(result.encoded.records[0]) == records[0]


def test_a_folder_that_cannot_be_used_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(BprError, match="no soft masks"):
        opened(tmp_path / "a", {})
    with pytest.raises(BprError, match=r"one soft mask twice: .* got 40\.npy and 40\.png"):
        opened(tmp_path / "b", {"40.npy": soft_of(disc(20, 20, 9)), "40.png": disc(20, 20, 9)})
    with pytest.raises(BprError, match="expected a folder"):
        open_predictions("instance", "coco", Paths("images", "pred.json", soft=str(tmp_path / "none")))
    for task, name in (("semantic", "png"), ("panoptic", "coco"), ("instance", "ids")):
        with pytest.raises(BprError, match="soft masks: expected a format of masks of their own"):
            open_predictions(task, name, Paths("images", "pred", soft=str(tmp_path)))
