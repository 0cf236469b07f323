"""``bpr demo``, ``bpr refine`` and ``bpr doctor``, called as a person calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from bpr_service.command_options import TASKS
from bpr_service.examples import load_example
from bpr_service.formats.one_image import PICTURE_FORMATS, folder_format
from bpr_service.masks.label_maps import read_panoptic_png, write_panoptic_png
from bpr_service.masks.mask import Mask
from tests.calls import call_bpr


def bpr(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return call_bpr(*arguments, cwd=cwd)


@pytest.fixture(scope="module")
def coffee(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a photograph and its coarse masks in several encodings."""
    folder = tmp_path_factory.mktemp("coffee")
    example = load_example("coffee")
    cv2.imwrite(str(folder / "image.png"), example.image[:, :, ::-1])
    masks = [Mask.from_rle(i["segmentation"]) for i in example.instances]
    (folder / "mask.png").write_bytes(masks[0].to_png())
    entries = [
        {"id": 7, "score": 0.5, "colour": "white", "segmentation": masks[0].to_rle(), "bbox": [0, 0, 1, 1]},
        {"id": 3, "segmentation": masks[1].to_rle(compressed=False), "area": 1},
        {"id": 9, "segmentation": masks[1].to_polygons()},
    ]
    (folder / "masks.json").write_text(json.dumps({"note": "kept", "instances": entries}))
    labels = np.where(masks[1].to_array() > 0, 2, masks[0].to_array()).astype(np.uint8)
    labels[:5] = 255
    cv2.imwrite(str(folder / "labels.png"), labels)
    ids = np.where(labels == 255, 0, labels.astype(np.int32) * 300)
    write_panoptic_png(folder / "ids.png", ids)
    infos = [{"id": 300, "category_id": 1, "extra": "x"}, {"id": 600, "category_id": 2}]
    (folder / "segments.json").write_text(json.dumps({"segments_info": infos}))
    return folder


def test_demo_writes_json_and_pictures(tmp_path: Path) -> None:
    done = bpr("demo", "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    assert "porcelain" in done.stdout
    changed = []
    for name in ("astronaut", "chelsea", "coffee"):
        refined = json.loads((tmp_path / "demo" / f"{name}.json").read_text())["instances"]
        coarse = load_example(name).instances
        assert [r["id"] for r in refined] == [c["id"] for c in coarse]
        changed += [r["segmentation"] != c["segmentation"] for r, c in zip(refined, coarse, strict=True)]
        assert cv2.imread(str(tmp_path / "demo" / f"{name}.png")).shape[1] == 1200
    assert sum(changed) > len(changed) / 2, "a mask that the model expects no gain for stays as it is"


def test_instance_json_keeps_order_ids_encodings_and_unknown_keys(coffee: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "picture.png"
    done = bpr("refine", coffee / "image.png", coffee / "masks.json", "-o", out, "--picture", picture)
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    first, second, third = document["instances"]
    assert document["note"] == "kept"
    assert [e["id"] for e in document["instances"]] == [7, 3, 9]
    assert (first["score"], first["colour"]) == (0.5, "white")
    mask = Mask.from_rle(first["segmentation"])
    assert first["bbox"] == mask.bbox
    assert isinstance(second["segmentation"]["counts"], list)
    assert second["area"] == Mask.from_rle(second["segmentation"]).area
    assert isinstance(third["segmentation"], list)
    assert picture.is_file()


def test_a_setting_that_differs_from_the_presets(coffee: Path, tmp_path: Path) -> None:
    call = ("refine", coffee / "image.png", coffee / "mask.png", "--preset", "fast")
    done = bpr(*call, "-o", tmp_path / "a.png", "--set", "backend=openvino", "--set", "nms_threshold=0.5")
    assert done.returncode == 0, done.stderr
    assert "cpu, openvino" in done.stderr
    fewer = bpr(*call, "-o", tmp_path / "b.png")
    rows = [next(line.split() for line in each.stderr.splitlines() if "refined" in line) for each in (done, fewer)]
    assert int(rows[0][4]) > int(rows[1][4])


def test_png_semantic_and_panoptic(coffee: Path, tmp_path: Path) -> None:
    done = bpr("refine", coffee / "image.png", coffee / "mask.png", "-o", tmp_path / "m.png")
    assert done.returncode == 0, done.stderr
    before, after = (cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in (coffee / "mask.png", tmp_path / "m.png"))
    assert before.shape == after.shape
    assert (before != after).any()
    semantic = ("refine", coffee / "image.png", coffee / "labels.png", "--task", "semantic", "-o", tmp_path / "l.png")
    done = bpr(*semantic)
    assert done.returncode == 0, done.stderr
    labels = cv2.imread(str(tmp_path / "l.png"), cv2.IMREAD_UNCHANGED)
    assert (labels[:5] == 255).all()
    assert set(np.unique(labels)) == {0, 1, 2, 255}
    panoptic = ("refine", coffee / "image.png", coffee / "ids.png", "--task", "panoptic", "-o", tmp_path / "p.png")
    done = bpr(*panoptic, "--segments", coffee / "segments.json")
    assert done.returncode == 0, done.stderr
    infos = json.loads((tmp_path / "p.json").read_text())["segments_info"]
    ids = read_panoptic_png(tmp_path / "p.png")
    assert {i["id"]: i["area"] for i in infos} == {i: int((ids == i).sum()) for i in (300, 600)}
    assert infos[0]["extra"] == "x"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.png", "mask.png"], ["missing.png", "no such file"]),
        (["image.png", "missing.json"], ["missing.json", "expected a mask file"]),
        (["image.png", "mask.png", "--task", "other"], ["unknown task", "instance, labels, panoptic, semantic, soft"]),
        (["image.png", "mask.png", "--preset", "balancd"], ["balancd", "balanced"]),
        (["image.png", "mask.png", "--device", "cuda:99"], ["cuda:99"]),
        (["image.png", "mask.png", "--model", "nowhere"], ["unknown model", "nowhere"]),
        (["image.png", "broken.json"], ["broken.json", "JSON", "byte 2"]),
        (["image.png", "number.json"], ["number.json", "'[' or '{'"]),
        (["image.png", "small.png"], ["small.png"]),
        (["image.png", "photo.json", "--format", "coco"], ["photo.json", "a JPEG picture", "expected JSON"]),
        (["image.png", "mask.jpg"], ["mask.jpg", "JPEG smears", "PNG"]),
        (["image.png", "."], ["two files or two folders", "bpr batch instance"]),
        (["image.png", "mask.png", "--device", "gpu"], ["unknown device", "'gpu'"]),
        (["truncated.png", "mask.png"], ["truncated.png"]),
        (["image.png", "runs.json"], ["runs.json", "mask 0"]),
        (["image.png", "ids.png", "--task", "panoptic"], ["--segments"]),
        (["image.png", "mask.png", "--set", "backend"], ["--set", "NAME=VALUE", "'backend'"]),
        (["image.png", "mask.png", "--set", "device=cuda"], ["unknown setting", "device", "backend"]),
        (["image.png", "mask.png", "--set", "nms_threshold=7"], ["nms_threshold", "less than 1", "got 7"]),
    ],
)
def test_a_wrong_call_says_why_and_writes_nothing(
    coffee: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (coffee / "broken.json").write_text("[{")
    (coffee / "number.json").write_text("3")
    cv2.imwrite(str(coffee / "small.png"), np.ones((4, 4), np.uint8))
    cv2.imwrite(str(coffee / "mask.jpg"), cv2.imread(str(coffee / "mask.png"), cv2.IMREAD_UNCHANGED))
    (coffee / "photo.json").write_bytes((coffee / "mask.jpg").read_bytes())
    data = (coffee / "image.png").read_bytes()
    (coffee / "truncated.png").write_bytes(data[: len(data) // 2])
    (coffee / "runs.json").write_text(json.dumps([{"size": [400, 600], "counts": [5, 5]}]))
    out = tmp_path / f"out{Path(arguments[1]).suffix}"
    done = bpr("refine", *arguments, "-o", out, cwd=coffee)
    assert done.returncode == 2
    assert done.stderr.startswith("bpr: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not out.exists()


def test_a_folder_of_pictures_and_one_of_masks(coffee: Path, tmp_path: Path) -> None:
    for kind, source in (("photos", "image.png"), ("masks", "mask.png"), ("maps", "labels.png")):
        for name in ("a", "b"):
            (tmp_path / kind / name).with_suffix(".png").parent.mkdir(exist_ok=True)
            (tmp_path / kind / f"{name}.png").write_bytes((coffee / source).read_bytes())
    call = ("refine", tmp_path / "photos", tmp_path / "masks", "--preset", "fast")
    done = bpr(*call, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "2 images" in done.stdout
    one = bpr("refine", coffee / "image.png", coffee / "mask.png", "-o", tmp_path / "one.png", "--preset", "fast")
    assert one.returncode == 0
    alone = cv2.imread(str(tmp_path / "one.png"), cv2.IMREAD_UNCHANGED)
    for name in ("a.png", "b.png"):
        assert np.array_equal(cv2.imread(str(tmp_path / "out" / name), cv2.IMREAD_UNCHANGED), alone)
    done = bpr(
        "refine", tmp_path / "photos", tmp_path / "maps", "--task", "semantic", "-o", tmp_path / "l", "--preset", "fast"
    )
    assert done.returncode == 0, done.stderr
    assert (cv2.imread(str(tmp_path / "l" / "a.png"), cv2.IMREAD_UNCHANGED)[:5] == 255).all()
    wrong = bpr(*call, "-o", tmp_path / "no", "--picture", tmp_path / "p.png")
    assert (wrong.returncode, "--picture" in wrong.stderr) == (2, True)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("suffix", "task", "found"),
    [
        (".png", "instance", ("instance", "png")),
        (".png", "labels", ("instance", "ids")),
        (".png", "semantic", ("semantic", "png")),
        (".npy", "soft", ("instance", "soft")),
        (".json", "instance", ("instance", "labelme")),
        (".txt", "instance", ("instance", "yolo")),
    ],
)
def test_what_a_folder_of_masks_holds(tmp_path: Path, suffix: str, task: str, found: tuple[str, str]) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / f"a{suffix}").touch()
    assert folder_format(tmp_path, task) == found


def test_the_tasks_that_are_offered_can_be_read() -> None:
    assert set(TASKS) == {*PICTURE_FORMATS, "panoptic"}


def test_doctor_names_model_and_hash() -> None:
    done = bpr("doctor")
    assert done.returncode == 0, done.stderr
    assert "balanced@4" in done.stdout
    assert "verified" in done.stdout


@pytest.mark.parametrize(
    "wrong",
    [
        ("refine", "image.png", "mask.png", "-o", "o.png", "--preset", "balancd"),
        ("refine", "image.png", "mask.png", "-o", "o.png", "--task", "instances"),
        ("refine", "image.png", "mask.png", "-o", "o.png", "--device", "gpu"),
        ("refine", "image.png", "mask.png", "-o", "o.png", "--model", "nowhere"),
        ("refine", "image.png", "mask.png", "-o", "o.png", "--set", "nms_threshold=9"),
        ("refine", "image.png", "nowhere.png", "-o", "o.png"),
        ("demo", "--preset", "balancd"),
        ("batch", "instance", "--images", "nowhere", "--predictions", "mask.png", "--out", "o"),
        ("batch", "semantic", "--images", ".", "--predictions", "nowhere", "--out", "o"),
        ("audit", "instance", "--images", "nowhere", "--annotations", "mask.png", "--out", "o"),
    ],
    ids=" ".join,
)
def test_what_is_wrong_with_a_name_is_said_before_anything_heavy_is_imported(
    coffee: Path, wrong: tuple[str, ...]
) -> None:
    probe = (
        "import sys\nfrom bpr_service.cli import main\n"
        "try: main()\nexcept SystemExit as end: print(end.code, "
        "[m for m in ('torch', 'numba', 'cv2', 'openvino', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe, *wrong], capture_output=True, text=True, cwd=coffee)
    assert done.stdout.strip() == "2 []", done.stdout + done.stderr
    assert done.stderr.startswith("bpr: ")


def test_importing_the_commands_loads_nothing_heavy() -> None:
    probe = "import sys, bpr_service, bpr_service.cli; print([m for m in ('torch','numba','cv2') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
