"""Predictions of a trained segmenter as files: COCO results, label PNGs, or COCO panoptic.

A few images are held at a time. Results go line by line into ``OUT.partial.jsonl`` and become ``OUT`` at the end, whole
or not at all; PNGs are written by rename. Started again after an interruption with the same checkpoint and options,
finished images are skipped; with others it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from bpr_service.errors import ConfigError
from bpr_service.masks.label_maps import write_label_map, write_panoptic_png
from refiner_training.prediction.images import ImageRecord, list_images, write_image_list
from refiner_training.prediction.journal import Journal, begin_folder, made_with
from refiner_training.prediction.options import Options
from refiner_training.prediction.predictor import Found, Predictor
from refiner_training.prediction.segments import coco_results, segments_of_instances, segments_of_labels
from refiner_training.segmenters.registry import kind_of

__all__ = ["Options", "predict"]
Format = Literal["coco", "labels", "panoptic"]
Progress = Callable[[int, int], None]


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
        images: the folder of pictures.
        out: ``coco``: a JSON file; ``labels``: a folder; ``panoptic``: a JSON file, its PNGs in the folder of the
            same name without the suffix.
        dataset: a COCO file whose ``images`` give ids and names; without one every picture of the folder is predicted.
        form: None takes ``coco`` for an instance model and ``labels`` for a semantic one.
        options: how to predict.
        progress: called with images done and images in all.

    Returns:
        How many images were predicted now.

    Raises:
        ModelError, FormatError: checkpoint or images cannot be used.
        ConfigError: the model cannot give this format, or has no such option.
        DeviceError: a device that is not there.
        ConflictError: ``out`` exists, or its unfinished part comes from another checkpoint or other options.
    """
    predictor = Predictor(checkpoint, options)
    record = predictor.record
    kind = kind_of(record["arch"])
    form = form or ("coco" if kind == "instance" else "labels")
    if (form == "coco" and kind == "semantic") or (form == "labels" and kind == "instance"):
        fix = "choose coco or panoptic for instance models, labels or panoptic for semantic ones"
        raise ConfigError("format", expected=f"one that a {kind} model can give", got=form, fix=fix)
    records = list_images(images, dataset)
    head = made_with(checkpoint, form, options)
    if form == "labels":
        return _label_maps(predictor, records, out, head, progress)
    with Journal(out, head, options.resume) as journal:
        todo = [each for each in records if each.id not in journal.done]
        for done, found in enumerate(predictor.run(todo), start=len(records) - len(todo) + 1):
            each, size, instances = found
            if form == "coco":
                journal.add(each.id, coco_results(instances, each.id, record["class_ids"], size, options.min_score))
            else:
                journal.add(each.id, _panoptic(found, record, out, options))
            if progress is not None:
                progress(done, len(records))
    if form == "panoptic":
        journal.finish_panoptic(records, record)
        return len(todo)
    journal.finish_list()
    if dataset is None:
        write_image_list(out.with_suffix(".images.json"), records, record)
    return len(todo)


def _label_maps(
    predictor: Predictor, records: list[ImageRecord], out: Path, head: dict[str, Any], progress: Progress | None
) -> int:
    options = predictor.options
    begin_folder(out, head, options.resume)

    def files(each: ImageRecord) -> list[Path]:
        folders = [out] if options.scores is None else [out, options.scores]
        return [(folder / each.name).with_suffix(".png") for folder in folders]

    todo = [each for each in records if not (options.resume and all(file.is_file() for file in files(each)))]
    for done, (each, _, probabilities) in enumerate(predictor.run(todo), start=len(records) - len(todo) + 1):
        maps = [probabilities.argmax(0), (probabilities.amax(0) * 255).round()]
        for file, values in reversed(list(zip(files(each), maps, strict=False))):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_label_map(file, values.byte().cpu().numpy())
        if progress is not None:
            progress(done, len(records))
    return len(todo)


def _panoptic(found: Found, record: dict[str, Any], out: Path, options: Options) -> dict[str, Any]:
    each, size, predicted = found
    if kind_of(record["arch"]) == "instance":
        ids, segments = segments_of_instances(predicted, record["class_ids"], size, options.panoptic_score)
    else:
        ids, segments = segments_of_labels(predicted.cpu().numpy(), tuple(record["config"]["data"]["things"]))
    target = (out.with_suffix("") / each.name).with_suffix(".png")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_panoptic_png(target, ids)
    return {
        "image_id": each.id,
        "file_name": str(Path(each.name).with_suffix(".png")),
        "segments_info": segments,
        "size": list(size),
    }
