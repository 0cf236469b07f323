"""Label and segment maps, as they came or painted from masks.

Letters: H, W are the image's height and width in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bpr_service.errors import BprError, InputError, LimitError
from bpr_service.formats.folders.semantic import BINARY
from bpr_service.formats.records.record_file import plain_id
from bpr_service.masks.label_maps import is_binary, read_label_map, read_panoptic_png
from bpr_service.masks.mask import Mask
from bpr_service.refine.labels.soft_labels import SoftLabels
from bpr_service.server.codec.bodies import check_plain
from bpr_service.server.codec.faults import located
from bpr_service.server.codec.memory import MAP_BYTES, Allowance
from bpr_service.server.codec.parse import Asked, Limits, decode_masks
from bpr_service.server.codec.pictures import check_size
from bpr_service.server.codec.schemas import MaskIn


@dataclass(slots=True)
class Map:
    """An (H, W) map of labels or segment ids.

    ``items`` are the masks it was painted from, each under its label of ``labels``; None where the map came as one.
    ``background``, of a semantic map that was painted, stands where no mask is.
    """

    array: NDArray[Any]
    items: list[MaskIn] | None = None
    labels: list[int] = field(default_factory=list)
    background: int | None = None
    warnings: tuple[str, ...] = ()
    ignore_label: int | None = None
    """The label that is never rewritten."""
    segments_info: list[dict[str, Any]] | None = None
    soft: SoftLabels | None = None
    """What `array` was made of, where its masks came as probabilities."""


def read_map(asked: Asked, height: int, width: int, limits: Limits, allowance: Allowance) -> Map:
    """The map of a request: labels, segments, or instance ids.

    Raises:
        InputError, MaskError, LimitError, BusyError: it cannot be used, or not now.
    """
    name = "segment_map" if asked.task == "panoptic" else "label_map"
    if (asked.map is None) == (asked.masks is None):
        got = "both" if asked.map is not None else "neither"
        raise InputError("what to refine", expected=f"{name} or masks", got=got, fix="send one of the two")
    allowance.last(MAP_BYTES * height * width)
    read = _panoptic if asked.task == "panoptic" else _semantic
    return read(asked, (height, width), limits, allowance)


def void_label(ignore_label: int) -> int:
    """What pixels without a mask are answered as."""
    return max(ignore_label, 0)


def _semantic(asked: Asked, size: tuple[int, int], limits: Limits, allowance: Allowance) -> Map:
    if asked.map is not None:
        label_map = _read(asked.map, size, limits, allowance, "label_map", read_label_map)
        _check_labels(label_map, limits, allowance)
        return _as_labels(label_map, asked)
    items = asked.masks or []
    masks, _ = decode_masks(asked, *size, limits, allowance)
    labels: list[int] = []
    for index, item in enumerate(items):
        if item.label is None or item.label in labels:
            raise located(
                InputError(
                    "a semantic mask's category_id",
                    expected="a label from 0 to 65535 that no other mask has",
                    got=repr(item.category_id),
                    fix="unite the masks of one class, or send a label_map",
                ),
                f"/masks/{index}/category_id",
            )
        labels.append(item.label)
    void = void_label(asked.options.ignore_label)
    if void in labels:
        raise located(
            InputError(
                "the label of the pixels without a mask",
                expected="an ignore_label that no mask has",
                got=f"{void}, the category_id of mask {labels.index(void)}",
                fix="set options.ignore_label to a label that is free",
            ),
            "/options/ignore_label",
        )
    background = next(label for label in range(len(labels) + 1) if label not in labels)
    top = max([background, *labels])
    dtype = np.uint16 if top > 255 else np.uint8
    if len(masks) > 1 and any(mask.soft is not None for mask in masks):
        soft = _likeliest(masks, [*labels, background], size, dtype, allowance)
        return Map(soft.labels, items, labels, background, soft=soft)
    label_map = np.full(size, background, dtype)
    _paint(label_map, masks, labels)
    return Map(label_map, items, labels, background)


def _likeliest(
    masks: list[Mask], labels: list[int], size: tuple[int, int], dtype: DTypeLike, allowance: Allowance
) -> SoftLabels:
    """The likeliest of `labels`: those of the masks, and of what they leave of each pixel's probability.

    A mask without probabilities has 0 and 1.
    """
    pixels = size[0] * size[1]
    allowance.last(len(labels) * pixels)
    allowance.at_least(16 * pixels)
    levels = np.zeros((len(labels), *size), np.uint8)
    for mask, level in zip(masks, levels, strict=False):
        h, w = mask.crop.shape
        level[mask.y : mask.y + h, mask.x : mask.x + w] = mask.crop * 255 if mask.soft is None else mask.soft
    rounded = len(masks) // 2 + 1  # each level is off by up to a half
    levels[-1] = np.clip(255 - rounded - levels[:-1].sum(0, dtype=np.int32), 0, 255)
    return SoftLabels(np.array(labels, dtype)[levels.argmax(0)], levels, tuple(labels))


def _as_labels(label_map: NDArray[Any], asked: Asked) -> Map:
    """A label map that came as one: instance ids know nothing to ignore, and 0 and 255 alone are a mask."""
    if asked.task == "instance":
        return Map(label_map)
    ignore = asked.options.ignore_label
    if "ignore_label" not in asked.options.model_fields_set and is_binary(label_map, ignore):
        return Map(label_map, warnings=(BINARY,))
    return Map(label_map, ignore_label=ignore if ignore >= 0 else None)


def _panoptic(asked: Asked, size: tuple[int, int], limits: Limits, allowance: Allowance) -> Map:
    if asked.map is not None:
        if asked.segments_info is None:
            raise InputError("segments_info is missing", expected="a list of {id, category_id}", fix="send it too")
        segment_map = _read(asked.map, size, limits, allowance, "segment_map", read_panoptic_png)
        _check_labels(segment_map, limits, allowance)
        info = [item.model_dump(exclude_unset=True) for item in asked.segments_info]
        check_plain(info, "/segments_info")
        return Map(segment_map, segments_info=info)
    items = asked.masks or []
    masks, _ = decode_masks(asked, *size, limits, allowance)
    ids: list[int] = []
    for index, item in enumerate(items):
        segment = plain_id(item.id)
        if not isinstance(segment, int) or not 0 < segment < 1 << 24 or segment in ids or item.label is None:
            raise located(
                InputError(
                    "a panoptic mask",
                    expected="an id from 1 to 16777215 that no other mask has, and a category_id",
                    got=f"id {item.id!r}, category_id {item.category_id!r}",
                    fix="number the segments",
                ),
                f"/masks/{index}",
            )
        ids.append(segment)
    segment_map = np.zeros(size, np.int32)
    _paint(segment_map, masks, ids)
    allowance.at_least(max(ids, default=0) + 1 + 2 * segment_map.size)
    visible = set(np.flatnonzero(which_labels(segment_map)).tolist())
    pairs = zip(ids, items, strict=True)
    info = [{"id": segment, "category_id": item.label} for segment, item in pairs if segment in visible]
    return Map(segment_map, items, ids, segments_info=info)


def which_labels(label_map: NDArray[Any]) -> NDArray[np.bool_]:
    """For each label up to the map's highest, whether it is there; found in bands, so that no copy is made of it."""
    here = np.zeros(int(label_map.max()) + 1, np.bool_)
    for row in range(0, label_map.shape[0], 256):
        here[label_map[row : row + 256]] = True
    return here


def _check_labels(label_map: NDArray[Any], limits: Limits, allowance: Allowance) -> None:
    allowance.at_least(int(label_map.max()) + 1 + 2 * label_map.size)  # for `which_labels`
    found = int(np.count_nonzero(which_labels(label_map)))
    if found > limits.max_masks:
        got = str(found)
        raise LimitError("too many labels", expected=f"at most {limits.max_masks}", got=got, fix="merge some")


def _paint(canvas: NDArray[Any], masks: list[Mask], values: list[int]) -> None:
    """Write each mask's value into the map, later ones on top."""
    for mask, value in zip(masks, values, strict=True):
        h, w = mask.crop.shape
        window = canvas[mask.y : mask.y + h, mask.x : mask.x + w]
        window[mask.crop.astype(bool)] = value


def _read(
    data: bytes, size: tuple[int, int], limits: Limits, allowance: Allowance, name: str, read: Any
) -> NDArray[Any]:
    """A label or segment map of the image's size, its header checked first."""
    try:
        check_size(data, *size, limits.max_pixels, allowance, name.replace("_", " "))
        array: NDArray[Any] = read(data, max_pixels=limits.max_pixels)
    except BprError as error:
        raise located(error, f"/{name}") from None
    return array
