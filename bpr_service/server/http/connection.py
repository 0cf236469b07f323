"""Connections: how many there may be, and how long each may say nothing."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

KEPT_FILES = 64
"""Descriptors that are not for connections: files, the store, databases."""


HEADER_BYTES = 16 << 10
"""What is looked at as a header at a time; one that is longer than twice that is refused."""
CHUNKS = 256
"""So many chunks of a body may be small."""
CHUNK_BYTES = 32
"""What a body's chunks hold on average at least, once there are more."""


class Framing(h11.Connection):
    """h11, but that a body in chunks of a few bytes is refused: taking those apart is dearer than all they hold."""

    _chunks = _held_bytes = 0

    def next_event(self) -> Any:
        """Give h11's next event. Raises `h11.RemoteProtocolError` as h11 does, and for chunks that are too small."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._held_bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_end  # never where the body's length was announced
            self._held_bytes += len(event.data)
            if self._chunks > CHUNKS and self._held_bytes < CHUNK_BYTES * self._chunks:
                raise h11.RemoteProtocolError("the chunks of the body are too small", error_status_hint=400)
        return event


def guarded(max_connections: int, header_s: float) -> type[H11Protocol]:
    """uvicorn's protocol with bounds.

    Args:
        max_connections: what comes beyond is closed at once.
        header_s: time for a whole header, for the rest of a body whose answer has gone, and for an answer's last
            bytes to be taken, in seconds.
    """

    class Connection(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.conn = Framing(h11.SERVER, HEADER_BYTES)

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                transport.abort()
                return
            inner = self.app

            async def app(scope: Any, receive: Any, send: Any) -> None:
                scope["bpr.abort"] = transport.abort
                await inner(scope, receive, send)

            self.app = app
            self._watch()

        def data_received(self, data: bytes) -> None:
            while data and not self.transport.is_closing():
                size = HEADER_BYTES if self.conn.their_state is h11.IDLE else len(data)
                super().data_received(data[:size])
                data = data[size:]
            if self.conn.their_state is h11.DONE and len(self.conn.trailing_data[0]) > HEADER_BYTES:
                self.transport.abort()  # it sends more before it has its answer, which would be looked at all at once
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def timeout_keep_alive_handler(self) -> None:
            self.transport.abort()  # not closed: that would wait for a caller who does not take the answer

        def _watch(self) -> None:
            """Run the clock while a header is on its way, or the rest of a body that nobody waits for."""
            between = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
            left_over = self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE
            if not (between or left_over):
                self._unwatch()
            elif self._timer is None:
                self._timer = self.loop.call_later(header_s, self.transport.abort)

        def _unwatch(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Connection


def room_for_connections(wanted: int) -> int:
    """As many connections of ``wanted`` as this process may have files for; its own limit is raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 1 << 20
    goal = min(hard, wanted + KEPT_FILES)
    if soft != resource.RLIM_INFINITY and soft < goal:
        resource.setrlimit(resource.RLIMIT_NOFILE, (goal, hard))
        soft = goal
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - KEPT_FILES))
