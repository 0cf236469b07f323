"""Object stores behind fsspec: what they raise, and what is asked of them ahead of its use.

A process that works on one picture after the other would wait for the store at each. `ask_ahead` sends the requests
at once, and `holding` gives their answers to whatever is read inside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from bpr_service.errors import BprError, StorageError
from bpr_service.storage.addresses import is_remote

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


class Span(NamedTuple):
    """``length`` bytes of a file from ``start`` on; None: all of it."""

    address: str
    start: int = 0
    length: int | None = None


Answers = dict[Span, "Future[bytes]"]
_ANSWERS: ContextVar[Answers | None] = ContextVar("_ANSWERS", default=None)
GAP_BYTES = 1 << 16
"""Spans with less than this between them are one request."""


def filesystem(address: str) -> tuple[AbstractFileSystem, str]:
    """The fsspec file system of an address, and the path in it. Listings are never cached: others write too."""
    from fsspec.core import url_to_fs

    options: dict[str, object] = {"use_listings_cache": False} if is_remote(address) else {}
    if address.startswith(("s3://", "s3a://")):
        options["max_concurrency"] = 1  # one request a file; s3fs would ask for its size first, to read it in pieces
    fs, path = url_to_fs(address, **options)
    return fs, path


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Turn what an object store raises into an error that says so; local addresses keep the system's own errors.

    Raises:
        StorageError: the store refuses, or cannot be reached.
    """
    try:
        yield
    except (BprError, FileNotFoundError, FileExistsError, IsADirectoryError):
        raise
    except Exception as error:
        if not is_remote(address):
            raise
        raise StorageError(
            f"{address}: the store refuses",
            expected="an object store that answers",
            got=f"{type(error).__name__}: {error}",
            fix="check the address, the credentials and the network",
        ) from error


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(start, length) of the requests that cover these spans, which must be in rising order."""
    out: list[tuple[int, int]] = []
    for start, length in spans:
        first, end = (out[-1][0], sum(out[-1])) if out else (start, start)
        if out and start - end < GAP_BYTES:
            out[-1] = first, max(end, start + length) - first
        else:
            out.append((start, length))
    return out


def ask_ahead(spans: Iterable[Span]) -> Answers:
    """Ask for these now; none of a store that cannot answer beside the caller's work, and none that is no store.

    What goes wrong is raised where the answer is read.
    """
    answers: Answers = {}
    for span in spans:
        if not is_remote(span.address):
            continue
        fs, path = filesystem(span.address)
        if fs.async_impl:
            asked = fs._cat_file(path, **bounds(span.start, span.length))
            answers[span] = asyncio.run_coroutine_threadsafe(asked, fs.loop)
    return answers


def bounds(start: int, length: int | None) -> dict[str, int | None]:
    """First byte and end of a range as fsspec takes them."""
    return {"start": start or None, "end": None if length is None else start + length}


@contextmanager
def holding(answers: Answers) -> Iterator[None]:
    """What is read inside comes from these answers where they have it; those that nobody read are dropped."""
    token = _ANSWERS.set(answers)
    try:
        yield
    finally:
        _ANSWERS.reset(token)
        for answer in answers.values():
            answer.cancel()


def held(span: Span) -> bytes | None:
    """The answer that was asked ahead, None where it was not. Raises what the store did."""
    answers = _ANSWERS.get()
    answer = answers.get(span) if answers else None
    return None if answer is None else bytes(answer.result())
