"""What differs between the three tasks: what is prepared, and what is answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import BprError, InputError, LimitError
from bpr_service.masks.label_maps import encode_png, panoptic_png, read_label_map, read_panoptic_png
from bpr_service.masks.mask import Mask
from bpr_service.refine.labels.planes import LabelRegions
from bpr_service.refine.tasks import unchanged
from bpr_service.runtime.work import Slot, Stages
from bpr_service.server.codec.answer import base64_text, mask_entries
from bpr_service.server.codec.faults import located
from bpr_service.server.codec.parse import Call, check_size, decode_masks
from bpr_service.server.codec.schemas import MaskIn, Options
from bpr_service.server.settings import ServerSettings

Image = NDArray[np.uint8]


class Plan(Protocol):
    """One request of a task, its pictures decoded."""

    size: tuple[int, int]
    """(H, W) of the image, px."""

    def prepare(self, refiner: Any) -> Stages:
        """The CPU steps before the network."""

    def answer(self, result: Any) -> dict[str, Any]:
        """The parts of the answer that are this task's own."""


def make_plan(call: Call, image: Image, settings: ServerSettings, slot: Slot) -> Plan:
    """Decode what else the call holds. Raises `InputError`, `MaskError`, `LimitError`, `BusyError`."""
    size = (image.shape[0], image.shape[1])
    if call.task == "instance":
        items = call.masks or []
        return InstancePlan(size, image, items, decode_masks(items, *size, settings, slot), call.options)
    name = "label_map" if call.task == "semantic" else "segment_map"
    if (call.map is None) == (call.masks is None):
        got = "both" if call.map is not None else "neither"
        raise InputError("what to refine", expected=f"{name} or masks", got=got, fix="send one of the two")
    slot.reserve(8 * size[0] * size[1])
    if call.task == "semantic":
        return _semantic(call, image, size, settings, slot)
    return _panoptic(call, image, size, settings, slot)


def _configured(refiner: Any, options: Options) -> Any:
    """``refiner`` with what the request changes; the network is shared."""
    asked = {name: getattr(options, name) for name in ("nms_threshold", "gate")}
    changed = {name: value for name, value in asked.items() if value is not None}
    return refiner.with_options(**changed) if changed else refiner


@dataclass(slots=True)
class InstancePlan:
    """Masks that may overlap."""

    size: tuple[int, int]
    image: Image
    items: list[MaskIn]
    masks: list[Mask]
    options: Options

    def prepare(self, refiner: Any) -> Stages:
        stages: Stages = _configured(refiner, self.options).prepare(self.image, self.masks)
        return stages

    def answer(self, result: Any) -> dict[str, Any]:
        return {"masks": mask_entries(result.masks, result.reports, self.items, self.options.encoding)}


@dataclass(slots=True)
class MapPlan:
    """A label or segment map. ``items`` are the masks of the answer, ``labels`` what each is called in the map."""

    size: tuple[int, int]
    image: Image
    map: NDArray[Any]
    items: list[MaskIn] | None
    labels: list[int]
    options: Options

    def entries(self, refined: NDArray[Any], result: Any) -> list[dict[str, Any]]:
        """The answer's masks, cut from the ``refined`` map."""
        reports = {report.label: report for report in result.reports}
        labels = self.labels if self.items is not None else [report.label for report in result.reports]
        regions = LabelRegions(refined, None)
        at = {label: i for i, label in enumerate(regions.labels)}
        nothing = Mask(*self.size, 0, 0, np.zeros((0, 0), np.uint8))
        masks = [regions[at[label]] if label in at else nothing for label in labels]
        said = [reports.get(label) or unchanged(i, HIDDEN, 0, label) for i, label in enumerate(labels)]
        given = self.items if self.items is not None else [self.item(label) for label in labels]
        return mask_entries(masks, said, given, self.options.encoding)

    def item(self, label: int) -> MaskIn:
        """What the answer calls a label that came in a map."""
        return MaskIn.model_construct(_fields_set={"category_id"}, category_id=label)


HIDDEN = "no pixel of the map has it"


# ---------------------------------------------------------------- semantic


@dataclass(slots=True)
class SemanticPlan(MapPlan):
    """``background`` stands in the map where no mask is, and is answered as the ignore label."""

    background: int | None = None

    def prepare(self, refiner: Any) -> Stages:
        ignore = self.options.ignore_label if self.background is None and self.options.ignore_label >= 0 else None
        stages: Stages = _configured(refiner, self.options).prepare_semantic(self.image, self.map, ignore)
        return stages

    def answer(self, result: Any) -> dict[str, Any]:
        labels = result.label_map
        masks = self.entries(labels, result)
        if self.background is not None:
            ignore = _void(self.options)
            wide = np.uint16 if ignore > 255 else labels.dtype
            labels = np.where(labels == self.background, wide(ignore) if ignore > 255 else ignore, labels)
            labels = labels.astype(wide)
        return {
            "masks": masks,
            "label_map": {"data": base64_text(encode_png(labels))},
            "vanished": [label for label in result.vanished if label != self.background],
        }


def _void(options: Options) -> int:
    """What pixels without a mask are answered as."""
    return max(options.ignore_label, 0)


def _semantic(call: Call, image: Image, size: tuple[int, int], settings: ServerSettings, slot: Slot) -> SemanticPlan:
    if call.map is not None:
        label_map = _read_map(call.map, size, settings, "label_map", read_label_map)
        _check_labels(label_map, settings)
        return SemanticPlan(size, image, label_map, None, [], call.options)
    items = call.masks or []
    masks = decode_masks(items, *size, settings, slot)
    labels: list[int] = []
    for index, item in enumerate(items):
        if item.category_id is None or item.category_id in labels:
            raise located(
                InputError(
                    "a semantic mask's category_id",
                    expected="a label that no other mask has",
                    got=repr(item.category_id),
                    fix="unite the masks of one class, or send a label_map",
                ),
                f"/masks/{index}/category_id",
            )
        labels.append(item.category_id)
    if _void(call.options) in labels:
        raise located(
            InputError(
                "the label of the pixels without a mask",
                expected="an ignore_label that no mask has",
                got=f"{_void(call.options)}, the category_id of mask {labels.index(_void(call.options))}",
                fix="set options.ignore_label to a label that is free",
            ),
            "/options/ignore_label",
        )
    background = next(label for label in range(len(labels) + 1) if label not in labels)
    top = max([background, *labels])
    label_map = np.full(size, background, np.uint16 if top > 255 else np.uint8)
    _paint(label_map, masks, labels)
    return SemanticPlan(size, image, label_map, items, labels, call.options, background)


# ---------------------------------------------------------------- panoptic


@dataclass(slots=True)
class PanopticPlan(MapPlan):
    """A segment map with its segments."""

    segments_info: list[dict[str, Any]]

    def prepare(self, refiner: Any) -> Stages:
        own = _configured(refiner, self.options)
        stages: Stages = own.prepare_panoptic(self.image, self.map, self.segments_info)
        return stages

    def item(self, label: int) -> MaskIn:
        category = next(info["category_id"] for info in self.segments_info if info["id"] == label)
        return MaskIn.model_construct(_fields_set={"id", "category_id"}, id=label, category_id=category)

    def answer(self, result: Any) -> dict[str, Any]:
        return {
            "masks": self.entries(result.segment_map, result),
            "segment_map": {"data": base64_text(panoptic_png(result.segment_map))},
            "segments_info": result.segments_info,
            "vanished": [info["id"] for info in result.vanished],
        }


def _panoptic(call: Call, image: Image, size: tuple[int, int], settings: ServerSettings, slot: Slot) -> PanopticPlan:
    if call.map is not None:
        if call.segments_info is None:
            raise InputError("segments_info is missing", expected="a list of {id, category_id}", fix="send it too")
        segment_map = _read_map(call.map, size, settings, "segment_map", read_panoptic_png)
        slot.reserve(int(segment_map.max()) + 1)  # for `labels_of`
        _check_labels(segment_map, settings)
        info = [item.model_dump(exclude_unset=True) for item in call.segments_info]
        return PanopticPlan(size, image, segment_map, None, [], call.options, info)
    items = call.masks or []
    masks = decode_masks(items, *size, settings, slot)
    ids: list[int] = []
    for index, item in enumerate(items):
        if not isinstance(item.id, int) or not 0 < item.id < 1 << 24 or item.id in ids or item.category_id is None:
            raise located(
                InputError(
                    "a panoptic mask",
                    expected="an id from 1 to 16777215 that no other mask has, and a category_id",
                    got=f"id {item.id!r}, category_id {item.category_id!r}",
                    fix="number the segments",
                ),
                f"/masks/{index}",
            )
        ids.append(item.id)
    segment_map = np.zeros(size, np.int32)
    _paint(segment_map, masks, ids)
    slot.reserve(max(ids, default=0) + 1)
    visible = labels_of(segment_map)
    pairs = zip(ids, items, strict=True)
    info = [{"id": segment, "category_id": item.category_id} for segment, item in pairs if segment in visible]
    return PanopticPlan(size, image, segment_map, items, ids, call.options, info)


# ---------------------------------------------------------------- maps


def labels_of(label_map: NDArray[Any]) -> set[int]:
    """The labels in a map, found in bands so that nothing as large as the map is made; one byte each up to the top."""
    here = np.zeros(int(label_map.max()) + 1, np.bool_)
    for row in range(0, label_map.shape[0], 256):
        here[label_map[row : row + 256]] = True
    return set(np.flatnonzero(here).tolist())


def _check_labels(label_map: NDArray[Any], settings: ServerSettings) -> None:
    found = len(labels_of(label_map))
    if found > settings.max_masks:
        got = str(found)
        raise LimitError("too many labels", expected=f"at most {settings.max_masks}", got=got, fix="merge some")


def _paint(canvas: NDArray[Any], masks: list[Mask], values: list[int]) -> None:
    """Write each mask's value into the map, later ones on top."""
    for mask, value in zip(masks, values, strict=True):
        h, w = mask.crop.shape
        window = canvas[mask.y : mask.y + h, mask.x : mask.x + w]
        window[mask.crop.astype(bool)] = value


def _read_map(data: bytes, size: tuple[int, int], settings: ServerSettings, name: str, read: Any) -> NDArray[Any]:
    """A label or segment map of the image's size, its header checked first."""
    try:
        check_size(data, *size, settings.max_pixels, name.replace("_", " "))
        array: NDArray[Any] = read(data, max_pixels=settings.max_pixels)
    except BprError as error:
        raise located(error, f"/{name}") from None
    return array
