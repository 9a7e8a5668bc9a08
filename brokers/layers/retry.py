"""The one place where a call is tried again: temporary errors only, with growing, jittered waits, within a
total deadline."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from brokers import clock, entropy
from brokers.errors import RateLimited, TemporaryError
from brokers.layers.call import Call, Handler, Limit

log = logging.getLogger(__name__)

ATTEMPTS = 4
FIRST_WAIT = 0.2
LONGEST_WAIT = 5.0
# The rest of a listing cannot be asked for again: the iterator behind it is spent.
NEVER = frozenset({"list_more"})


def wait_after(attempt: int, error: TemporaryError) -> float:
    """Seconds to wait after the failed `attempt` (from 1): half fixed, half random, never less than what the
    provider asked for."""
    longest = min(FIRST_WAIT * 2.0 ** (attempt - 1), LONGEST_WAIT)
    wait = longest * (0.5 + 0.5 * entropy.uniform())
    asked = error.retry_after if isinstance(error, RateLimited) else None
    return max(wait, asked or 0.0)


class Retry:
    def __init__(self, inner: Handler, limits: Mapping[str, Limit], name: str) -> None:
        self._inner = inner
        self._limits = limits
        self._name = name

    def __call__(self, call: Call) -> Any:
        limit = self._limits[call.operation]
        end = clock.monotonic() + limit.total
        call.timeout = min(limit.attempt, limit.total)
        attempt = 1
        while True:
            try:
                return self._inner(call)
            except TemporaryError as error:
                wait = wait_after(attempt, error)
                left = end - clock.monotonic() - wait
                if attempt >= ATTEMPTS or left <= 0 or call.operation in NEVER:
                    raise
                log.info("%s: %s failed (%s), again in %.2f s", self._name, call.operation, error.code, wait)
                clock.sleep(wait)
                call.timeout = min(limit.attempt, left)
                attempt += 1
