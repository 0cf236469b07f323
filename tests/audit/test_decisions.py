from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpr_service.audit.decisions import Head, apply, read_decisions, read_report, replace_label, share_of_wrong
from bpr_service.audit.unit import listed
from bpr_service.errors import FormatError
from bpr_service.formats import FORMATS, open_predictions
from bpr_service.masks.mask import Mask
from tests.formats.drawing import disc
from tests.formats.samples import kinds, result_paths, sample


def head_of(kind: tuple[str, str], file: Any) -> Head:
    paths = file.paths
    return Head({"task": kind[0], "format": kind[1], "images": paths.images, "annotations": paths.predictions,
                 "dataset": paths.dataset, "panoptic_dir": paths.panoptic_dir})  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind[1] != "masks"], ids="-".join)
def test_only_the_taken_masks_are_replaced(kind: tuple[str, str], tmp_path: Path) -> None:
    file = sample(kind, tmp_path)
    unit = next(iter(file.scan()))
    before = {m.position: m.mask for m in listed(file, file.read(unit), None)[0]}
    position = max(before)
    new = Mask.from_array(disc(20, 30, 8))
    out = tmp_path / ("out" if FORMATS[kind].result_is_folder else "out.json")
    row = {"key": [unit.number, position], "replacement": new.to_rle()}
    assert apply(head_of(kind, file), {"k": row}, str(out)) == 1

    again = open_predictions(*kind, result_paths(file, out))
    units = list(again.scan())
    after = {m.position: m.mask for m in listed(again, again.read(units[0]), None)[0]}
    wanted = new.to_array() > 0
    if kind[0] == "panoptic":  # void stays void
        wanted &= file.read(unit).segment_map > 0
    assert np.array_equal(after[position].to_array() > 0, wanted)
    if kind[0] == "instance" and kind[1] != "ids":  # masks that may overlap keep their pixels
        others = before.keys() - {position}
        assert all(np.array_equal(after[p].to_array(), before[p].to_array()) for p in others)
    for old, one in list(zip(file.scan(), units, strict=True))[1:]:
        assert again.untouched(one).records == file.untouched(old).records
        assert list(again.untouched(one).files.values()) == list(file.untouched(old).files.values())


def test_a_key_of_another_file_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    file = sample(("instance", "coco"), tmp_path)
    rle = Mask.from_array(disc(20, 30)).to_rle()
    for key in ([9, 0], [0, 99]):
        with pytest.raises(FormatError, match="other annotations"):
            apply(head_of(("instance", "coco"), file), {"k": {"key": key, "replacement": rle}}, str(tmp_path / "o"))
    assert not (tmp_path / "o").exists()


def test_what_a_label_loses_goes_to_the_nearest_other_and_void_stays() -> None:
    labels = np.zeros((20, 30), np.uint8)
    labels[:, 10:20], labels[:, 20:] = 1, 2
    labels[:3] = 255
    narrow = np.zeros_like(labels)
    narrow[:, 13:22] = 1
    replace_label(labels, 1, Mask.from_array(narrow), 255)
    assert (labels[:3] == 255).all()
    row = labels[10].tolist()
    assert row == [0] * 13 + [1] * 9 + [2] * 8
    with pytest.raises(KeyError):
        replace_label(labels, 7, Mask.from_array(narrow), 255)


def test_decisions_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    for text in ("[]", "{", '{"decisions": 3}', '{"decisions": {"0/1": "maybe"}}'):
        path.write_text(text)
        with pytest.raises(FormatError):
            read_decisions(str(path))
    path.write_text('{"decisions": {"0/1": "take"}}')
    assert read_decisions(str(path)) == {"0/1": "take"}


def test_a_sample_must_be_decided_whole(tmp_path: Path) -> None:
    strata = [{"masks": 90, "suspicion": 0.01, "drawn": 2}, {"masks": 10, "suspicion": 0.6, "drawn": 2}]
    masks = [{"key": [0, k], "stratum": k // 2} for k in range(4)]
    head = Head({"sample": {"strata": strata, "masks": masks}})
    with pytest.raises(FormatError, match="none about 1, as 0/3"):
        share_of_wrong(head, {"0/0": "keep", "0/1": "keep", "0/2": "take"})
    share = share_of_wrong(head, {"0/0": "keep", "0/1": "keep", "0/2": "take", "0/3": "keep"})
    assert share.share == pytest.approx(0.05)
    assert share.low < 0.05 < share.high
    with pytest.raises(FormatError, match="--sample"):
        share_of_wrong(Head({}), {})


def test_another_file_is_no_report(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"masks": [], "task": "instance"}))
    with pytest.raises(FormatError, match="a report of bpr audit"):
        read_report(str(path), {})
