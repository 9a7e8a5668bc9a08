"""Counts and times what callers get from a broker, in this process, and hands it on to the history."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from brokers import clock
from brokers.errors import BrokerError, NotFound, OverLimit, RangeError
from brokers.history import Recorder
from brokers.layers.call import Call, Handler

# Weight of the newest sample in the moving average.
NEWEST = 0.2
# Without a sample for so many seconds the average halves, again and again: a broker that was slow once is asked again
# some time, and not passed over for ever.
FORGET = 120.0


@dataclass
class Operation:
    """One kind of call: how often, with which errors (by code), and the moving average of its seconds, whose newest
    sample came at `at`."""

    calls: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latency: float | None = None
    at: float = 0.0


def moved(call: Call, result: Any) -> tuple[int, int]:
    """Bytes of objects that a call moved: (up, down)."""
    if call.operation == "put":
        return len(call.arguments[1]), 0
    if call.operation in ("get", "peek") and isinstance(result, bytes):
        return 0, len(result)
    return 0, 0


class Metrics:
    def __init__(self, inner: Handler, record: Recorder | None = None) -> None:
        self._inner = inner
        self._record_also = record
        self._lock = threading.Lock()
        self.operations: dict[str, Operation] = {}

    def __call__(self, call: Call) -> Any:
        began = clock.monotonic()
        error, result = None, None
        try:
            result = self._inner(call)
        except BrokerError as raised:
            error = raised
            raise
        finally:
            seconds = max(0.0, clock.monotonic() - began - call.waited)
            self._record(call.operation, seconds, error)
            if self._record_also is not None and not isinstance(error, OverLimit):
                tells = error is None or isinstance(error, NotFound | RangeError) or error.temporary
                self._record_also(call.operation, seconds if tells else None, error, *moved(call, result))
        return result

    def _record(self, name: str, seconds: float, error: BrokerError | None) -> None:
        with self._lock:
            operation = self.operations.setdefault(name, Operation())
            operation.calls += 1
            if error is not None:
                operation.errors[error.code] += 1
            # An answer "not there" is as good a sample as bytes; a failure tells how slow failing is, which
            # ranks a broker lower as well. Quick refusals must not make it look fast.
            if error is None or isinstance(error, NotFound | RangeError) or error.temporary:
                before = operation.latency
                operation.at = clock.monotonic()
                if error is not None and error.temporary and before is not None and seconds < before:
                    return
                operation.latency = seconds if before is None else before + NEWEST * (seconds - before)

    def latency(self, operation: str) -> float | None:
        """Moving average in seconds, None before the first sample; what is old counts less and less."""
        with self._lock:
            found = self.operations.get(operation)
            if found is None or found.latency is None:
                return None
            halved = max(0.0, clock.monotonic() - found.at) // FORGET
            return found.latency * 0.5**halved
