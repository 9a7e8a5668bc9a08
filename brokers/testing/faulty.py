"""A driver that fails by script. Wraps any driver; for tests of what stands above brokers.

    faulty = FaultyBroker(driver)
    faulty.fail("put", Unavailable("down"), on=1)          # before the effect, the first put only
    faulty.fail("put", Timeout("lost"), on=1, after=True)  # the object is stored, the answer is lost
    faulty.flip("get", offset=100)                         # every get, one bit at that byte
    gate = faulty.hang("get", on=2)                        # the second get waits until `gate.set()`

`on` says which calls a rule concerns: None for all, a call number of that operation (from 1), a collection of
numbers, or a predicate that takes the `Record`. Rules act in the order in which they were added; `clear()`
removes them and opens every gate. Every call is recorded in `calls`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from brokers import clock
from brokers.driver import CloudBroker, StorageInfo, StoredFile
from brokers.layers.adapt import complete

OPERATIONS = frozenset({"put", "get", "stat", "delete", "list", "info", "probe", "prepare"})


@dataclass(frozen=True)
class Record:
    """One call: its operation, its number among those of the operation (from 1), the key or locator, the bytes
    that a put sent."""

    operation: str
    number: int
    name: str = ""
    data: bytes | None = None


# Called once for every fault that acts, from any thread, so that a test suite can count them.
on_fault: Callable[[], None] | None = None

On = None | int | Collection[int] | Callable[[Record], bool]


@dataclass
class _Rule:
    operation: str
    on: On
    before: Callable[[Record], None] | None = None  # may raise or wait
    send: Callable[[bytes], bytes] | None = None  # changes what a put stores
    skip: bool = False  # no effect, but the answer of one
    after: Callable[[Record, Any], Any] | None = None  # changes the answer, or raises

    def concerns(self, record: Record) -> bool:
        if self.operation not in (record.operation, "*"):
            return False
        if self.on is None:
            return True
        if isinstance(self.on, int):
            return record.number == self.on
        return self.on(record) if callable(self.on) else record.number in self.on


class FaultyBroker(CloudBroker):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = complete(inner)
        self.concurrency = self.inner.concurrency  # type: ignore[misc]
        self.takes_views = self.inner.takes_views  # type: ignore[misc]
        self.calls: list[Record] = []
        self._rules: list[_Rule] = []
        self._gates: list[threading.Event] = []
        self._numbers: Counter[str] = Counter()
        self._lock = threading.Lock()

    # -- the script ---------------------------------------------------------------------------------------

    def _add(self, operation: str, on: On, **actions: Any) -> None:
        if operation not in OPERATIONS and operation != "*":
            raise ValueError(f"no operation {operation!r}; there are {sorted(OPERATIONS)} and '*'")
        with self._lock:
            self._rules.append(_Rule(operation, on, **actions))

    def fail(self, operation: str, error: Exception, on: On = None, *, after: bool = False) -> None:
        """Raise `error` instead of the effect, or (`after`) once the effect is there."""

        def before_it(_record: Record) -> None:
            raise error

        def after_it(_record: Record, _answer: Any) -> Any:
            raise error

        self._add(operation, on, **({"after": after_it} if after else {"before": before_it}))

    def hang(self, operation: str, on: On = None) -> threading.Event:
        """Wait, before the effect, until the returned event is set."""
        gate = threading.Event()
        self._gates.append(gate)

        def wait(_record: Record) -> None:
            gate.wait()

        self._add(operation, on, before=wait)
        return gate

    def delay(self, operation: str, seconds: float, on: On = None) -> None:
        """Take so many seconds longer, by `brokers.clock`."""

        def sleep(_record: Record) -> None:
            clock.sleep(seconds)

        self._add(operation, on, before=sleep)

    def _change(self, operation: str, on: On, change: Callable[[bytes], bytes]) -> None:
        if operation == "put":
            self._add("put", on, send=change)
        elif operation == "get":
            self._add("get", on, after=lambda _record, answer: change(answer))
        else:
            raise ValueError("only a put or a get carries bytes")

    def truncate(self, operation: str, size: int, on: On = None) -> None:
        """A put stores, or a get answers, only the first `size` bytes."""
        self._change(operation, on, lambda data: data[:size])

    def flip(self, operation: str, offset: int = 0, on: On = None) -> None:
        """A put stores, or a get answers, one flipped bit in the byte at `offset` (negative: from the end)."""

        def change(data: bytes) -> bytes:
            if not data:
                return data
            changed = bytearray(data)
            changed[offset % len(data)] ^= 1
            return bytes(changed)

        self._change(operation, on, change)

    def swap(self, operation: str, other: bytes, on: On = None) -> None:
        """A put stores, or a get answers, the bytes of another object."""
        self._change(operation, on, lambda _data: other)

    def lose(self, on: On = None) -> None:
        """A put is accepted and stores nothing."""
        self._add("put", on, skip=True)

    def keep(self, on: On = None) -> None:
        """A delete is accepted and removes nothing."""
        self._add("delete", on, skip=True)

    def lie(self, on: On = None, **fields: Any) -> None:
        """`stat` answers with these fields changed, e.g. `size=1` or `checksum="md5:..."`."""
        self._add("stat", on, after=lambda _record, answer: replace(answer, **fields))

    def hide(self, hidden: Callable[[str], bool], on: On = None) -> None:
        """Listings leave out the entries whose path `hidden` accepts."""
        self._add("list", on, after=lambda _r, answer: iter([f for f in answer if not hidden(f.path)]))

    def capacity(self, info: StorageInfo, on: On = None) -> None:
        """`get_storage_info` answers this."""
        self._add("info", on, after=lambda _record, _answer: info)

    def clear(self) -> None:
        """Be a good driver again: no rules, every gate open. The record of calls stays."""
        with self._lock:
            self._rules.clear()
        for gate in self._gates:
            gate.set()

    def count(self, operation: str) -> int:
        """How many calls of this operation there were."""
        with self._lock:
            return self._numbers[operation]

    # -- the driver ---------------------------------------------------------------------------------------

    def _run(self, operation: str, name: str, effect: Callable[[bytes], Any], data: bytes = b"") -> Any:
        with self._lock:
            self._numbers[operation] += 1
            sent = bytes(data) if operation == "put" else None
            record = Record(operation, self._numbers[operation], name, sent)
            self.calls.append(record)
            rules = [rule for rule in self._rules if rule.concerns(record)]
        if on_fault is not None:
            for _rule in rules:
                on_fault()
        for rule in rules:
            if rule.before:
                rule.before(record)
        for rule in rules:
            if rule.send:
                data = rule.send(bytes(data))
        if any(rule.skip for rule in rules):
            answer: Any = name if operation == "put" else None
        else:
            answer = effect(data)
        for rule in rules:
            if rule.after:
                answer = rule.after(record, answer)
        return answer

    def upload_file(self, file_data: bytes, filename: str) -> str:
        return self._run("put", filename, lambda data: self.inner.upload_file(data, filename), file_data)

    def download_file(self, storage_path: str, start: int = 0, length: int | None = None) -> bytes:
        return self._run("get", storage_path, lambda _: self.inner.download_file(storage_path, start, length))

    def delete_file(self, storage_path: str) -> None:
        self._run("delete", storage_path, lambda _: self.inner.delete_file(storage_path))

    def list_files(self, path: str = "") -> Iterator[StoredFile]:
        return self._run("list", path, lambda _: self.inner.list_files(path))

    def get_storage_info(self) -> StorageInfo:
        return self._run("info", "", lambda _: self.inner.get_storage_info())

    def stat_file(self, storage_path: str) -> StoredFile:
        return self._run("stat", storage_path, lambda _: self.inner.stat_file(storage_path))

    def probe(self) -> None:
        self._run("probe", "", lambda _: self.inner.probe())

    def prepare(self) -> None:
        self._run("prepare", "", lambda _: self.inner.prepare())

    def close(self) -> None:
        self.inner.close()
