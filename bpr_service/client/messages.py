"""Requests and answers of the service as Python objects, without any transport.

H, W are an image's height and width in px.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import BusyError, InputError, NotReadyError, rebuild
from bpr_service.masks.mask import Mask, as_mask

MAX_DELAY_S = 30.0
_OWN = (
    "segmentation",
    "bbox",
    "area",
    "status",
    "reason",
    "patches",
    "changed_px",
    "added_px",
    "removed_px",
    "confidence",
    "scale",
    "uncertain",
)


@dataclass(frozen=True, slots=True)
class RefinedMask:
    """One mask of an answer; ``extra`` holds the keys it was sent with (id, category_id, score, ...)."""

    segmentation: Any
    bbox: list[float]
    area: int
    status: str
    reason: str | None
    patches: int
    changed_px: int
    added_px: int
    removed_px: int
    confidence: float | None
    scale: float | None
    uncertain: list[list[int]]
    size: tuple[int, int]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_mask(self) -> Mask:
        """The mask as box and crop."""
        import base64

        given, soft = self.segmentation, False
        if given in (None, [], "", {}):
            return Mask.from_array(np.zeros(self.size, np.uint8))
        if isinstance(given, dict) and "png" in given:
            given, soft = given["png"], bool(given.get("soft"))
        if isinstance(given, str):
            given = Mask.from_png(base64.b64decode(given.removeprefix("data:image/png;base64,")), soft=soft)
        return as_mask(given, *self.size)

    def to_array(self) -> NDArray[np.uint8]:
        """(H, W) uint8, 0 and 1."""
        return self.to_mask().to_array()


@dataclass(frozen=True, slots=True)
class Refined:
    """An answer of the service. ``raw`` is its JSON."""

    masks: list[RefinedMask]
    model: str
    version: str
    device: str
    timings_ms: dict[str, float]
    request_id: str
    warnings: list[str]
    raw: Mapping[str, Any]

    @property
    def label_map(self) -> NDArray[Any]:
        """(H, W) labels or instance ids, where a map was sent."""
        from bpr_service.masks.label_maps import read_label_map

        return read_label_map(_file(self.raw, "label_map"))

    @property
    def segment_map(self) -> NDArray[np.int32]:
        """Panoptic: (H, W) segment ids, 0 is void."""
        from bpr_service.masks.label_maps import read_panoptic_png

        return read_panoptic_png(_file(self.raw, "segment_map"))


def _file(raw: Mapping[str, Any], name: str) -> bytes:
    import base64

    if not raw.get(name):
        raise InputError(f"the answer has no {name}", expected="another task's answer", got=str(raw.get("task")))
    return base64.b64decode(raw[name]["data"])


@dataclass(frozen=True, slots=True)
class Message:
    """A request that can be sent again: the image is opened afresh each time."""

    task: str
    image: Any
    form: list[tuple[str, tuple[str, bytes, str]]]

    @contextlib.contextmanager
    def files(self) -> Iterator[list[tuple[str, Any]]]:
        stream = _open_image(self.image)
        try:
            yield [("image", ("image", stream, "application/octet-stream")), *self.form]
        finally:
            stream.close()


def _open_image(image: Any) -> BinaryIO:
    """A stream of the image's file; an (H, W, 3) uint8 RGB array becomes a PNG."""
    if isinstance(image, str | Path):
        return Path(image).open("rb")
    if isinstance(image, bytes):
        return BytesIO(image)
    from bpr_service.masks.images import as_image
    from bpr_service.masks.label_maps import encode_png

    return BytesIO(encode_png(as_image(image)))


def _json_part(value: Any) -> tuple[str, bytes, str]:
    return ("json", json.dumps(value).encode(), "application/json")


def mask_entry(mask: Any) -> dict[str, Any]:
    """What the service takes for a mask: an entry with ``segmentation`` as it is; an array or `Mask` as RLE."""
    if isinstance(mask, Mapping):
        return dict(mask) if "segmentation" in mask else {"segmentation": dict(mask)}
    if isinstance(mask, Mask):
        return {"segmentation": mask.to_rle()}
    if isinstance(mask, np.ndarray):
        return {"segmentation": Mask.from_array(mask).to_rle()}
    if isinstance(mask, bytes):
        import base64

        return {"segmentation": {"png": base64.b64encode(mask).decode()}}
    return {"segmentation": mask}


def instance_message(image: Any, masks: Sequence[Any], options: dict[str, Any]) -> Message:
    """Masks of instances: what `mask_entry` takes."""
    form = [("masks", _json_part([mask_entry(mask) for mask in masks])), ("options", _json_part(options))]
    return Message("instance", image, form)


def label_message(task: str, image: Any, label_map: NDArray[Any] | bytes, options: dict[str, Any]) -> Message:
    """A map of classes (``semantic``), also of their probabilities (C, H, W), or of instance ids (``instance``)."""
    from bpr_service.masks.label_maps import encode_png

    if not isinstance(label_map, bytes) and np.ndim(label_map) == 3 and task == "semantic":
        form = [("masks", _json_part(_soft_entries(label_map))), ("options", _json_part(options))]
        return Message(task, image, form)
    png = label_map if isinstance(label_map, bytes) else encode_png(np.ascontiguousarray(label_map))
    form = [("label_map", ("labels.png", png, "image/png")), ("options", _json_part(options))]
    return Message(task, image, form)


def _soft_entries(probabilities: NDArray[Any]) -> list[dict[str, Any]]:
    """The probabilities (C, H, W) of classes 0, 1, ... as masks; pixels without any are left out."""
    import base64

    from bpr_service.masks.label_maps import encode_png
    from bpr_service.refine.labels.soft_labels import SoftLabels

    levels = SoftLabels.from_array(probabilities).levels
    return [
        {"category_id": i, "segmentation": {"png": base64.b64encode(encode_png(level)).decode(), "soft": True}}
        for i, level in enumerate(levels)
    ]


def panoptic_message(
    image: Any, segment_map: NDArray[Any] | bytes, segments_info: Sequence[Mapping[str, Any]], options: dict[str, Any]
) -> Message:
    """A map of segment ids, (H, W) or a PNG in COCO's colours, and its segments."""
    from bpr_service.masks.label_maps import panoptic_png

    png = segment_map if isinstance(segment_map, bytes) else panoptic_png(np.asarray(segment_map))
    form = [
        ("masks", ("segments.png", png, "image/png")),
        ("segments_info", _json_part([dict(info) for info in segments_info])),
        ("options", _json_part(options)),
    ]
    return Message("panoptic", image, form)


def answer(response: httpx.Response) -> Any:
    """The JSON of an answer, or the exception that its problem details speak of."""
    if response.is_success:
        return response.json()
    try:
        problem = response.json()
        code, detail = str(problem["code"]), str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        problem, code, detail = {}, "", f"HTTP {response.status_code}"
    names = ("expected", "got", "fix", "pointer", "faults", "request_id")
    parts = {name: problem[name] for name in names if problem.get(name)}
    error = rebuild(code, detail, **parts)
    if isinstance(error, BusyError | NotReadyError):
        error.retry_after_s = retry_after(response)
    raise error


def retry_after(response: httpx.Response) -> float:
    """Seconds until the next try: the header's, else one."""
    value = response.headers.get("retry-after", "")
    return min(MAX_DELAY_S, float(value)) if value.isdigit() else 1.0


def to_refined(raw: dict[str, Any]) -> Refined:
    """The JSON of an answer as an object."""
    size = (int(raw["size"][0]), int(raw["size"][1]))
    masks = [
        RefinedMask(
            **{key: entry.get(key) for key in _OWN},
            size=size,
            extra={key: value for key, value in entry.items() if key not in _OWN},
        )
        for entry in raw["masks"]
    ]
    model = raw["model"]
    said = {key: raw[key] for key in ("device", "timings_ms", "request_id")}
    return Refined(masks, model["name"], model["version"], **said, warnings=raw.get("warnings", []), raw=raw)
