"""Files on disk and on object storage behind one handful of functions.

An *address* is a local path or anything fsspec understands (``s3://bucket/key``, ``gs://...``, ``memory://...``).
Writing is atomic: a reader sees the old file or the whole new one, never a part.
"""

from bpr_service.storage.addresses import is_inside, is_remote, is_special, join, join_inside
from bpr_service.storage.object_store import Answers, Span, ask_ahead, filesystem, holding, merged
from bpr_service.storage.reading import (
    COPY_BYTES,
    exists,
    info,
    list_files,
    list_names,
    open_read,
    read_bytes,
    read_range,
    read_spans,
    sha256,
    size_bytes,
)
from bpr_service.storage.writing import copy, lock, put_if_absent, remove, replacing, sync_folder, write_bytes

__all__ = [
    "COPY_BYTES",
    "Answers",
    "Span",
    "ask_ahead",
    "copy",
    "exists",
    "filesystem",
    "holding",
    "info",
    "is_inside",
    "is_remote",
    "is_special",
    "join",
    "join_inside",
    "list_files",
    "list_names",
    "lock",
    "merged",
    "open_read",
    "put_if_absent",
    "read_bytes",
    "read_range",
    "read_spans",
    "remove",
    "replacing",
    "sha256",
    "size_bytes",
    "sync_folder",
    "write_bytes",
]
