"""What a person decided about the masks of a report, applied: the same file with only those masks replaced.

Letters: H, W are the picture's height and width in px.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from bpr_service import storage
from bpr_service.audit.sample import Share, Stratum, estimate
from bpr_service.errors import FormatError
from bpr_service.formats import InstancePrediction, PanopticPrediction, Paths, PredictionFormat, Unit, open_predictions
from bpr_service.formats.base import Encoded, Prediction
from bpr_service.formats.records.coco import CocoResults
from bpr_service.formats.records.parquet import ParquetResults
from bpr_service.formats.records.stream import stream_json
from bpr_service.masks.mask import Mask

Decision = Literal["keep", "take", "person"]
DECISIONS = ("keep", "take", "person")
Key = tuple[int, int]


def key_text(key: Any) -> str:
    """A mask's key as decisions have it: ``unit/position``."""
    return f"{key[0]}/{key[1]}"


def read_decisions(address: str) -> dict[str, Decision]:
    """The decisions that the page saved, by key. Raises `FormatError`."""
    try:
        document = json.loads(storage.read_bytes(address))
        found = {str(key): value for key, value in document["decisions"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise FormatError(
            f"{address}: no decisions", expected='{"decisions": {KEY: "keep", "take" or "person"}}', got="another file",
            fix="save them from the page of bpr audit",
        ) from None  # fmt: skip
    odd = next((value for value in found.values() if value not in DECISIONS), None)
    if odd is not None:
        raise FormatError(f"{address}: a decision", expected=" or ".join(DECISIONS), got=repr(odd))
    return cast(dict[str, Decision], found)


@dataclass(frozen=True, slots=True)
class Head:
    """What a report says of its data set, and its sample where it has one."""

    values: dict[str, Any]

    def at(self, **places: str | None) -> Head:
        """The head with its files elsewhere.

        Args:
            **places: new paths of ``images``, ``annotations``, ``dataset``, ``panoptic_dir``: those that are given.
        """
        return Head({**self.values, **{key: place for key, place in places.items() if place is not None}})

    def open(self) -> PredictionFormat:
        """The annotation file."""
        v = self.values
        paths = Paths(v["images"], v["annotations"], v.get("dataset"), v.get("panoptic_dir"))
        return open_predictions(v["task"], v["format"], paths)


def read_report(address: str, wanted: Mapping[str, Any]) -> tuple[Head, dict[str, dict[str, Any]]]:
    """The head of a report, and its rows of the wanted keys. Raises `FormatError`."""
    rows: dict[str, dict[str, Any]] = {}
    values: dict[str, Any] = {}
    with storage.open_read(address) as file:
        for event in stream_json(file, address):
            if event.kind == "item" and event.key == "masks":
                key = key_text(event.value["key"])
                if key in wanted:
                    rows[key] = event.value
            elif event.kind == "value" and event.key is not None:
                values[event.key] = event.value
    if not {"task", "images", "annotations", "format"} <= values.keys():
        raise FormatError(address, expected="a report of bpr audit", got="another file", fix="check the path")
    return Head(values), rows


def apply(head: Head, taken: Mapping[str, Mapping[str, Any]], out: str) -> int:
    """Write the annotation file again with the proposed masks in place of those that were taken.

    Every other byte of it is as it was.

    Args:
        head: what the report's first line says of the files.
        taken: rows of the report by key.
        out: a file or a folder, as the format's results are.

    Returns:
        How many masks were replaced.

    Raises:
        FormatError: the annotations are not those of the report any more; nothing was written then for formats whose
            result is one file.
    """
    file = head.open()
    of_unit: dict[int, dict[int, Mask]] = {}
    for row in taken.values():
        number, position = row["key"]
        if row["replacement"] is not None:
            of_unit.setdefault(number, {})[position] = Mask.from_rle(row["replacement"])
    records: dict[int, bytes] = {}
    for unit in file.scan():
        new = of_unit.pop(unit.number, None)
        if new is None and is_spliced(file):
            continue  # its records are copied as they are written
        encoded = file.untouched(unit) if new is None else _encoded(file, unit, new)
        for name, data in encoded.files.items():
            storage.write_bytes(storage.join_inside(out, name), data)
        records.update(encoded.records)
    if of_unit:
        raise _other(file, f"no image {min(of_unit)}")
    if file.has_records:
        file.write(out, _all_records(file, records) if is_spliced(file) else (records[k] for k in sorted(records)))
    return sum(row["replacement"] is not None for row in taken.values())


def _encoded(file: PredictionFormat, unit: Unit, new: dict[int, Mask]) -> Encoded:
    before = file.read(unit)
    try:
        return file.encode(unit, with_masks(before, new))
    except KeyError as error:
        raise _other(file, f"no mask {error.args[0]} in {unit.name}") from None


def _other(file: PredictionFormat, got: str) -> FormatError:
    return FormatError(
        f"{file.paths.predictions}: other annotations than the report's", expected="the file that was audited",
        got=got, fix="audit it again",
    )  # fmt: skip


def is_spliced(file: PredictionFormat) -> bool:
    """Whether a mask of the file is a JSON record that can be replaced where it lies, without reading the others."""
    return isinstance(file, CocoResults) and not isinstance(file, ParquetResults)


def _all_records(file: PredictionFormat, new: Mapping[int, bytes]) -> Iterator[bytes]:
    """Every record of the file, in order: the new ones, and the others as they are."""
    source: Any = file.file  # type: ignore[attr-defined]
    for position, start, length, _ in source.scan():
        yield new[position] if position in new else source.raw([(start, length)])[0]


def with_masks(before: Prediction, new: Mapping[int, Mask]) -> Prediction:
    """A prediction with some of its masks replaced, by position: what `bpr_service.audit.unit.listed` calls so.

    Raises:
        KeyError: there is no mask at a position.
    """
    if isinstance(before, InstancePrediction):
        known = {item.position for item in before.instances if item.mask is not None}
        for position in new:
            if position not in known:
                raise KeyError(position)
        items = [
            replace(item, mask=new[item.position], changed=True) if item.position in new else item
            for item in before.instances
        ]
        return InstancePrediction(tuple(items))
    if isinstance(before, PanopticPrediction):
        segments = np.array(before.segment_map)
        for label, mask in new.items():
            replace_label(segments, label, mask, 0)
        left = set(np.unique(segments).tolist())
        return before.with_segments(segments, [info for info in before.segments_info if info["id"] in left])
    labels = np.array(before.label_map)
    for label, mask in new.items():
        replace_label(labels, label, mask, before.ignore_label)
    return before.with_label_map(labels)


def replace_label(labels: NDArray[Any], label: int, mask: Mask, void: int | None) -> None:
    """Give a label of an (H, W) map another mask, in place.

    What it gains becomes its own, what it loses goes to the nearest other label; void pixels stay void.

    Raises:
        KeyError: the map has no such label.
    """
    import cv2

    old = labels == label
    if not old.any():
        raise KeyError(label)
    wanted = mask.to_array() > 0
    if void is not None:
        wanted &= labels != void
    lost = old & ~wanted
    if lost.any():
        held = (old | wanted | (labels == void if void is not None else False)).astype(np.uint8)
        if held.all():
            return  # nobody else is there to take the pixels
        _, nearest = cv2.distanceTransformWithLabels(held, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
        owner = np.zeros(int(nearest.max()) + 1, labels.dtype)
        free = held == 0
        owner[nearest[free]] = labels[free]
        labels[lost] = owner[nearest[lost]]
    labels[wanted] = label


def share_of_wrong(head: Head, decisions: Mapping[str, Decision]) -> Share:
    """What the decisions about a report's sample say of the whole data set; taken and marked masks are wrong.

    Raises:
        FormatError: the report has no sample, or some of its masks are not decided.
    """
    sample = head.values.get("sample")
    if not sample:
        raise FormatError("the report", expected="a sample", got="none", fix="audit with --sample N")
    left = [key_text(one["key"]) for one in sample["masks"] if key_text(one["key"]) not in decisions]
    if left:
        raise FormatError(
            "the sample is not decided", expected=f"a decision about all {len(sample['masks'])} masks",
            got=f"none about {len(left)}, as {left[0]}", fix="look at the sample on the page, and save again",
        )  # fmt: skip
    wrong = [0] * len(sample["strata"])
    for one in sample["masks"]:
        wrong[one["stratum"]] += decisions[key_text(one["key"])] != "keep"
    return estimate([Stratum(**stratum) for stratum in sample["strata"]], wrong)
