"""Prediction files in published formats: read as a stream, written back in the same format."""

from __future__ import annotations

from bpr_service.errors import ConfigError, UnknownName
from bpr_service.formats.base import (
    TASKS,
    Encoded,
    Instance,
    InstancePrediction,
    PanopticPrediction,
    Paths,
    PredictionFormat,
    SemanticPrediction,
    Task,
    Unit,
)
from bpr_service.formats.folders.cityscapes import CityscapesInstances
from bpr_service.formats.folders.labelme import LabelMe
from bpr_service.formats.folders.mask_pngs import InstanceIdPngs, MaskPngs, SoftPngs
from bpr_service.formats.folders.semantic import (
    Ade,
    CityscapesLabelIds,
    CityscapesTrainIds,
    SemanticPngs,
    SemanticProbabilities,
    Voc,
)
from bpr_service.formats.folders.yolo import YoloSegments
from bpr_service.formats.options import FileOptions
from bpr_service.formats.records.coco import CocoResults
from bpr_service.formats.records.coco_panoptic import CocoPanoptic
from bpr_service.formats.records.cvat import CvatImages
from bpr_service.formats.records.label_studio import LabelStudio
from bpr_service.formats.records.lvis import LvisResults
from bpr_service.formats.records.one_list import MaskRecords
from bpr_service.formats.records.parquet import ParquetResults
from bpr_service.formats.soft_folder import SoftFolder

__all__ = [
    "DEFAULT_FORMAT",
    "FORMATS",
    "TASKS",
    "Encoded",
    "FileOptions",
    "Instance",
    "InstancePrediction",
    "MaskRecords",
    "PanopticPrediction",
    "Paths",
    "PredictionFormat",
    "SemanticPrediction",
    "Task",
    "Unit",
    "open_predictions",
]

_ALL: tuple[type[PredictionFormat], ...] = (
    CocoResults,
    LvisResults,
    ParquetResults,
    CityscapesInstances,
    YoloSegments,
    LabelMe,
    CvatImages,
    LabelStudio,
    MaskRecords,
    MaskPngs,
    SoftPngs,
    InstanceIdPngs,
    SemanticPngs,
    SemanticProbabilities,
    CityscapesLabelIds,
    CityscapesTrainIds,
    Ade,
    Voc,
    CocoPanoptic,
)
FORMATS: dict[tuple[str, str], type[PredictionFormat]] = {(kind.task, kind.name): kind for kind in _ALL}
DEFAULT_FORMAT: dict[str, str] = {"instance": "coco", "semantic": "png", "panoptic": "coco"}


def open_predictions(task: str, name: str | None, paths: Paths) -> PredictionFormat:
    """The prediction file at ``paths`` in the format ``name`` (default: the task's usual one).

    Raises:
        UnknownName: there is no such task, or no such format of it.
        ConfigError: the format cannot hold masks in the encoding that is asked for.
    """
    if task not in TASKS:
        raise UnknownName("task", task, TASKS)
    name = name or DEFAULT_FORMAT[task]
    if (task, name) not in FORMATS:
        raise UnknownName(f"{task} format", name, [known for of, known in FORMATS if of == task])
    file, asked = FORMATS[task, name](paths), paths.options.encoding
    if asked not in file.encodings:
        held = " or ".join(file.encodings)
        raise ConfigError(f"masks as {asked}", expected=held, got=f"format {name}", fix="choose another encoding")
    if paths.soft and (task != "instance" or name in ("ids", "soft")):
        raise ConfigError(
            "soft masks", expected="a format of masks of their own", got=f"{task} {name}", fix="leave them out"
        )
    if paths.soft:
        file.soften = SoftFolder(paths.soft, paths.within, logits=paths.options.logits).soften
    return file
