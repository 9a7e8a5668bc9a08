"""The one source of time for domain code, so that tests can move it by hand."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime: ...

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


_clock: Clock = SystemClock()


def install(clock: Clock) -> Clock:
    """Make `clock` the process's clock; returns the one before it."""
    global _clock
    before, _clock = _clock, clock
    return before


def now() -> datetime:
    """The time as an aware datetime in UTC."""
    return _clock.now()


def monotonic() -> float:
    """Seconds that never go back, for durations and deadlines."""
    return _clock.monotonic()


def sleep(seconds: float) -> None:
    _clock.sleep(seconds)
