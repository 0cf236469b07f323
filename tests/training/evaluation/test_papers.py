"""The measures of the papers beside the common ones: LVIS' groups, AP*, boundary F at some px, Cityscapes' own AP."""

from __future__ import annotations

import importlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bpr_service.errors import ConfigError, FormatError
from refiner_training.evaluate import evaluate_instances, evaluate_semantic
from refiner_training.evaluation.cityscapes import evaluate_cityscapes
from refiner_training.evaluation.lvis import COCO_IDS, SYNSETS, TO_COCO
from tests.training import oracles
from tests.training.synthetic import write_coco, write_labels

SYNSET = {1: "dog.n.01", 2: "ladybug.n.01", 5: "person.n.01"}
TO_COCOS = {1: 18, 5: 1}


@pytest.fixture(scope="module")
def lvis(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Annotations as LVIS writes them: synsets, frequencies, what was verified; results with its ids."""
    paths = write_coco(tmp_path_factory.mktemp("lvis"), images=4)
    data = json.loads(paths["gt"].read_text())
    for category, frequency in zip(data["categories"], "rcf", strict=True):
        category |= {"synset": SYNSET[category["id"]], "frequency": frequency}
    for image in data["images"]:
        image |= {"neg_category_ids": [1, 2], "not_exhaustive_category_ids": [2, 5]}
    paths["gt"].write_text(json.dumps(data))
    return paths


def test_ap_of_rare_common_and_frequent(lvis: dict[str, Path]) -> None:
    found = evaluate_instances(lvis["gt"], lvis["before"], before=lvis["after"])
    for name, category in (("rare", "c1"), ("common", "c2"), ("frequent", "c5")):
        assert found.summary[f"AP_{name}"] == pytest.approx(found.per_class[category]["AP"], abs=1e-12)
        own = found.per_class[category]["boundary_AP"]
        assert found.summary[f"boundary_AP_{name}"] == pytest.approx(own, abs=1e-12)
    assert found.summary["before"]["AP_rare"] > found.summary["AP_rare"]


def test_coco_has_no_frequencies(tmp_path: Path) -> None:
    paths = write_coco(tmp_path, images=2)
    assert "AP_rare" not in evaluate_instances(paths["gt"], paths["after"]).summary


def test_ap_star_is_the_ap_of_a_file_under_cocos_ids(lvis: dict[str, Path], tmp_path: Path) -> None:
    """By hand: annotations, results and lists of verified categories renumbered, what COCO lacks left out."""
    data, results = json.loads(lvis["gt"].read_text()), json.loads(lvis["before"].read_text())
    coco = [r | {"category_id": TO_COCOS[r["category_id"]]} for r in results if r["category_id"] in TO_COCOS]
    for entry in coco:
        entry.pop("gt", None)
    renamed = {**data, "categories": [{"id": i, "name": str(i)} for i in TO_COCOS.values()]}
    renamed["annotations"] = [
        a | {"category_id": TO_COCOS[a["category_id"]]} for a in data["annotations"] if a["category_id"] in TO_COCOS
    ]
    lists = {"neg_category_ids": [18], "not_exhaustive_category_ids": [1]}
    renamed["images"] = [image | lists for image in data["images"]]
    (tmp_path / "truth.json").write_text(json.dumps(renamed))
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    expected = evaluate_instances(tmp_path / "truth.json", tmp_path / "coco.json").summary
    found = evaluate_instances(lvis["gt"], tmp_path / "coco.json", coco_ids=True)
    for name in ("AP", "boundary_AP", "AP50", "AF"):
        assert found.summary[name] == pytest.approx(expected[name], abs=1e-12), name
    assert set(found.per_class) == {"dog", "person"}
    assert found.summary["AP"] > 0.1


def test_every_coco_category_has_a_synset() -> None:
    assert len(SYNSETS) == len(set(SYNSETS)) == len(COCO_IDS) == 80
    assert (TO_COCO["person.n.01"], TO_COCO["stop_sign.n.01"], TO_COCO["toothbrush.n.01"]) == (1, 13, 90)
    assert (TO_COCO["toilet.n.02"], TO_COCO["teddy.n.01"], TO_COCO["cow.n.01"]) == (70, 88, 21)


def test_ap_star_of_a_file_that_is_not_lvis(tmp_path: Path) -> None:
    paths = write_coco(tmp_path, images=2)
    with pytest.raises(FormatError, match=r"expected LVIS annotations.*got no neg_category_ids"):
        evaluate_instances(paths["gt"], paths["after"], coco_ids=True)


def test_boundary_f_at_some_px(tmp_path: Path) -> None:
    paths = write_labels(tmp_path, images=2)
    found = evaluate_semantic(paths["labels"], paths["before"], 4, before=paths["after"], boundary_px=(5, 3)).to_json()
    values: dict[int, list[Any]] = {5: [], 3: []}
    for path in sorted(paths["labels"].iterdir()):
        truth, prediction = (np.array(Image.open(p)) for p in (path, paths["before"] / path.name))
        seen = truth != 255
        for px, own in values.items():
            frames = [((prediction == c) & seen, (truth == c) & seen) for c in range(4)]
            own.append([oracles.boundary_f(a.astype(np.uint8), b.astype(np.uint8), px) for a, b in frames])
    for px, own in values.items():
        assert found[f"F_{px}px"] == pytest.approx(np.mean(own), abs=1e-9)
        assert found["per_class"]["1"][f"F_{px}px"] == pytest.approx(np.mean(own, axis=0)[1], abs=1e-9)
    assert found["AF"] < found["F_3px"] < found["F_5px"]
    assert found["before"]["F_3px"] > found["F_3px"]


# ---- Cityscapes ------------------------------------------------------------------------------------------------

STEM = "aachen_000000_000019"


def write_cityscapes(folder: Path, *, shift: int = 0) -> tuple[Path, Path]:
    """One image with two people and a car, and predictions that are ``shift`` px off."""
    truth, predictions = folder / "gtFine" / "aachen", folder / "predictions"
    truth.mkdir(parents=True)
    predictions.mkdir()
    ids, lines = np.full((128, 256), 7, np.uint16), []
    for number, (label, x) in enumerate(((24, 10), (24, 90), (26, 170))):
        ids[30:90, x : x + 50] = label * 1000 + number
        mask = np.zeros(ids.shape, np.uint8)
        mask[30:90, x + shift : x + shift + 50] = 255
        Image.fromarray(mask).save(predictions / f"{number}.png")
        lines.append(f"{number}.png {label} 0.9")
    Image.fromarray(ids).save(truth / f"{STEM}_gtFine_instanceIds.png")
    (predictions / f"{STEM}_pred.txt").write_text("\n".join(lines))
    return truth.parent, predictions


def test_cityscapes_ap_without_its_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.sys.modules, "cityscapesscripts", None)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="pip install cityscapesscripts"):
        evaluate_cityscapes(*write_cityscapes(tmp_path))


@pytest.mark.skipif(find_spec("cityscapesscripts") is None, reason="cityscapesscripts is no dependency: its licence")
def test_cityscapes_ap_by_its_scripts(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found = evaluate_cityscapes(*write_cityscapes(tmp_path / "a"))
    assert (found["AP"], found["per_class"]["person"]["AP"], found["images"]) == (1.0, 1.0, 1)
    truth, predictions = write_cityscapes(tmp_path / "b", shift=10)  # IoU 40 / 60: right at 0.5, 0.55, 0.6, 0.65
    found = evaluate_cityscapes(truth, predictions)
    assert found["AP50"] == pytest.approx(1.0)
    assert found["AP"] == pytest.approx(0.4)
    with pytest.raises(FormatError, match="instanceIds"):
        evaluate_cityscapes(predictions, predictions)
    next(predictions.glob("*.txt")).unlink()
    with pytest.raises(FormatError, match="Found no prediction"):
        evaluate_cityscapes(truth, predictions)
