"""The two clients: one sends, waits and tries again; the other does it for asyncio."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx
from numpy.typing import NDArray

from bpr_service.client.messages import (
    Message,
    Refined,
    answer,
    instance_message,
    label_message,
    panoptic_message,
    retry_after,
    to_refined,
)
from bpr_service.errors import NotReadyError

RETRIED = (429, 503)
"""Status codes after which a request is sent again."""


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
        wait_s = (retry_after(response) if response is not None else 0.2 * 2**attempt) * random.uniform(1.0, 1.25)
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
        exif, page, window, crowds, timeout_s. Raises the exceptions of `bpr_service.errors`.
        """
        return to_refined(self._send(instance_message(image, masks, options)))

    def refine_labels(self, image: Any, id_map: NDArray[Any] | bytes, **options: Any) -> Refined:
        """Refine an (H, W) uint8 or uint16 map of instance ids, 0 is background, or its PNG."""
        return to_refined(self._send(label_message("instance", image, id_map, options)))

    def refine_semantic(self, image: Any, label_map: NDArray[Any] | bytes, **options: Any) -> Refined:
        """Refine an (H, W) uint8 or uint16 label map, its PNG, or the probabilities (C, H, W) of classes 0, 1, ..."""
        return to_refined(self._send(label_message("semantic", image, label_map, options)))

    def refine_panoptic(
        self,
        image: Any,
        segment_map: NDArray[Any] | bytes,
        segments_info: Sequence[Mapping[str, Any]],
        **options: Any,
    ) -> Refined:
        """Refine an (H, W) map of segment ids, or its COCO panoptic PNG."""
        return to_refined(self._send(panoptic_message(image, segment_map, segments_info, options)))

    def audit(self, image: Any, masks: Sequence[Any], **options: Any) -> Any:
        """How suspicious each mask is, and where: the JSON of ``POST /v1/audit``. Arguments as of `refine`."""
        return self._send(instance_message(image, masks, options), "/v1/audit")

    def get(self, path: str) -> Any:
        """The JSON of a GET route: ``client.get("/v1/models")``."""
        return self._try(lambda: self._http.get(path))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON of a POST route that takes JSON: ``client.post("/v1/models/light/activate", {...})``."""
        return self._try(lambda: self._http.post(path, json=dict(body)))

    def _send(self, message: Message, path: str | None = None) -> Any:
        def once() -> httpx.Response:
            with message.files() as files:
                return self._http.post(path or f"/v1/refine/{message.task}", files=files)

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
                return _end(response, failure, self._url)
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
        return to_refined(await self._send(instance_message(image, masks, options)))

    async def refine_labels(self, image: Any, id_map: NDArray[Any] | bytes, **options: Any) -> Refined:
        """`Client.refine_labels`."""
        return to_refined(await self._send(label_message("instance", image, id_map, options)))

    async def refine_semantic(self, image: Any, label_map: NDArray[Any] | bytes, **options: Any) -> Refined:
        """`Client.refine_semantic`."""
        return to_refined(await self._send(label_message("semantic", image, label_map, options)))

    async def refine_panoptic(
        self,
        image: Any,
        segment_map: NDArray[Any] | bytes,
        segments_info: Sequence[Mapping[str, Any]],
        **options: Any,
    ) -> Refined:
        """`Client.refine_panoptic`."""
        return to_refined(await self._send(panoptic_message(image, segment_map, segments_info, options)))

    async def audit(self, image: Any, masks: Sequence[Any], **options: Any) -> Any:
        """`Client.audit`."""
        return await self._send(instance_message(image, masks, options), "/v1/audit")

    async def get(self, path: str) -> Any:
        """`Client.get`."""
        return await self._try(lambda: self._http.get(path))

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """`Client.post`."""
        return await self._try(lambda: self._http.post(path, json=dict(body)))

    async def _send(self, message: Message, path: str | None = None) -> Any:
        async def once() -> httpx.Response:
            with message.files() as files:
                return await self._http.post(path or f"/v1/refine/{message.task}", files=files)

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
                return _end(response, failure, self._url)
            await asyncio.sleep(delay_s)
        raise AssertionError("unreachable")


def _end(response: httpx.Response | None, failure: httpx.TransportError | None, url: str) -> Any:
    if response is not None:
        return answer(response)
    raise NotReadyError(
        f"{url} cannot be reached",
        expected="an answer of bpr serve",
        got=str(failure) or type(failure).__name__,
        fix="check the address, and that the server runs",
    ) from failure
