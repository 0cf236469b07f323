"""API keys: hashed at rest, compared in constant time, with names, scopes and a rate each."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError

from bpr_service.config import Settings
from bpr_service.errors import AuthError, BusyError, ConfigError, ForbiddenError
from bpr_service.runtime.shares import FairThreads, Shares
from bpr_service.server.logs import log

LOOK_S = 0.05
"""How long a call waits for the look at the file of keys."""
Scope = Literal["refine", "jobs", "admin"]


class ApiKey(Settings):
    """One key as it is kept: never the key itself."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: tuple[Scope, ...] = ("refine", "jobs")
    """What it may do: refine and read models; submit and steer jobs; activate models."""
    per_minute: Annotated[int, Field(ge=1)] | None = None
    """Requests a minute; unlimited where unset."""


_KEYS = TypeAdapter(list[ApiKey])


def hash_key(key: str) -> str:
    """SHA-256 of a key. Keys are 256 random bits, so a slow password hash would add nothing."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key(name: str, scopes: tuple[Scope, ...], per_minute: int | None = None) -> tuple[str, ApiKey]:
    """A fresh key, to be shown once, and what to keep of it."""
    key = "bpr_" + secrets.token_urlsafe(32)
    return key, ApiKey(name=name, sha256=hash_key(key), scopes=scopes, per_minute=per_minute)


def read_keys(path: Path) -> list[ApiKey]:
    """Keys of a file; `ConfigError` where it cannot be read, for a server must not start open by mistake."""
    fix = "write a JSON list of {name, sha256, scopes, per_minute}; `bpr keys` makes one"
    try:
        keys = _KEYS.validate_python(json.loads(path.read_bytes()))
    except OSError as error:
        raise ConfigError("api_keys_file", expected="a readable file", got=str(error), fix=fix) from None
    except (ValueError, ValidationError) as error:
        got = str(error).splitlines()[0]
        raise ConfigError("api_keys_file", expected="a JSON list of keys", got=got, fix=fix) from None
    if len({key.name for key in keys}) != len(keys) or not keys:
        raise ConfigError("api_keys_file", expected="one key or more, each name once", got=f"{len(keys)}", fix=fix)
    return keys


class Bucket:
    """A token bucket: ``per_minute`` tokens a minute, at most a tenth of a minute's (or one) saved up."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_minute / 60.0
        self._room = max(1.0, per_minute / 10.0)
        self._tokens = self._room
        self._clock = clock
        self._at = clock()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self._room, self._tokens + (now - self._at) * self._rate)
            self._at = now
            if self._tokens >= 1.0:
                self._tokens -= 1.0
                return 0.0
            return (1.0 - self._tokens) / self._rate


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the name of the key, and what it may do."""

    name: str
    scopes: frozenset[str]


ANYBODY = Caller("anonymous", frozenset(get_args(Scope)))
"""The caller of a server without keys: may do everything."""


class Keys:
    """The keys of a server; with none, every caller may do everything.

    Args:
        keys: fixed keys; None reads ``path``, and reads it again whenever the file changes. A file that is damaged
            then leaves the keys as they were.
        path: see ``keys``.
        processes: that share the rates of the keys between them.
    """

    def __init__(self, keys: list[ApiKey] | None = None, *, path: Path | None = None, processes: int = 1) -> None:
        self._path, self._processes = path, processes
        self._lock = threading.Lock()
        self._rates = threading.Lock()
        self._thread = FairThreads(1, "keys", Shares())
        self._look: Future[None] | None = None
        self._stamp: tuple[int, int, int] | None = _stamp(path) if path is not None else None
        self._buckets: dict[str, tuple[int, Bucket]] = {}
        self._keys = read_keys(path) if path is not None and keys is None else keys or []

    def stop(self) -> None:
        """Look at the file no more."""
        self._thread.stop(cancel=True)

    def __bool__(self) -> bool:
        return self._path is not None or bool(self._keys)

    def check(self, authorization: str | None, scope: Scope) -> Caller:
        """Whose key is in an ``Authorization`` header.

        Raises `AuthError` (none, or not known), `ForbiddenError` (without ``scope``), `BusyError` (over its
        rate).
        """
        if not self:
            return ANYBODY
        self._read_again()
        digest = hash_key(_presented(authorization))
        found: ApiKey | None = None
        for key in self._keys:  # every key is compared: the time does not show which one is near
            if hmac.compare_digest(digest, key.sha256):
                found = key
        if found is None:
            raise AuthError("the key is not known", expected="a valid API key", fix="ask the operator for one")
        if scope not in found.scopes:
            raise ForbiddenError(
                "this key may not do that",
                expected=f"a key with the scope {scope}",
                got=f"{found.name} with {', '.join(found.scopes)}",
                fix="use another key",
            )
        if wait_s := self._wait_s(found):
            raise BusyError(
                "the key's rate is exceeded",
                expected=f"at most {found.per_minute} requests a minute",
                fix="try again after the time in Retry-After",
                retry_after_s=wait_s,
            )
        return Caller(found.name, frozenset(found.scopes))

    def _wait_s(self, key: ApiKey) -> float:
        """Seconds until a key may call again, by this process's share of its rate; 0 where it may now."""
        if key.per_minute is None:
            return 0.0
        with self._rates:
            per_minute, bucket = self._buckets.get(key.name, (0, None))
            if bucket is None or per_minute != key.per_minute:
                bucket = Bucket(key.per_minute / self._processes)
                self._buckets[key.name] = (key.per_minute, bucket)
        return bucket.take()

    def _read_again(self) -> None:
        """Take over a changed file: a key that was taken out stops to work with the next call.

        A disk that hangs is not waited for: then the keys stay as they were until it answers.
        """
        if self._path is None:
            return
        if self._look is None or self._look.done():
            self._look = self._thread.submit("keys", self._compare)
        wait([self._look], timeout=LOOK_S)

    def _compare(self) -> None:
        assert self._path is not None
        with self._lock:
            if (stamp := _stamp(self._path)) == self._stamp:
                return
            self._stamp = stamp
            try:
                self._keys = read_keys(self._path)
                log.info("the keys were read again", extra={"fields": {"keys": len(self._keys)}})
            except ConfigError as error:
                log.error("the keys stay as they were", extra={"fields": {"reason": str(error)}})


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None where it is not there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _presented(authorization: str | None) -> str:
    """The key of ``Bearer KEY``, or of ``Basic`` with the key as the password (what Label Studio sends)."""
    kind, _, value = (authorization or "").partition(" ")
    if kind.lower() == "bearer" and value.strip():
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            pass
    raise AuthError("no API key", expected="the header Authorization: Bearer KEY", fix="send your key")
