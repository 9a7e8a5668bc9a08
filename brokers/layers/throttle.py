"""Keeps a broker from being asked too much: so many calls at a time, and none while it asked for a pause."""

from __future__ import annotations

import threading
from typing import Any

from brokers import clock
from brokers.errors import RateLimited, Unavailable
from brokers.layers.call import Call, Handler

DEFAULT_PAUSE = 1.0


class Throttle:
    def __init__(self, inner: Handler, concurrency: int) -> None:
        self._inner = inner
        self._slots = threading.BoundedSemaphore(concurrency)
        self._lock = threading.Lock()
        self._paused_until = 0.0

    def __call__(self, call: Call) -> Any:
        began = clock.monotonic()
        self._wait_for_pause(call)
        if not self._slots.acquire(timeout=call.timeout):
            raise Unavailable("too many calls are waiting for this broker")
        call.timeout = max(0.0, call.timeout - (clock.monotonic() - began))
        try:
            return self._inner(call)
        except RateLimited as error:
            pause = DEFAULT_PAUSE if error.retry_after is None else error.retry_after
            with self._lock:
                self._paused_until = max(self._paused_until, clock.monotonic() + pause)
            raise
        finally:
            self._slots.release()

    def _wait_for_pause(self, call: Call) -> None:
        with self._lock:
            left = self._paused_until - clock.monotonic()
        if left <= 0:
            return
        if left > call.timeout:
            raise RateLimited("the provider asked for a pause", retry_after=left)
        clock.sleep(left)
