"""Results as parts (``bpr batch --result jsonl|parquet``) read again: a folder with a manifest, or one file."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterator

from bpr_service import storage
from bpr_service.errors import FormatError

MANIFEST = "manifest.json"


def is_parts(address: str) -> bool:
    """Whether `read_results` takes it: by its name, or by its manifest."""
    return address.lower().endswith(tuple(_SUFFIXES)) or storage.exists(storage.join(address, MANIFEST))


def read_results(out: str) -> Iterator[bytes]:
    """The records of results as parts, one after the other.

    Args:
        out: the folder of a run, or one file that ends with ``.jsonl``, ``.jsonl.gz``, ``.ndjson`` or ``.parquet``.

    Raises:
        NotFoundError: there is no manifest.
        FormatError: a part is not what the manifest says, or cannot be read.
    """
    for suffix, kind in _SUFFIXES.items():
        if out.lower().endswith(suffix):
            yield from _decoded(out, storage.read_bytes(out), kind)
            return
    kind, parts = _manifest(storage.join(out, MANIFEST))
    for name, sha256 in parts:
        data = storage.read_bytes(storage.join_inside(out, name))
        if hashlib.sha256(data).hexdigest() != sha256:
            raise FormatError(
                f"{out}/{name}",
                expected=f"SHA-256 {sha256}, as {MANIFEST} says",
                got=hashlib.sha256(data).hexdigest(),
                fix="merge again",
            )
        yield from _decoded(f"{out}/{name}", data, kind)


def _manifest(address: str) -> tuple[str, list[tuple[str, str]]]:
    """What it says: the kind of the parts, and (name, SHA-256) of each. Raises ``FormatError``."""
    try:
        said = json.loads(storage.read_bytes(address))
        kind, parts = said["format"], [(str(part["name"]), str(part["sha256"])) for part in said["parts"]]
        if kind not in _DECODERS:
            raise ValueError(f"format {kind!r}")
        return kind, parts
    except (ValueError, TypeError, KeyError) as error:
        raise FormatError(
            f"{address}: no manifest of results",
            expected=f"format ({', '.join(_DECODERS)}) and parts, each with name and sha256",
            got=repr(error)[:200],
            fix="give the folder that --result jsonl or parquet made, or merge again",
        ) from None


def _decoded(name: str, data: bytes, kind: str) -> Iterator[bytes]:
    try:
        yield from _DECODERS[kind](data)
    except (OSError, EOFError, KeyError, ValueError) as error:
        raise FormatError(f"{name}: no {kind} of results", got=str(error)[:200], fix="check the file") from None


def _lines(data: bytes) -> Iterator[bytes]:
    text = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    return (line for line in text.splitlines() if line.strip())


def _parquet_records(data: bytes) -> Iterator[bytes]:
    import pyarrow.parquet as pq

    for text in pq.read_table(io.BytesIO(data), columns=["record"]).column("record").to_pylist():
        yield text.encode()


_DECODERS: dict[str, Callable[[bytes], Iterator[bytes]]] = {"jsonl": _lines, "parquet": _parquet_records}
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".jsonl.gz": "jsonl", ".parquet": "parquet"}
