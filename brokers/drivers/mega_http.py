"""HTTP for the mega driver: every call has a deadline, and every failure one of our names.

`requests` limits only each wait for the next bytes. Here the whole of a call ends in time: bodies are sent and
read in pieces, and before each the time left is looked at. Nothing is tried again, no redirect is followed. The
address of a request holds the session's id, therefore no error carries it, or what it came from.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.exceptions import TimeoutError as PoolTimeout

from brokers import clock
from brokers.errors import (
    BrokerError,
    OutOfSpace,
    RateLimited,
    Timeout,
    TooLarge,
    Unauthorized,
    Unavailable,
)

CONNECT_SECONDS = 5.0
CONNECTIONS = 16
PIECE = 64 * 1024

_STATUS: dict[int, type[BrokerError]] = {
    408: Timeout,
    413: TooLarge,
    504: Timeout,
    507: OutOfSpace,
}


_SID = re.compile(r"\bsid=[^&\s\"]+")


def _without_sid(record: logging.LogRecord) -> bool:
    """The HTTP library's debug log prints addresses; a session's id opens the account."""
    if isinstance(record.args, tuple):
        record.args = tuple(_SID.sub("sid=...", a) if isinstance(a, str) else a for a in record.args)
    return True


logging.getLogger("urllib3.connectionpool").addFilter(_without_sid)


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request: its status, headers (names in any case) and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Wire:
    """A pool of connections with deadlines. Safe to use from many threads."""

    def __init__(self) -> None:
        self._session = requests.Session()
        adapter = HTTPAdapter(pool_connections=CONNECTIONS, pool_maxsize=CONNECTIONS, max_retries=0)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)
        self._until = threading.local()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """What this thread does inside ends in so many seconds, or raises Timeout."""
        before = getattr(self._until, "at", None)
        self._until.at = clock.monotonic() + seconds
        try:
            yield
        finally:
            self._until.at = before

    def left(self) -> float:
        """Seconds left. Raises Timeout when there are none."""
        at = getattr(self._until, "at", None)
        if at is None:
            raise RuntimeError("a call outside `within`")
        left = float(at) - clock.monotonic()
        if left <= 0:
            raise Timeout("MEGA took too long")
        return left

    def send(
        self,
        method: str,
        url: str,
        *,
        most: int,
        params: Mapping[str, Any] | None = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request: -> its answer, whatever its status. Raises Timeout, or Unavailable for no proper answer
        and for a body of more than `most` bytes."""
        if not url.startswith(("https://", "http://")):
            raise Unavailable("MEGA named an address that is none")
        try:
            with self._session.request(
                method,
                url,
                params=params,
                data=None if data is None else _Body(data, self),
                headers={"User-Agent": "CloudStore", **(headers or {})},
                timeout=(min(CONNECT_SECONDS, self.left()), self.left()),
                stream=True,
                allow_redirects=False,
            ) as answer:
                parts, size = [], 0
                for part in answer.iter_content(PIECE):
                    self.left()
                    parts.append(part)
                    size += len(part)
                    if size > most:
                        raise Unavailable("MEGA sent more than was asked for")
                return Reply(answer.status_code, answer.headers, b"".join(parts))
        except BrokerError:
            raise
        except (requests.Timeout, TimeoutError, PoolTimeout):
            raise Timeout("MEGA does not answer") from None
        except requests.exceptions.SSLError:
            raise Unavailable("no trusted TLS connection to MEGA") from None
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            name = type(error).__name__
            if "timed out" in str(error):  # a timeout while a body is read comes as a broken connection
                raise Timeout("MEGA does not answer") from None
            raise Unavailable(f"no proper answer from MEGA ({name})") from None

    def close(self) -> None:
        self._session.close()


class _Body:
    """Bytes to be sent in pieces, as long as there is time."""

    def __init__(self, data: bytes, wire: Wire) -> None:
        self._rest = memoryview(data)
        self._wire = wire

    def __len__(self) -> int:
        return len(self._rest)

    def read(self, size: int = -1) -> bytes:
        self._wire.left()
        count = len(self._rest) if size < 0 else min(size, PIECE)
        part, self._rest = self._rest[:count], self._rest[count:]
        return bytes(part)


def check_status(reply: Reply, where: str, *, api: bool) -> None:
    """Raise for every status but 200 (and 206 for a part). "Not there" is an outage here: whether an object
    exists, only MEGA's API can say, by its own error numbers. So is "forbidden" from a server of stored bytes:
    what it knows of us is the address that the API named a moment ago."""
    status = reply.status
    if status in (200, 206):
        return
    if status == 509:
        raise RateLimited("the account's transfer quota is used up", seconds_left(reply.headers))
    if status == 429:
        raise RateLimited("MEGA asks to slow down", seconds_left(reply.headers))
    if api and status in (401, 403):
        raise Unauthorized(f"{where} answered with status {status}")
    raise _STATUS.get(status, Unavailable)(f"{where} answered with status {status}")


def seconds_left(headers: Mapping[str, str]) -> float | None:
    """How long MEGA asks to wait; None where it does not say."""
    for name in ("X-MEGA-Time-Left", "Retry-After"):
        with suppress(ValueError, OverflowError):
            found = float(headers.get(name) or "")
            if 0 <= found < 1e9:
                return found
    return None
