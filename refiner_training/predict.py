"""Predictions of a trained segmenter as files: COCO results, label PNGs, or COCO panoptic.

One image is held at a time. Results go line by line into ``OUT.partial.jsonl`` and become ``OUT`` at the end, whole or
not at all; PNGs are written by rename. Started again after an interruption, finished images are skipped.
Letters: H and W the image's height and width in pixels, n instances of an image.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from bpr_service.errors import ConfigError, ConflictError, FormatError
from bpr_service.masks.images import read_image
from bpr_service.masks.label_maps import write_label_map, write_panoptic_png
from refiner_training.run.segmenter import load_segmenter
from refiner_training.segmenters.base import Detections, Segmenter
from refiner_training.segmenters.data import image_files, read_json, to_tensor
from refiner_training.segmenters.registry import kind_of

Format = Literal["coco", "labels", "panoptic"]
Progress = Callable[[int, int], None]
MOST_COVERED = 0.5  # an instance that better ones cover by more than this gets no panoptic segment


@dataclass(frozen=True)
class ImageRecord:
    """An image to predict: its id in the results, its file, and its name in the data set."""

    id: int
    path: Path
    name: str


@dataclass(frozen=True)
class Options:
    """How to predict.

    Attributes:
        min_score: instances below are left out.
        panoptic_score: likewise for panoptic segments.
        scores: a folder for PNGs of the label maps' confidence (the largest class probability times 255).
    """

    min_score: float = 0.0
    panoptic_score: float = 0.5
    scores: Path | None = None
    device: str = "cpu"
    resume: bool = True


def list_images(images: Path, dataset: Path | None) -> list[ImageRecord]:
    """Images of a COCO file's list, or of a folder (then with ids 1, 2, ... in order of name).

    Raises:
        FormatError: the file lists no images, or one that is not in the folder.
    """
    if dataset is None:
        files = image_files(images)
        return [ImageRecord(i + 1, file, str(file.relative_to(images))) for i, file in enumerate(files)]
    content = read_json(dataset)
    listed = content.get("images") if isinstance(content, dict) else None
    if not listed:
        raise FormatError(str(dataset), expected="an object with images", got="none", fix="give a COCO file")
    records = []
    for record in listed:
        name = str(record.get("file_name") or "/".join(str(record.get("coco_url", "")).split("/")[-2:]))
        if not (images / name).is_file():
            fix = "check the folder of images"
            raise FormatError(
                f"{dataset}: image {record.get('id')}", expected=f"{name} in {images}", got="none", fix=fix
            )
        records.append(ImageRecord(int(record["id"]), images / name, name))
    return records


def predict(
    checkpoint: Path,
    images: Path,
    out: Path,
    *,
    dataset: Path | None = None,
    form: Format | None = None,
    options: Options = Options(),
    progress: Progress | None = None,
) -> int:
    """Predict every image and write the results to ``out``.

    Args:
        checkpoint: of ``bpr-train segmenter``.
        out: ``coco``: a JSON file; ``labels``: a folder; ``panoptic``: a JSON file, its PNGs in the folder of the
            same name without the suffix.
        dataset: a COCO file whose ``images`` give ids and names.
        form: None takes ``coco`` for an instance model and ``labels`` for a semantic one.
        progress: called with images done and images in all.

    Returns:
        How many images were predicted now.

    Raises:
        ModelError, FormatError: checkpoint or images cannot be used.
        ConfigError: the model cannot give this format.
        ConflictError: ``out`` exists, or its unfinished part comes from another checkpoint.
    """
    model, record = load_segmenter(checkpoint, options.device)
    kind = kind_of(record["arch"])
    form = form or ("coco" if kind == "instance" else "labels")
    if (form == "coco" and kind == "semantic") or (form == "labels" and kind == "instance"):
        fix = "choose coco or panoptic for instance models, labels or panoptic for semantic ones"
        raise ConfigError("format", expected=f"one that a {kind} model can give", got=form, fix=fix)
    records = list_images(images, dataset)
    if form == "labels":
        return _predict_labels(model, records, out, options, progress)
    writer = Journal(out, checkpoint, options)
    todo = [each for each in records if each.id not in writer.done]
    done = 0
    with writer:
        for each in todo:
            image = read_image(each.path)
            if form == "coco":
                found: Any = coco_results(_run(model, image, options), each.id, record["class_ids"], image, options)
            else:
                found = _panoptic(model, image, each, record, out, kind, options)
            writer.add(each.id, found)
            done += 1
            if progress is not None:
                progress(len(records) - len(todo) + done, len(records))
    if form == "coco":
        writer.finish_list()
    else:
        writer.finish_panoptic(records, record)
    if dataset is None and form == "coco":
        write_image_list(out.with_suffix(".images.json"), records, record)
    return done


@torch.inference_mode()
def _run(model: Segmenter, image: NDArray[np.uint8], options: Options) -> Any:
    return model([to_tensor(image).to(options.device)])[0]


# ---- instances ---------------------------------------------------------------------------------------------------


def coco_results(
    found: Detections, image_id: int, class_ids: list[int], image: NDArray[np.uint8], options: Options
) -> list[dict[str, Any]]:
    """COCO results of one image: ``score`` ranks masks, ``box_score`` boxes; empty masks are left out."""
    height, width = image.shape[:2]
    results = []
    masks = found.masks(height, width)
    for mask, label, score, box_score in zip(
        masks, found.labels.tolist(), found.mask_scores.tolist(), found.scores.tolist(), strict=True
    ):
        if box_score < options.min_score or mask.is_empty:
            continue
        results.append(
            {
                "image_id": image_id,
                "category_id": class_ids[label - 1],
                "bbox": mask.bbox,
                "score": score,
                "box_score": box_score,
                "segmentation": mask.to_rle(),
            }
        )
    return results


# ---- semantic ----------------------------------------------------------------------------------------------------


def _predict_labels(
    model: Segmenter, records: list[ImageRecord], out: Path, options: Options, progress: Progress | None
) -> int:
    done = 0
    for index, each in enumerate(records):
        target = (out / each.name).with_suffix(".png")
        if not (options.resume and target.is_file()):
            probabilities = _run(model, read_image(each.path), options)
            if options.scores is not None:
                scores = (options.scores / each.name).with_suffix(".png")
                scores.parent.mkdir(parents=True, exist_ok=True)
                write_label_map(scores, (probabilities.amax(0) * 255).round().byte().cpu().numpy())
            target.parent.mkdir(parents=True, exist_ok=True)
            write_label_map(target, probabilities.argmax(0).byte().cpu().numpy())
            done += 1
        if progress is not None:
            progress(index + 1, len(records))
    return done


# ---- panoptic ----------------------------------------------------------------------------------------------------


def _panoptic(
    model: Segmenter,
    image: NDArray[np.uint8],
    each: ImageRecord,
    record: dict[str, Any],
    out: Path,
    kind: str,
    options: Options,
) -> dict[str, Any]:
    found = _run(model, image, options)
    if kind == "instance":
        ids, segments = segments_of_instances(found, record["class_ids"], image.shape[:2], options.panoptic_score)
    else:
        things = tuple(record["config"]["data"]["things"])
        ids, segments = segments_of_labels(found.cpu().numpy(), things)
    target = (out.with_suffix("") / each.name).with_suffix(".png")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_panoptic_png(target, ids)
    return {
        "image_id": each.id,
        "file_name": str(Path(each.name).with_suffix(".png")),
        "segments_info": segments,
        "size": [int(image.shape[0]), int(image.shape[1])],
    }


def segments_of_instances(
    found: Detections, class_ids: list[int], size: tuple[int, ...], min_score: float
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Segment ids (H, W), 0 where there is none, and their records: better masks lie on top."""
    ids = np.zeros(size, np.int32)
    segments: list[dict[str, Any]] = []
    order = found.mask_scores.argsort(descending=True)
    ranked = Detections(*(getattr(found, name)[order] for name in found.__dataclass_fields__))
    for mask, label, score in zip(
        ranked.masks(*size), ranked.labels.tolist(), ranked.mask_scores.tolist(), strict=True
    ):
        if score < min_score or mask.is_empty:
            continue
        h, w = mask.crop.shape
        place = ids[mask.y : mask.y + h, mask.x : mask.x + w]
        free = (mask.crop > 0) & (place == 0)
        if free.sum() <= (1 - MOST_COVERED) * mask.area:
            continue
        place[free] = len(segments) + 1
        segments.append(_segment(ids, len(segments) + 1, class_ids[label - 1], score, True))
    return ids, segments


def segments_of_labels(
    probabilities: NDArray[np.float32], things: tuple[int, ...]
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Segments of class probabilities (C, H, W): connected pieces of things, one segment a class of stuff.

    A segment's score is its mean probability.
    """
    labels = probabilities.argmax(0)
    ids = np.zeros(labels.shape, np.int32)
    segments: list[dict[str, Any]] = []
    for label in np.unique(labels).tolist():
        pieces = (labels == label).astype(np.int32)
        count = 2
        if label in things:
            count, pieces = cv2.connectedComponents(pieces.astype(np.uint8), connectivity=8)
        for piece in range(1, count):
            where = pieces == piece
            ids[where] = len(segments) + 1
            score = float(probabilities[label][where].mean())
            segments.append(_segment(ids, len(segments) + 1, int(label), score, label in things))
    return ids, segments


def _segment(ids: NDArray[np.int32], number: int, category: int, score: float, thing: bool) -> dict[str, Any]:
    where = (ids == number).astype(np.uint8)
    x, y, width, height = cv2.boundingRect(where)
    return {
        "id": number,
        "category_id": category,
        "score": round(score, 6),
        "area": int(where.sum()),
        "bbox": [x, y, width, height],
        "iscrowd": 0,
        "isthing": int(thing),
    }


# ---- files -------------------------------------------------------------------------------------------------------


class Journal:
    """Results of finished images, one JSON line each, until the file they are for can be written whole."""

    def __init__(self, out: Path, checkpoint: Path, options: Options) -> None:
        self.out, self.path = out, out.with_name(out.name + ".partial.jsonl")
        if out.exists() and options.resume:
            fix = "remove it, or predict without resuming"
            raise ConflictError(str(out), expected="a file that is not there yet", got="a finished one", fix=fix)
        head = {"checkpoint": hashlib.sha256(checkpoint.read_bytes()).hexdigest(), "min_score": options.min_score}
        self.done: set[int] = set()
        out.parent.mkdir(parents=True, exist_ok=True)
        if options.resume and self.path.is_file():
            self._recover(head)
        else:
            self.path.write_text(json.dumps(head) + "\n")
        self._file = self.path.open("a")

    def _recover(self, head: dict[str, Any]) -> None:
        """Keep whole lines; a line that an interruption cut is dropped."""
        kept = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                content = json.loads(line)
                if number == 0 and content != head:
                    fix = "predict without resuming, or with the checkpoint and settings of the first try"
                    expected, got = f"checkpoint {head['checkpoint'][:12]}", f"{content.get('checkpoint', '?')[:12]}"
                    raise ConflictError(str(self.path), expected=expected, got=got, fix=fix)
                if number:
                    self.done.add(int(content["image_id"]))
                kept += len(line)
        os.truncate(self.path, kept)
        if kept == 0:
            self.path.write_text(json.dumps(head) + "\n")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, image_id: int, found: Any) -> None:
        """Keep one image's results."""
        self._file.write(json.dumps({"image_id": image_id, "found": found}) + "\n")
        self._file.flush()

    def lines(self) -> Iterator[dict[str, Any]]:
        """Every image's ``image_id`` and ``found``."""
        with self.path.open() as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def finish_list(self) -> None:
        """Write all results as one JSON list."""
        temporary = self.out.with_name(self.out.name + ".tmp")
        with temporary.open("w") as file:
            file.write("[")
            first = True
            for line in self.lines():
                for result in line["found"]:
                    file.write(("" if first else ",") + "\n" + json.dumps(result))
                    first = False
            file.write("\n]\n")
        self._replace(temporary)

    def finish_panoptic(self, records: list[ImageRecord], record: dict[str, Any]) -> None:
        """Write a COCO panoptic file."""
        things = set(record["config"]["data"].get("things", record["class_ids"]))
        pairs = zip(record["class_ids"], record["class_names"], strict=True)
        categories = [{"id": i, "name": name, "isthing": int(i in things)} for i, name in pairs]
        names = {each.id: each.name for each in records}
        temporary = self.out.with_name(self.out.name + ".tmp")
        images, annotations = [], []
        for line in self.lines():
            found = line["found"]
            height, width = found.pop("size")
            image = {"id": found["image_id"], "file_name": names[found["image_id"]], "height": height, "width": width}
            images.append(image)
            annotations.append(found)
        content = {"images": images, "annotations": annotations, "categories": categories}
        temporary.write_text(json.dumps(content))
        self._replace(temporary)

    def _replace(self, temporary: Path) -> None:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, self.out)
        self.path.unlink()


def write_image_list(path: Path, records: list[ImageRecord], record: dict[str, Any]) -> None:
    """A COCO file of the images alone, which ``bpr batch instance --dataset`` takes."""
    from PIL import Image

    images = []
    for each in records:
        with Image.open(each.path) as picture:
            images.append({"id": each.id, "file_name": each.name, "width": picture.width, "height": picture.height})
    pairs = zip(record["class_ids"], record["class_names"], strict=True)
    categories = [{"id": i, "name": name} for i, name in pairs]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
