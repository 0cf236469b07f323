"""Memory that two processes share: a file that is in memory only, handed over by its descriptor, and short messages.

Masks and arrays go into a block with a JSON object, ``meta``, that says where they lie.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import DTypeLike, NDArray

from bpr_service.masks.mask import Mask

MESSAGE_BYTES = 1 << 16
"""A message is shorter; what may be longer goes into a block."""
ALIGN_BYTES = 64


class Block:
    """Bytes that can be handed to another process. Freed with its last view, in both."""

    def __init__(self, fd: int | None = None) -> None:
        """A new and empty block, or the one behind the descriptor that another process sent."""
        self.fd = os.memfd_create("bpr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING) if fd is None else fd
        if fd is not None:  # nobody can take the bytes away from under a view
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.size = os.fstat(self.fd).st_size
        self._map: mmap.mmap | None = None

    def append(self, data: Any, align: bool = False) -> int:
        """Write ``data`` at the end; where it begins. With ``align``, at a multiple of `ALIGN_BYTES`."""
        start = -(-self.size // ALIGN_BYTES) * ALIGN_BYTES if align else self.size
        if memoryview(data).nbytes == 0:
            return self.size
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += os.pwrite(self.fd, view[done : done + (1 << 30)], start + done)
        self.size = start + len(view)
        return start

    def room(self, n_bytes: int) -> int:
        """Add ``n_bytes`` of zeros; where they begin."""
        start = -(-self.size // ALIGN_BYTES) * ALIGN_BYTES
        self.size = start + n_bytes
        os.ftruncate(self.fd, self.size)
        self._map = None
        return start

    def array(self, start: int, shape: Sequence[int], dtype: DTypeLike = np.uint8) -> NDArray[Any]:
        """The bytes from ``start`` as an array, not copied. Raises `ValueError` where they are not all there."""
        count = int(np.prod(shape, dtype=np.int64))
        if count == 0:
            return np.zeros(shape, dtype)
        return np.frombuffer(self._mapped(), dtype, count, start).reshape(shape)

    def view(self, start: int = 0, stop: int | None = None) -> memoryview:
        """The bytes from ``start`` to ``stop``, not copied."""
        return memoryview(self._mapped())[start:stop] if self.size else memoryview(b"")

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            self._map = mmap.mmap(self.fd, self.size)
        return self._map

    def close(self) -> None:
        """Let go of the descriptor; views stay usable."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self._map = -1, None


def send(to: socket.socket, message: dict[str, Any], *blocks: Block) -> None:
    """Send a short JSON message, and blocks with it."""
    socket.send_fds(to, [orjson.dumps(message)], [block.fd for block in blocks])


def receive(at: socket.socket) -> tuple[dict[str, Any], list[Block]] | None:
    """The next message and its blocks; None where the other side is gone."""
    try:
        data, fds, _, _ = socket.recv_fds(at, MESSAGE_BYTES, 4)
    except ConnectionError:
        return None
    blocks = [Block(fd) for fd in fds]
    return (orjson.loads(data), blocks) if data else None


# ---- what is put into a block

Place = Sequence[Any]
"""Where an array is: start, shape, dtype."""


def pack_array(block: Block, array: NDArray[Any]) -> Place:
    """Append an array; its place."""
    return block.append(np.ascontiguousarray(array), align=True), list(array.shape), array.dtype.str


def unpack_array(block: Block, place: Place) -> NDArray[Any]:
    """The array at a place, not copied."""
    start, shape, dtype = place
    return block.array(start, shape, dtype)


def pack_masks(block: Block, masks: Sequence[Mask]) -> list[Any]:
    """Append crops; of each mask x, y, and the places of its crop and of its probabilities (or None)."""
    return [
        (mask.x, mask.y, pack_array(block, mask.crop), None if mask.soft is None else pack_array(block, mask.soft))
        for mask in masks
    ]


def unpack_masks(block: Block, packed: Sequence[Any], height: int, width: int) -> list[Mask]:
    """Masks of an (H, W) image, their crops not copied."""
    return [
        Mask(height, width, x, y, unpack_array(block, crop), None if soft is None else unpack_array(block, soft))
        for x, y, crop, soft in packed
    ]


def pack_meta(block: Block, meta: dict[str, Any]) -> dict[str, Any]:
    """Append what is said of the pixels; the message that says where."""
    text = orjson.dumps(meta, option=orjson.OPT_SERIALIZE_NUMPY)
    start = block.append(text)
    return {"meta": [start, start + len(text)]}


def unpack_meta(message: dict[str, Any], block: Block) -> dict[str, Any]:
    """What `pack_meta` appended."""
    meta: dict[str, Any] = orjson.loads(block.view(*message["meta"]))
    return meta
