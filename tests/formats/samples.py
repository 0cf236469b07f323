"""Small prediction files in every format, with holes, parts and keys that no reader knows.

Letters: H, W are the image's height and width in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bpr_service import storage
from bpr_service.formats import (
    FORMATS,
    InstancePrediction,
    Paths,
    PredictionFormat,
    SemanticPrediction,
    Unit,
    open_predictions,
)
from bpr_service.masks.mask import Mask, write_panoptic_png
from tests.formats import tool_samples
from tests.formats.drawing import H, W, disc, image, ring


def dataset(root: Path, names: dict[int, str], key: str = "file_name") -> str:
    images = [{"id": i, key: name, "height": H, "width": W} for i, name in names.items()]
    (root / "ann.json").write_text(json.dumps({"info": {"é": "ü"}, "images": images, "annotations": []}))
    return str(root / "ann.json")


def _coco_records() -> list[dict[str, Any]]:
    rings = [Mask.from_array(ring(3, 2 + 3 * i)) for i in range(3)]
    polygon = [[10.0, 10.0, 30.0, 10.0, 30.0, 25.0, 10.0, 25.0]]
    square = Mask.from_polygons(polygon, H, W)
    return [
        {"image_id": 7, "category_id": 3, "segmentation": rings[0].to_rle(), "score": 0.91, "id": 11,
         "my": {"k": [1, None]}},
        {"image_id": 5, "category_id": 1, "segmentation": rings[1].to_rle(compressed=False), "score": 1e-07,
         "bbox": rings[1].bbox, "area": rings[1].area, "id": 12, "name": "ä\u2028"},
        {"image_id": 7, "category_id": 2, "segmentation": polygon, "score": 0.5, "id": 13, "bbox": square.bbox},
        {"image_id": 5, "category_id": 9, "segmentation": rings[2].to_rle(), "score": 0.25},
    ]  # fmt: skip


def coco(root: Path) -> Paths:
    for i in (5, 7):
        image(root / "images" / f"{i}.jpg", i)
    (root / "pred.json").write_text(json.dumps(_coco_records(), ensure_ascii=False))
    return Paths(str(root / "images"), str(root / "pred.json"), dataset(root, {5: "5.jpg", 7: "7.jpg"}))


def parquet(root: Path) -> Paths:
    """A table of two row groups, with a column that JSON cannot hold."""
    for i in (5, 7):
        image(root / "images" / f"{i}.jpg", i)
    rings = [Mask.from_array(ring(3, 2 + 3 * i)) for i in range(4)]
    rows = [
        {"image_id": (7, 5, 7, 5)[i], "category_id": i, "score": 0.25 * i, "segmentation": mask.to_rle(),
         "bbox": mask.bbox, "area": mask.area, "my": f"é{i}", "embedding": bytes([i, 255])}
        for i, mask in enumerate(rings)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), root / "pred.parquet", row_group_size=3)
    return Paths(str(root / "images"), str(root / "pred.parquet"), dataset(root, {5: "5.jpg", 7: "7.jpg"}))


def lvis(root: Path) -> Paths:
    for i in (5, 7):
        image(root / "images" / "val2017" / f"{i}.jpg", i)
    (root / "pred.json").write_text(json.dumps(_coco_records()))
    names = {i: f"http://images.example/val2017/{i}.jpg" for i in (5, 7)}
    return Paths(str(root / "images"), str(root / "pred.json"), dataset(root, names, "coco_url"))


def cityscapes(root: Path) -> Paths:
    frame = "aachen_000000_000019"
    image(root / "images" / "aachen" / f"{frame}_leftImg8bit.png")
    folder = root / "pred" / "masks"
    folder.mkdir(parents=True)
    Image.fromarray(ring(3, 2) * 255).save(folder / "a.png")
    Image.fromarray(disc(20, 25) * 7).save(folder / "b.png")
    (root / "pred" / f"{frame}.txt").write_text("masks/a.png 24 0.90\nmasks/b.png 26 3e-1\n")
    return Paths(str(root / "images"), str(root / "pred"))


def yolo(root: Path) -> Paths:
    image(root / "images" / "train" / "a.jpg")
    (root / "pred" / "train").mkdir(parents=True)
    first = "3 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6"
    (root / "pred" / "train" / "a.txt").write_text(f"{first} 0.75\n{first}\n")
    (root / "pred" / "classes.txt").write_text("person\n")
    return Paths(str(root / "images"), str(root / "pred"))


def mask_records(root: Path) -> Paths:
    image(root / "images" / "a.jpg")
    rings = [Mask.from_array(ring(3, 2 + 3 * i)) for i in range(3)]
    entries = [
        {"id": 7, "segmentation": rings[0].to_rle(), "bbox": rings[0].bbox, "my": 1},
        {**rings[1].to_rle(compressed=False), "label": "é"},
        {"segmentation": [[10.0, 10.0, 30.0, 10.0, 30.0, 25.0, 10.0, 25.0]], "area": 300},
    ]
    (root / "masks.json").write_text(json.dumps({"note": "kept", "masks": entries}, indent=2))
    return Paths(str(root / "images"), str(root / "masks.json"), image="a.jpg")


def mask_pngs(kind: str) -> Callable[[Path], Paths]:
    def make(root: Path) -> Paths:
        array = ring(3, 2)
        if kind == "ids":
            array = array + 3 * disc(30, 40, 5)
        elif kind == "soft":
            array = np.where(array > 0, 200, 40).astype(np.uint8)
        for name, picture in (("a", Image.fromarray(array)), ("sub/b", Image.fromarray(array, "P"))):
            if kind == "soft" and picture.mode == "P":
                picture = Image.fromarray(array.astype(np.uint16) * 257)
            if picture.mode == "P":
                picture.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
            image(root / "images" / f"{name}.jpg")
            (root / "pred" / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(root / "pred" / f"{name}.png")
        return Paths(str(root / "images"), str(root / "pred"))

    return make


def semantic(labels: tuple[int, int, int], palette: bool = False, wide: bool = False) -> Callable[[Path], Paths]:
    def make(root: Path) -> Paths:
        for name in ("a", "sub/b"):
            image(root / "images" / f"{name}.jpg")
            array = np.full((H, W), labels[0], np.uint16 if wide else np.uint8)
            array[ring(3, 2) > 0] = labels[1]
            array[30:33] = labels[2]
            picture = Image.fromarray(array)
            if palette:
                picture.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
            (root / "pred" / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(root / "pred" / f"{name}.png")
        return Paths(str(root / "images"), str(root / "pred"))

    return make


def probabilities(root: Path) -> Paths:
    """A file of each kind; in one corner no class has any."""
    for name, suffix in (("a", "npy"), ("sub/b", "npz")):
        image(root / "images" / f"{name}.jpg")
        first = np.where(ring(3, 2) > 0, 0.7, 0.2).astype(np.float16)
        array = np.stack([first, 0.9 - first, np.full_like(first, 0.1)])
        array[:, :4, :4] = 0
        path = root / "pred" / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == "npy":
            np.save(path, array)
        else:
            np.savez_compressed(path, probability=array)
    return Paths(str(root / "images"), str(root / "pred"))


def panoptic(root: Path) -> Paths:
    annotations = []
    (root / "png").mkdir(parents=True)
    for i in (2, 1):
        image(root / "images" / f"{i}.jpg", i)
        ids = np.zeros((H, W), np.int32)
        ids[ring(3, 2) > 0] = 70_000 + i
        ids[25:] = 300
        write_panoptic_png(root / "png" / f"{i}.png", ids)
        infos = [
            {"id": 300, "category_id": 9, "area": W * 15, "bbox": [0, 25, W, 15], "iscrowd": 0},
            {"id": 70_000 + i, "category_id": 1, "area": int(ring(3, 2).sum()), "bbox": [2, 3, 20, 14],
             "iscrowd": 0, "my": "x"},
        ]  # fmt: skip
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": infos, "other": 1})
    text = json.dumps({"info": {"year": 2026}, "annotations": annotations, "categories": [{"id": 9, "isthing": 0}]})
    (root / "pan.json").write_text(text)
    return Paths(str(root / "images"), str(root / "pan.json"), panoptic_dir=str(root / "png"))


SAMPLES: dict[tuple[str, str], Callable[[Path], Paths]] = {
    ("instance", "coco"): coco,
    ("instance", "lvis"): lvis,
    ("instance", "parquet"): parquet,
    ("instance", "cityscapes"): cityscapes,
    ("instance", "yolo"): yolo,
    ("instance", "labelme"): tool_samples.labelme,
    ("instance", "cvat"): tool_samples.cvat,
    ("instance", "label-studio"): tool_samples.label_studio,
    ("instance", "masks"): mask_records,
    ("instance", "png"): mask_pngs("png"),
    ("instance", "soft"): mask_pngs("soft"),
    ("instance", "ids"): mask_pngs("ids"),
    ("semantic", "png"): semantic((1, 40_000, 255), wide=True),
    ("semantic", "soft"): probabilities,
    ("semantic", "cityscapes"): semantic((7, 24, 255)),
    ("semantic", "cityscapes-train-ids"): semantic((0, 11, 255)),
    ("semantic", "ade"): semantic((3, 150, 0)),
    ("semantic", "voc"): semantic((0, 15, 255), palette=True),
    ("panoptic", "coco"): panoptic,
}
assert SAMPLES.keys() == FORMATS.keys()


def sample(kind: tuple[str, str], root: Path) -> PredictionFormat:
    """A new sample file of a format below ``root``, opened."""
    root.mkdir(parents=True, exist_ok=True)
    return open_predictions(*kind, SAMPLES[kind](root))


def result_paths(file: PredictionFormat, out: Path) -> Paths:
    """Paths that read the result written to ``out``."""
    if file.task == "panoptic":
        return replace(file.paths, predictions=str(out / "panoptic.json"), panoptic_dir=str(out))
    return replace(file.paths, predictions=str(out))


def write_all(file: PredictionFormat, out: Path, edit: Callable[[Unit, Any], Any] | None) -> list[str]:
    """Write every unit, edited or (None) untouched; the warnings."""
    records: dict[int, bytes] = {}
    warnings = []
    for unit in file.scan():
        encoded = file.untouched(unit) if edit is None else file.encode(unit, edit(unit, file.read(unit)))
        for name, data in encoded.files.items():
            storage.write_bytes(str(out / name), data)
        records.update(encoded.records)
        warnings += encoded.warnings
    if records:
        file.write(str(out), (records[i] for i in sorted(records)))
    return warnings


def content(file: PredictionFormat) -> list[Any]:
    """All that a prediction file says, comparable with ``==``."""
    out: list[Any] = []
    for unit in file.scan():
        read: Any = file.read(unit)
        if isinstance(read, InstancePrediction):
            out.append((unit, [_instance(item, file.name) for item in read.instances]))
        elif isinstance(read, SemanticPrediction):
            out.append((unit, read.label_map.dtype.str, read.label_map.tolist(), read.ignore_label))
        else:
            out.append((unit, read.segment_map.tolist(), read.segments_info, read.record))
    return [(_addressless(unit), *rest) for unit, *rest in out]


def _addressless(unit: Unit) -> Unit:
    """Byte positions may move; record positions and names may not."""
    if not isinstance(unit.source, list):
        return unit
    positions = [row[0] for row in unit.source] if isinstance(unit.source[0], list) else unit.source[:1]
    return replace(unit, source=positions)


def _instance(item: Any, name: str) -> tuple[Any, ...]:
    record = item.record
    if name in ("png", "soft"):
        record = None
    if name == "masks":
        record = {key: value for key, value in record.items() if key not in ("segmentation", "counts")}
    if name in ("coco", "lvis", "parquet"):
        record = {key: value for key, value in record.items() if key != "segmentation"}, list(record)
    elif name == "yolo":
        record = record[0].split()[0]
    elif name == "labelme":
        record = {key: value for key, value in record.items() if key not in ("points", "mask", "shape_type")}
    elif name == "cvat":
        record = {key: value for key, value in record[1].items() if key in ("label", "occluded", "z_order")}
    elif name == "label-studio":
        record = record[0], {key: value for key, value in record[1].items() if key != "value"}
    array = None if item.mask is None else item.mask.to_array().tolist()
    return item.position, item.category, item.score, array, item.problem, item.skipped, record


def edit_masks(prediction: InstancePrediction, edit: Callable[[np.ndarray], np.ndarray]) -> InstancePrediction:
    return prediction.with_masks([Mask.from_array(edit(mask.to_array())) for mask in prediction.masks])


def kinds(task: str | None = None) -> Iterable[tuple[str, str]]:
    return [kind for kind in SAMPLES if task in (None, kind[0])]
