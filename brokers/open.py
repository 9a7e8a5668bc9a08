"""The only place that constructs drivers. Everybody else asks here and gets the layered broker.

Opened brokers are kept per process, by row and revision: a change of options or secrets closes the old one. A
forked child starts with none of its parent's: sockets and threads do not survive a fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from brokers import credentials, history, registry
from brokers.driver import Buffer, CloudBroker, StorageInfo, StoredFile
from brokers.errors import Misconfigured
from brokers.keyring import KeyringError
from brokers.layers.adapt import Adapt, complete
from brokers.layers.call import LIMITS, Call, Limit
from brokers.layers.deadline import Deadline
from brokers.layers.guard import Guard
from brokers.layers.metrics import Metrics
from brokers.layers.retry import Retry
from brokers.layers.throttle import Allowance, Throttle, allowance_of
from brokers.models import Broker

CONCURRENCY = 8
# Threads beyond the concurrency, so that a few hung calls do not take the others' place.
SPARE_THREADS = 8

Wrapper = Callable[[CloudBroker], CloudBroker]


class OpenBroker:
    """A driver behind its layers. Safe to use from many threads. Methods raise `BrokerError` subclasses, or
    IoInTransaction when called inside a transaction."""

    def __init__(
        self,
        driver: Any,
        name: str = "broker",
        limits: Mapping[str, Limit] | None = None,
        *,
        record: history.Recorder | None = None,
        allowance: Allowance | None = None,
    ) -> None:
        full = complete(driver)
        allowed = allowance or Allowance()
        concurrency = max(1, int(getattr(full, "concurrency", CONCURRENCY)))
        concurrency = min(concurrency, allowed.concurrency or concurrency)
        self.name = name
        self._driver = full
        self._deadline = Deadline(Adapt(full), concurrency + SPARE_THREADS, name)
        self._throttle = Throttle(self._deadline, concurrency, allowed)
        self._metrics = Metrics(Retry(self._throttle, limits or LIMITS, name), record)
        self._call = Guard(self._metrics)
        self._lock = threading.Lock()
        self._running = 0
        self._retired = False
        self._pid = os.getpid()

    def _do(self, operation: str, *arguments: Any) -> Any:
        with self._lock:
            self._running += 1
        try:
            return self._call(Call(operation, arguments, 0.0))
        finally:
            with self._lock:
                self._running -= 1
                last = self._retired and self._running == 0
            if last:
                self._close()

    def put(self, key: str, data: Buffer, *, lent: bool = False) -> str:
        """Store `data` whole and durably under a fresh key: -> its locator. Safe to repeat.

        Bytes that are not `bytes` are copied first: a call that timed out may still be reading them. They are not
        when they are `lent`, which promises that they do not change while there is a view of them, and the driver
        takes views."""
        as_it_is = isinstance(data, bytes) or (lent and self._driver.takes_views)
        return str(self._do("put", key, data if as_it_is else bytes(data)))

    def get(self, locator: str, start: int = 0, length: int | None = None) -> bytes:
        """Exactly `length` bytes from `start` (fewer only where the object ends), the rest for None.
        Raises NotFound, RangeError when `start` is at or after the end (0 of an empty object is b"")."""
        data: bytes = self._do("get", locator, start, length)
        return data

    def peek(self, locator: str) -> bytes:
        """`get` of a tiny object within the time of a health check."""
        data: bytes = self._do("peek", locator)
        return data

    def stat(self, locator: str) -> StoredFile:
        """Size, and checksum where the provider tells one. Raises NotFound."""
        found: StoredFile = self._do("stat", locator)
        return found

    def delete(self, locator: str) -> None:
        """Remove an object. Idempotent."""
        self._do("delete", locator)

    def list(self, prefix: str = "") -> Iterator[StoredFile]:
        """Every object whose name starts with `prefix`. Complete when the iteration ends without an error;
        raises before the first entry or between two. `size` is -1 where the provider's listing does not say."""
        batch, rest = self._do("list", prefix)
        while batch:
            yield from batch
            batch = self._do("list_more", rest)

    def info(self) -> StorageInfo:
        """Capacity in bytes; None where the provider does not say."""
        found: StorageInfo = self._do("info")
        return found

    def probe(self) -> None:
        """Raise unless the place takes and gives bytes. ReadOnly and OutOfSpace say that it only gives them."""
        self._do("probe")

    def prepare(self) -> None:
        """Make the place ready (create the folder). Idempotent."""
        self._do("prepare")

    def latency(self, operation: str) -> float | None:
        """Moving average of the seconds that an operation ("get", "put", ...) takes in this process."""
        return self._metrics.latency(operation)

    def refuse_until(self, until: datetime | None) -> None:
        """Let no object be read or written before then: the operator's hard limit is reached. None ends that."""
        self._throttle.refused_until = until

    @property
    def hanging(self) -> int:
        """Calls that run at this moment, the ones that nobody waits for any more among them."""
        return self._deadline.workers.busy

    def settle(self, seconds: float) -> bool:
        """Wait for the calls that nobody waits for any more, at most so long: -> whether all have ended."""
        return self._deadline.workers.settle(seconds)

    def retire(self) -> None:
        """Close as soon as no call is running. Idempotent."""
        with self._lock:
            first, self._retired = not self._retired, True
            idle = self._running == 0
        if first and idle:
            self._close()

    def _close(self) -> None:
        if self._pid == os.getpid():  # a child must not say goodbye on its parent's connections
            self._deadline.workers.close()
            self._driver.close()

    def __repr__(self) -> str:
        return f"<OpenBroker {self.name}>"


_lock = threading.RLock()
_open: dict[int, tuple[tuple[UUID, int], OpenBroker]] = {}
_inherited: list[Any] = []  # a parent's open brokers: kept from being collected, which would close them
_wrappers: list[tuple[int | None, Wrapper | None, Mapping[str, Limit] | None]] = []


def _after_fork() -> None:
    global _lock, _open
    _lock = threading.RLock()
    _inherited.append(_open)
    _open = {}


os.register_at_fork(after_in_child=_after_fork)


def open_broker(broker: Broker) -> OpenBroker:
    """The layered broker of a saved row; opening does no provider IO. Raises Misconfigured."""
    opened = _opened(broker)
    opened.refuse_until(broker.traffic_over_until if broker.monthly_hard else None)
    return opened


def _opened(broker: Broker) -> OpenBroker:
    key = (broker.marker, broker.revision)
    with _lock:
        found = _open.get(broker.pk)
    if found is not None and found[0][0] == broker.marker and found[0][1] >= broker.revision:
        return found[1]
    opened = connect(broker)
    with _lock:
        found = _open.get(broker.pk)
        if found is not None and found[0][0] == broker.marker and found[0][1] >= broker.revision:
            old: OpenBroker | None = opened  # another thread was faster
            opened = found[1]
        else:
            old = found[1] if found is not None else None
            _open[broker.pk] = (key, opened)
    if old is not None:
        old.retire()
    return opened


def connect(broker: Broker) -> OpenBroker:
    """A layered broker of its own, saved or not; the caller retires it. Raises Misconfigured."""
    try:
        secrets = credentials.open_secrets(broker)
    except KeyringError as error:
        raise Misconfigured(f"the stored credentials do not open: {error}") from None
    driver: Any = registry.construct(broker.driver, {**broker.options, **secrets})
    limits = None
    for pk, wrapper, its_limits in _wrappers:
        if pk in (None, broker.pk):
            driver = complete(driver) if wrapper is None else wrapper(complete(driver))
            limits = its_limits or limits
    record = None if broker.pk is None else history.recorder(broker.pk)
    return OpenBroker(driver, broker.name, limits, record=record, allowance=allowance_of(broker))


def forget(broker_id: int | None = None) -> None:
    """Close one broker (or all) in this process; the next use opens it anew. Idempotent."""
    with _lock:
        ids = list(_open) if broker_id is None else [broker_id]
        gone = [_open.pop(pk) for pk in ids if pk in _open]
    for _key, opened in gone:
        opened.retire()


@contextmanager
def wrap(
    broker_id: int | None, wrapper: Wrapper | None = None, *, limits: Mapping[str, Limit] | None = None
) -> Iterator[None]:
    """For tests: inside, the raw driver of one broker (or of all) is `wrapper(driver)`, e.g. a FaultyBroker, and
    calls have the given limits."""
    entry = (broker_id, wrapper, limits)
    _wrappers.append(entry)
    forget(broker_id)
    try:
        yield
    finally:
        _wrappers.remove(entry)
        forget(broker_id)
