"""Keeps a broker from being asked too much: so many calls at a time, none while it asked for a pause, and no more
than the operator allows.

Limits of the operator hold for all processes together: each takes an equal part, because no process knows of the
others' calls (CLOUDSTORE_LIMIT_SHARES says how many there are). Waiting for them is not the broker's fault: it
takes nothing of a call's time, and shows in no latency.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings

from brokers import clock
from brokers.errors import OverLimit, RateLimited, Unavailable
from brokers.layers.call import Call, Handler
from brokers.models import Broker

DEFAULT_PAUSE = 1.0
# A call waits so long for the operator's rate at most, in seconds.
RATE_PATIENCE = 120.0
# Seconds of unused rate that may be taken at once.
BURST = 1.0
# What health asks with is tiny and is never held back.
OF_HEALTH = frozenset({"peek", "probe", "info", "prepare"})
OF_OBJECTS = frozenset({"get", "put"})


@dataclass(frozen=True)
class Allowance:
    """This process's part of the operator's limits; None for no limit."""

    concurrency: int | None = None
    bytes_per_second: float | None = None
    requests_per_second: float | None = None


def allowance_of(broker: Broker) -> Allowance:
    """This process's part of a row's limits."""
    shares = max(1, settings.CLOUDSTORE_LIMIT_SHARES)
    calls, rate, requests = broker.max_concurrency, broker.max_rate, broker.max_requests
    return Allowance(
        None if calls is None else max(1, calls // shares),
        None if rate is None else rate / shares,
        None if requests is None else requests / shares,
    )


class Bucket:
    """A token bucket that may be overdrawn: what was taken too much is waited for by the next one."""

    def __init__(self, per_second: float) -> None:
        self._rate = per_second
        self._most = max(1.0, per_second * BURST)
        self._left = self._most
        self._at = clock.monotonic()
        self._lock = threading.Lock()

    def take(self, amount: float, patience: float) -> float | None:
        """Take `amount`: -> seconds to wait before going on; None, and nothing is taken, when that would be longer
        than `patience`."""
        with self._lock:
            now = clock.monotonic()
            self._left = min(self._most, self._left + (now - self._at) * self._rate)
            self._at = now
            wait = max(0.0, (min(amount, self._most) - self._left) / self._rate)
            if wait > patience:
                return None
            self._left -= amount
            return wait

    def spend(self, amount: float) -> None:
        """Take what turned out to be needed; the next ones wait for it."""
        self.take(amount, float("inf"))


class Throttle:
    def __init__(self, inner: Handler, concurrency: int, allowance: Allowance | None = None) -> None:
        self._inner = inner
        self._slots = threading.BoundedSemaphore(concurrency)
        self._lock = threading.Lock()
        self._paused_until = 0.0
        allowed = allowance or Allowance()
        self._bytes = None if allowed.bytes_per_second is None else Bucket(allowed.bytes_per_second)
        self._requests = None if allowed.requests_per_second is None else Bucket(allowed.requests_per_second)
        # Until then the operator's hard monthly limit lets no object be read or written.
        self.refused_until: datetime | None = None

    def __call__(self, call: Call) -> Any:
        if (
            call.operation in OF_OBJECTS
            and self.refused_until is not None
            and clock.now() < self.refused_until
        ):
            raise OverLimit("the traffic that the operator allows for this month is used up")
        self._wait_for_rate(call)
        began = clock.monotonic()
        self._wait_for_pause(call)
        if not self._slots.acquire(timeout=call.timeout):
            raise Unavailable("too many calls are waiting for this broker")
        call.timeout = max(0.0, call.timeout - (clock.monotonic() - began))
        try:
            result = self._inner(call)
        except RateLimited as error:
            pause = DEFAULT_PAUSE if error.retry_after is None else error.retry_after
            with self._lock:
                self._paused_until = max(self._paused_until, clock.monotonic() + pause)
            raise
        finally:
            self._slots.release()
        if self._bytes is not None and call.operation == "get":
            self._bytes.spend(max(0, len(result) - _ahead(call)))
        return result

    def _wait_for_rate(self, call: Call) -> None:
        waits = [0.0]
        for bucket, amount in ((self._requests, 1), (self._bytes, _ahead(call))):
            if bucket is None or not amount:
                continue
            if call.operation in OF_HEALTH:
                bucket.spend(amount)
                continue
            wait = bucket.take(amount, RATE_PATIENCE)
            if wait is None:
                raise OverLimit("more is asked of this broker than the operator allows")
            waits.append(wait)
        if (longest := max(waits)) > 0:
            call.waited += longest
            clock.sleep(longest)

    def _wait_for_pause(self, call: Call) -> None:
        with self._lock:
            left = self._paused_until - clock.monotonic()
        if left <= 0:
            return
        if left > call.timeout:
            raise RateLimited("the provider asked for a pause", retry_after=left)
        clock.sleep(left)


def _ahead(call: Call) -> int:
    """Bytes that a call will move, as far as it says."""
    if call.operation == "put":
        return len(call.arguments[1])
    if call.operation == "get" and call.arguments[2:] and call.arguments[2] is not None:
        return int(call.arguments[2])
    return 0
