"""A client of the service, synchronous and asynchronous.

>>> from bpr_service.client import Client
>>> with Client("http://127.0.0.1:8000") as client:                        # doctest: +SKIP
...     result = client.refine("photo.jpg", masks)
...     result.masks[0].status, result.masks[0].to_array().shape
('refined', (480, 640))

Images go up as a stream. 429 and 503 are tried again after the time in ``Retry-After``; the errors of the service come
back as the exceptions of `bpr_service.errors`. H, W are an image's height and width in px.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import httpx
import numpy as np
from numpy.typing import NDArray

from bpr_service import errors
from bpr_service.core.masks import Mask, as_mask
from bpr_service.errors import BprError, InputError, NotReadyError

if TYPE_CHECKING:
    import supervision

RETRIED = (429, 503)
MAX_DELAY_S = 30.0
_OWN = ("segmentation", "bbox", "area", "status", "reason", "patches", "changed_px", "added_px", "removed_px")


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
    size: tuple[int, int]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_mask(self) -> Mask:
        """The mask as box and crop."""
        given = self.segmentation
        if isinstance(given, dict) and "png" in given:
            given = given["png"]
        if isinstance(given, str):
            import base64

            given = base64.b64decode(given)
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
    raw: Mapping[str, Any]

    @property
    def label_map(self) -> NDArray[Any]:
        """Semantic: (H, W) labels."""
        from bpr_service.core.label_maps import read_label_map

        return read_label_map(_file(self.raw, "label_map"))

    @property
    def segment_map(self) -> NDArray[np.int32]:
        """Panoptic: (H, W) segment ids, 0 is void."""
        from bpr_service.core.label_maps import read_panoptic_png

        return read_panoptic_png(_file(self.raw, "segment_map"))


def _file(raw: Mapping[str, Any], name: str) -> bytes:
    import base64

    if not raw.get(name):
        raise InputError(f"the answer has no {name}", expected="another task's answer", got=str(raw.get("task")))
    return base64.b64decode(raw[name]["data"])


# ---------------------------------------------------------------- requests and answers, without any transport


@dataclass(frozen=True, slots=True)
class _Call:
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
    from bpr_service.core.images import as_image
    from bpr_service.core.label_maps import encode_png

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


def _instance_call(image: Any, masks: Sequence[Any], options: dict[str, Any]) -> _Call:
    form = [("masks", _json_part([mask_entry(mask) for mask in masks])), ("options", _json_part(options))]
    return _Call("instance", image, form)


def _semantic_call(image: Any, label_map: NDArray[Any] | bytes, options: dict[str, Any]) -> _Call:
    from bpr_service.core.label_maps import encode_png

    png = label_map if isinstance(label_map, bytes) else encode_png(np.ascontiguousarray(label_map))
    form = [("masks", ("labels.png", png, "image/png")), ("options", _json_part(options))]
    return _Call("semantic", image, form)


def _panoptic_call(
    image: Any, segment_map: NDArray[Any] | bytes, segments_info: Sequence[Mapping[str, Any]], options: dict[str, Any]
) -> _Call:
    from bpr_service.core.label_maps import panoptic_png

    png = segment_map if isinstance(segment_map, bytes) else panoptic_png(np.asarray(segment_map))
    form = [
        ("masks", ("segments.png", png, "image/png")),
        ("segments_info", _json_part([dict(info) for info in segments_info])),
        ("options", _json_part(options)),
    ]
    return _Call("panoptic", image, form)


def _answer(response: httpx.Response) -> Any:
    """The JSON of an answer, or the exception that its problem details speak of."""
    if response.is_success:
        return response.json()
    try:
        problem = response.json()
        code, detail = str(problem["code"]), str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        code, detail = "", f"HTTP {response.status_code}"
    kind = _by_code().get(code, BprError)
    error = kind.__new__(kind)
    Exception.__init__(error, detail)
    error.expected = error.got = error.fix = ""
    if isinstance(error, errors.BusyError | NotReadyError):
        error.retry_after_s = _retry_after(response)
    raise error


def _by_code() -> dict[str, type[BprError]]:
    kinds: dict[str, type[BprError]] = {}
    waiting: list[type[BprError]] = [BprError]
    while waiting:
        kind = waiting.pop()
        kinds.setdefault(kind.code, kind)
        waiting.extend(kind.__subclasses__())
    kinds["malformed_body"] = InputError
    return kinds


def _retry_after(response: httpx.Response) -> float:
    """Seconds until the next try: the header's, else one."""
    value = response.headers.get("retry-after", "")
    return min(MAX_DELAY_S, float(value)) if value.isdigit() else 1.0


def _refined(raw: dict[str, Any]) -> Refined:
    size = (int(raw["size"][0]), int(raw["size"][1]))
    masks = [
        RefinedMask(
            **{key: entry[key] for key in _OWN},
            size=size,
            extra={key: value for key, value in entry.items() if key not in _OWN},
        )
        for entry in raw["masks"]
    ]
    model = raw["model"]
    return Refined(masks, model["name"], model["version"], raw["device"], raw["timings_ms"], raw["request_id"], raw)


class _Base:
    """What the two clients share."""

    def __init__(self, base_url: str, api_key: str | None, timeout_s: float, retries: int) -> None:
        self._url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self._retries = retries

    def _delay(self, attempt: int, response: httpx.Response | None, until: float) -> float | None:
        """Seconds to wait before the next try, a little spread; None where there is none left."""
        if response is not None and response.status_code not in RETRIED:
            return None
        wait_s = (_retry_after(response) if response is not None else 0.2 * 2**attempt) * random.uniform(1.0, 1.25)
        if attempt >= self._retries or time.monotonic() + wait_s > until:
            return None
        return wait_s


class Client(_Base):
    """Synchronous client. ``timeout_s`` bounds a call with all its tries."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        retries: int = 5,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(base_url, api_key, timeout_s, retries)
        self._http = httpx.Client(base_url=self._url, headers=self._headers, timeout=timeout_s, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def refine(self, image: Any, masks: Sequence[Any], **options: Any) -> Refined:
        """Refine instance masks.

        ``image``: a file's path or bytes, or an (H, W, 3) uint8 RGB array. ``masks``: entries with ``segmentation``,
        RLEs, polygons, PNG bytes, (H, W) arrays or `Mask`. ``options``: preset, encoding, nms_threshold, gate,
        timeout_s. Raises the exceptions of `bpr_service.errors`.
        """
        return _refined(self._send(_instance_call(image, masks, options)))

    def refine_semantic(self, image: Any, label_map: NDArray[Any] | bytes, **options: Any) -> Refined:
        """Refine an (H, W) uint8 or uint16 label map, or its PNG."""
        return _refined(self._send(_semantic_call(image, label_map, options)))

    def refine_panoptic(
        self,
        image: Any,
        segment_map: NDArray[Any] | bytes,
        segments_info: Sequence[Mapping[str, Any]],
        **options: Any,
    ) -> Refined:
        """Refine an (H, W) map of segment ids, or its COCO panoptic PNG."""
        return _refined(self._send(_panoptic_call(image, segment_map, segments_info, options)))

    def get(self, path: str) -> Any:
        """The JSON of a GET route: ``client.get("/v1/models")``."""
        return self._try(lambda: self._http.get(path))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON of a POST route that takes JSON: ``client.post("/v1/models/light/activate", {...})``."""
        return self._try(lambda: self._http.post(path, json=dict(body)))

    def _send(self, call: _Call) -> Any:
        def once() -> httpx.Response:
            with call.files() as files:
                return self._http.post(f"/v1/refine/{call.task}", files=files)

        return self._try(once)

    def _try(self, once: Any) -> Any:
        until = time.monotonic() + self._timeout_s
        for attempt in range(self._retries + 1):
            response: httpx.Response | None = None
            failure: httpx.TransportError | None = None
            try:
                response = once()
            except httpx.TransportError as error:
                failure = error
            delay_s = self._delay(attempt, response, until)
            if delay_s is None:
                return _end(response, failure)
            time.sleep(delay_s)
        raise AssertionError("unreachable")


class AsyncClient(_Base):
    """`Client` for asyncio."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        retries: int = 5,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(base_url, api_key, timeout_s, retries)
        self._http = httpx.AsyncClient(
            base_url=self._url, headers=self._headers, timeout=timeout_s, transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def refine(self, image: Any, masks: Sequence[Any], **options: Any) -> Refined:
        """`Client.refine`."""
        return _refined(await self._send(_instance_call(image, masks, options)))

    async def refine_semantic(self, image: Any, label_map: NDArray[Any] | bytes, **options: Any) -> Refined:
        """`Client.refine_semantic`."""
        return _refined(await self._send(_semantic_call(image, label_map, options)))

    async def refine_panoptic(
        self,
        image: Any,
        segment_map: NDArray[Any] | bytes,
        segments_info: Sequence[Mapping[str, Any]],
        **options: Any,
    ) -> Refined:
        """`Client.refine_panoptic`."""
        return _refined(await self._send(_panoptic_call(image, segment_map, segments_info, options)))

    async def get(self, path: str) -> Any:
        """`Client.get`."""
        return await self._try(lambda: self._http.get(path))

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """`Client.post`."""
        return await self._try(lambda: self._http.post(path, json=dict(body)))

    async def _send(self, call: _Call) -> Any:
        async def once() -> httpx.Response:
            with call.files() as files:
                return await self._http.post(f"/v1/refine/{call.task}", files=files)

        return await self._try(once)

    async def _try(self, once: Any) -> Any:
        until = time.monotonic() + self._timeout_s
        for attempt in range(self._retries + 1):
            response: httpx.Response | None = None
            failure: httpx.TransportError | None = None
            try:
                response = await once()
            except httpx.TransportError as error:
                failure = error
            delay_s = self._delay(attempt, response, until)
            if delay_s is None:
                return _end(response, failure)
            await asyncio.sleep(delay_s)
        raise AssertionError("unreachable")


def _end(response: httpx.Response | None, failure: httpx.TransportError | None) -> Any:
    if response is not None:
        return _answer(response)
    raise NotReadyError(
        "the service cannot be reached", expected="an answer", got=type(failure).__name__, fix="check the address"
    ) from failure


# ---------------------------------------------------------------- supervision


def from_detections(detections: supervision.Detections) -> list[dict[str, Any]]:
    """Entries for `Client.refine` from supervision's detections; `InputError` where they have no masks."""
    if detections.mask is None:
        raise InputError(
            "detections without masks", expected="Detections.mask (n, H, W)", got="None", fix="segment first"
        )
    entries = []
    for index, mask in enumerate(detections.mask):
        entry: dict[str, Any] = {"id": index, "segmentation": Mask.from_array(np.asarray(mask)).to_rle()}
        if detections.class_id is not None:
            entry["category_id"] = int(detections.class_id[index])
        if detections.confidence is not None:
            entry["score"] = float(detections.confidence[index])
        entries.append(entry)
    return entries


def to_detections(refined: Refined, detections: supervision.Detections) -> supervision.Detections:
    """``detections`` with the refined masks and their boxes; everything else stays. Same order, same number."""
    import copy

    if len(refined.masks) != len(detections):
        raise InputError("another number of masks", expected=str(len(detections)), got=str(len(refined.masks)))
    out = copy.copy(detections)
    if refined.masks:
        out.mask = np.stack([mask.to_array().astype(bool) for mask in refined.masks])
        boxes = np.array([mask.bbox for mask in refined.masks], np.float32)
        boxes[:, 2:] += boxes[:, :2]
        empty = np.array([mask.area == 0 for mask in refined.masks])
        out.xyxy = np.where(empty[:, None], detections.xyxy, boxes)
    return out
