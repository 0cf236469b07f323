"""Who may call what: one table over every route, and the addresses under which a server may be called."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from bpr_service.errors import ForbiddenError
from bpr_service.server.http.auth import Scope

SMALL_BYTES = 256 << 10
"""The body of a route that takes no pictures."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a caller needs for a route, and what may be sent to it.

    ``scope`` of the key, None where none is needed; ``large`` where pictures are sent: up to the setting's bytes, read
    by the route itself; else up to `SMALL_BYTES`, read before the route begins.
    """

    scope: Scope | None
    large: bool = False


OPEN = Access(None)
_MODEL = r"/v2/models/[^/]+(/versions/[^/]+)?"
RULES: tuple[tuple[str, re.Pattern[str], Access], ...] = tuple(
    (methods, re.compile(path), access)
    for methods, path, access in (
        ("GET", r"/|/docs|/openapi\.json|/page/[^/]*", OPEN),
        ("GET", r"/livez|/readyz|/version|/metrics|/health|/v2/health/(live|ready)", OPEN),
        ("GET", rf"{_MODEL}/ready", OPEN),
        ("POST", r"/v1/refine/[^/]+|/v1/audit|/v1/segment(-refine)?|/predict", Access("refine", large=True)),
        ("POST", r"/setup", Access("refine")),
        ("GET", r"/v1/models|/v1/examples(/.*)?", Access("refine")),
        ("GET", rf"/v2|{_MODEL}", Access("refine")),
        ("POST", r"/v1/models/[^/]+/activate", Access("admin")),
        ("GET POST", r"/v1/jobs(/.*)?", Access("jobs")),
    )
)
CLOSED = Access("admin")
"""What no rule names: a path that does not exist, or a route that somebody forgot here."""
ANOTHER_METHOD = Access("refine")


def access_to(method: str, path: str) -> Access:
    """What a call needs, by the first rule that names it."""
    known = [(methods, access) for methods, pattern, access in RULES if pattern.fullmatch(path)]
    for methods, access in known:
        if ("GET" if method == "HEAD" else method) in methods.split():
            return access
    return Access(known[0][1].scope) if known else CLOSED


def check_origin(headers: Mapping[str, str], hosts: Iterable[str], keyed: bool) -> None:
    """Raise `ForbiddenError` where another site's page calls, or calls under a name that is not this server's.

    Args:
        headers: of the request, by lower-case names.
        hosts: names that the server may be called by; where there are none, any with keys, and addresses and
            localhost without (a page of another site can point its own name here).
        keyed: whether callers need keys.
    """
    asked = headers.get("host", "")
    name = urlsplit(f"//{asked}").hostname or ""
    allowed = tuple(hosts)
    if name not in allowed and not (_is_own(name) or (keyed and not allowed)):
        raise ForbiddenError(
            "the server is not called by that name",
            expected=f"the Host {' or '.join(allowed) or 'localhost or an address'}",
            got=repr(name[:60]),
            fix="add the name to BPR_ALLOWED_HOSTS",
        )
    origin = headers.get("origin")
    if headers.get("sec-fetch-site") == "cross-site" or (origin is not None and urlsplit(origin).netloc != asked):
        raise ForbiddenError(
            "another site's page may not call this", expected="a page of this server", got=repr((origin or "")[:60])
        )


def _is_own(name: str) -> bool:
    """Whether a host is an address or localhost: names that no other site can take."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return True
