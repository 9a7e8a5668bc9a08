"""Counting what an operation does to the world, so that a test can fail it at each of these moments.

An effect is a commit of the database (of a transaction, or of a statement outside one) or a call of a broker. A
test runs an operation once inside `effects.watch()`, which numbers its effects, and repeats it with a `Fault` for
each of them: before the effect or after it (it happened, and the answer was lost), as an exception once, as an
exception for ever (the place stays away), or as the death of the process.

Effects are numbered by place and kind ("the 2nd put on broker a"), in the order of one thread: `one_thread` gives
each broker one, so that every run counts alike.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import threading
import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.utils import OperationalError

from brokers import failpoint
from brokers import open as open_module
from brokers.driver import CloudBroker, StorageInfo, StoredFile
from brokers.errors import Timeout, Unavailable
from replication import transfer
from tests.kit import counters

T = TypeVar("T")
DATABASE = "database"
DIED = 137
PATIENCE = 120.0  # seconds for a forked child
TERABYTE = 10**12
_TABLE = re.compile(r'\s*(?:INSERT INTO|UPDATE|DELETE FROM)\s+"?(\w+)', re.IGNORECASE)


class When(StrEnum):
    BEFORE = "before"
    AFTER = "after"


class How(StrEnum):
    ONCE = "once"
    FOR_EVER = "for ever"
    DEATH = "death"


@dataclass(frozen=True, slots=True)
class Effect:
    """The `number`-th `kind` ("commit", "put", ...) at `place` ("database", or a broker's name)."""

    place: str
    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind} {self.number} of {self.place}"


@dataclass(frozen=True, slots=True)
class Fault:
    effect: Effect
    when: When
    how: How

    def __str__(self) -> str:
        return f"{self.how}, {self.when} {self.effect}"


class Effects:
    """Numbers the effects of what runs inside `watch`, and fails one of them."""

    def __init__(self) -> None:
        self.seen: dict[Effect, str] = {}  # with what it was about, in words
        self.fired = 0
        self.die: Callable[[], None] = _no_death
        self._fault: Fault | None = None
        self._down = ""  # the place that stays away
        self._watching = False
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._tables: dict[BaseDatabaseWrapper, set[str]] = {}

    @contextmanager
    def watch(self, fault: Fault | None = None) -> Iterator[None]:
        """Inside, effects are counted anew, and `fault` acts."""
        self.seen, self.fired, self._fault, self._down = {}, 0, fault, ""
        self._numbers.clear()
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def count(self, *kinds: str) -> int:
        """How many effects of these kinds were seen, at all places."""
        return sum(effect.kind in kinds for effect in self.seen)

    def around(self, place: str, kind: str, about: str, work: Callable[[], T]) -> T:
        """Do `work`, an effect, unless it is to fail."""
        if not self._watching:
            return work()
        with self._lock:
            self._numbers[place, kind] += 1
            effect = Effect(place, kind, self._numbers[place, kind])
            self.seen[effect] = about
        self._strike(effect, When.BEFORE)
        try:
            return work()
        finally:  # that there is no such object is an answer, too
            self._strike(effect, When.AFTER)

    def _strike(self, effect: Effect, when: When) -> None:
        with self._lock:
            fault = self._fault
            if fault is None or fault.when != when:
                return
            if fault.effect != effect and self._down != effect.place:
                return
            if fault.how == How.FOR_EVER:
                self._down = effect.place
            self.fired += 1
        counters.add(counters.FAULTS)
        if fault.how == How.DEATH:
            self.die()
        if effect.place == DATABASE:
            raise OperationalError(f"injected {when} {effect}")
        raise (Unavailable if when == When.BEFORE else Timeout)(f"injected {when} {effect}")

    # -- the seams ------------------------------------------------------------------------------------

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, commits and the calls of all brokers that are opened go through `around`. Brokers are named by
        the last part of their `root`."""
        real_commit = BaseDatabaseWrapper._commit
        real_execute, real_many = CursorWrapper._execute, CursorWrapper._executemany

        def commit(db: BaseDatabaseWrapper) -> Any:
            about = ", ".join(sorted(self._tables.pop(db, ())))
            return self.around(DATABASE, "commit", about, lambda: real_commit(db))

        def execute(cursor: Any, sql: str, params: Any, *rest: Any) -> Any:
            return self._statement(cursor.db, sql, lambda: real_execute(cursor, sql, params, *rest))

        def many(cursor: Any, sql: str, params: Any, *rest: Any) -> Any:
            return self._statement(cursor.db, sql, lambda: real_many(cursor, sql, params, *rest))

        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(BaseDatabaseWrapper, "_commit", commit))
            stack.enter_context(mock.patch.object(CursorWrapper, "_execute", execute))
            stack.enter_context(mock.patch.object(CursorWrapper, "_executemany", many))
            stack.enter_context(open_module.wrap(None, lambda driver: Watched(driver, self)))
            yield

    def _statement(self, db: BaseDatabaseWrapper, sql: str, work: Callable[[], T]) -> T:
        table = _TABLE.match(sql) if self._watching else None
        if table is None:
            return work()
        if db.in_atomic_block:
            self._tables.setdefault(db, set()).add(table[1])
            return work()
        return self.around(DATABASE, "commit", table[1], work)


class Watched(CloudBroker):
    """A driver whose every call is an effect."""

    def __init__(self, inner: CloudBroker, effects: Effects) -> None:
        super().__init__()
        self.inner = inner
        self.place = Path(str(inner.options["root"])).name
        self.concurrency = inner.concurrency  # type: ignore[misc]
        self._effects = effects

    def _around(self, kind: str, name: str, work: Callable[[], T]) -> T:
        return self._effects.around(self.place, kind, name, work)

    def upload_file(self, file_data: bytes, filename: str) -> str:
        return self._around("put", filename, lambda: self.inner.upload_file(file_data, filename))

    def download_file(self, storage_path: str, start: int = 0, length: int | None = None) -> bytes:
        return self._around(
            "get", storage_path, lambda: self.inner.download_file(storage_path, start, length)
        )

    def delete_file(self, storage_path: str) -> None:
        self._around("delete", storage_path, lambda: self.inner.delete_file(storage_path))

    def list_files(self, path: str = "") -> Iterator[StoredFile]:
        # Whole: a listing that breaks off raises, so nobody sees a part of it.
        return iter(self._around("list", path, lambda: list(self.inner.list_files(path))))

    def stat_file(self, storage_path: str) -> StoredFile:
        return self._around("stat", storage_path, lambda: self.inner.stat_file(storage_path))

    def get_storage_info(self) -> StorageInfo:
        # The same for all, so that placement does not depend on what else this machine's disk is used for.
        told = StorageInfo(total=2 * TERABYTE, used=TERABYTE, available=TERABYTE)
        return self._around("info", "", lambda: told)

    def probe(self) -> None:
        self._around("probe", "", self.inner.probe)

    def prepare(self) -> None:
        self._around("prepare", "", self.inner.prepare)

    def close(self) -> None:
        self.inner.close()


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, the calls of one broker run one after the other."""
    pools: OrderedDict[int | None, ThreadPoolExecutor] = OrderedDict()
    with (
        mock.patch.object(transfer, "_pools", pools),
        mock.patch.object(transfer, "_pools_pid", os.getpid()),
        mock.patch.object(transfer, "POOL_THREADS", 1),
    ):
        yield
        for pool in pools.values():
            pool.shutdown()


# -- death --------------------------------------------------------------------------------------------


class ChildFailed(AssertionError):
    """A forked child ended in a way that it should not have."""


@dataclass(frozen=True, slots=True)
class Child:
    """How a forked child ended: it died as it should, or `result` is what its work returned."""

    died: bool
    result: Any = None


def fork(work: Callable[[Callable[[], None]], Any]) -> Child:
    """Run `work(die)` in a forked process with database connections and brokers of its own; `die()` ends it on
    the spot, without any clean-up, from any thread. What `work` returns must be fit for JSON. Failpoints that the
    child reached count for the suite."""
    connections.close_all()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - another process
        os.close(reading)
        _child(writing, work)
    os.close(writing)
    try:
        told = _read(reading, pid)
    finally:
        os.close(reading)
        _pid, status = os.waitpid(pid, 0)
    message = json.loads(told) if told else {}
    for name in message.get("failpoints", ()):
        counters.reached(name)
    if os.waitstatus_to_exitcode(status) == DIED:
        counters.add(counters.FAULTS)
        return Child(True)
    if "result" in message:
        return Child(False, message["result"])
    raise ChildFailed(message.get("error") or f"the child ended with {status}")


def _child(writing: int, work: Callable[[Callable[[], None]], Any]) -> None:  # pragma: no cover
    names: set[str] = set()
    hook = failpoint.install(None)

    def reached(name: str) -> None:
        names.add(name)
        if hook is not None:
            hook(name)

    def tell(**message: Any) -> None:
        os.write(writing, json.dumps({**message, "failpoints": sorted(names)}).encode())

    def die() -> None:
        tell()
        os._exit(DIED)

    failpoint.install(reached)
    try:
        tell(result=work(die))
        os._exit(0)
    except BaseException:
        tell(error=traceback.format_exc()[-8000:])
    finally:
        os._exit(1)


def _read(reading: int, pid: int) -> bytes:
    """All that the child writes, until it ends."""
    told = b""
    while True:
        ready, _, _ = select.select([reading], [], [], PATIENCE)
        if not ready:
            os.kill(pid, signal.SIGKILL)
            raise ChildFailed("the child hangs")
        piece = os.read(reading, 65536)
        if not piece:
            return told
        told += piece


def _no_death() -> None:
    raise AssertionError("only a forked child may die")
