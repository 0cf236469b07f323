"""Pictures of Label Studio's tasks, fetched from Label Studio: from its own address, with its token, and no other."""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from bpr_service.errors import ConfigError, DeadlineError, ForbiddenError, InputError, LimitError
from bpr_service.runtime.work import Work

_BLOCK_BYTES = 1 << 16
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class LabelStudioMedia:
    """Where Label Studio's media are, and how much of them is taken.

    Attributes:
        url: Label Studio's address; what lies on another host, port or scheme is never asked for, and no redirection
            is followed.
        token: of a user of Label Studio's; sent to that address alone.
        max_bytes: of one picture.
    """

    url: str
    token: str | None
    max_bytes: int

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None:
            raise ConfigError(
                "BPR_LABEL_STUDIO_URL", expected="http(s)://host[:port]", got=self.url[:80], fix="as in a browser"
            )

    def fetch(self, address: str, work: Work) -> bytes:
        """The bytes at an address of a task, whole within the request's deadline, in memory that is reserved for it.

        Raises:
            ForbiddenError: it is not Label Studio's.
            InputError: Label Studio does not answer, or not with a file.
            LimitError: it is longer than `max_bytes`.
            DeadlineError: it took too long.
            BusyError: there is no memory for it now.
        """
        target = urlsplit(urljoin(self.url.rstrip("/") + "/", address))
        if _place(target) != _place(urlsplit(self.url)):
            raise ForbiddenError(
                f"the task's image lies on another host: expected an address of {self.url}, got {address[:80]!r}",
                fix="media of other addresses are not fetched: send a data URI, or keep them in Label Studio",
            )
        kind = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(target.hostname), target.port, timeout=_left(work))
        headers = {"Authorization": f"Token {self.token}"} if self.token else {}
        try:
            connection.request("GET", target._replace(scheme="", netloc="", fragment="").geturl() or "/", None, headers)
            sock = connection.sock  # the connection lets go of it where the answer is the last
            return self._body(sock, connection.getresponse(), work)
        except TimeoutError:
            raise DeadlineError("Label Studio did not send the task's image in time") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            got = type(error).__name__
            raise InputError("the task's image", expected=f"an answer of {self.url}", got=got, fix="check it") from None
        finally:
            connection.close()

    def _body(self, sock: socket.socket, answer: http.client.HTTPResponse, work: Work) -> bytes:
        if answer.status != http.client.OK:
            moved = " (redirections are not followed)" if 300 <= answer.status < 400 else ""
            got = f"status {answer.status}{moved}"
            raise InputError("the task's image", expected="a file", got=got, fix="check BPR_LABEL_STUDIO_TOKEN")
        data = bytearray()
        announced = answer.length or 0
        while len(data) <= self.max_bytes and announced <= self.max_bytes:
            sock.settimeout(_left(work))
            block = answer.read1(_BLOCK_BYTES)
            if not block:
                return bytes(data)
            work.slot.reserve(2 * len(block))
            data += block
        raise LimitError("the task's image", expected=f"a file of at most {self.max_bytes} bytes", got="more")


def _place(parts: SplitResult) -> tuple[str, str, int]:
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)


def _left(work: Work) -> float:
    """Seconds to the request's deadline."""
    left = work.remaining_s()
    if left <= 0:
        raise TimeoutError
    return left
