"""The world around the product: four providers with everything that can happen to them, the clock, the death of
the process; and the truth about every stored byte, which the product does not see.

The promise is that an acknowledged byte survives while one intact copy of it exists. So nothing that happens here
takes the last intact copy of anything: `needed` says of each object whether it is one. What the product then does
to the last intact copy is its own fault, and `lost` tells it.
"""

from __future__ import annotations

import functools
import hashlib
import random
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from unittest import mock

from django.db import connection
from django.db.models import Q

from brokers import clock as clock_module
from brokers import entropy, services
from brokers import open as open_module
from brokers.driver import CloudBroker
from brokers.drivers import memory
from brokers.errors import BrokerError, Unavailable
from brokers.marker import MARKER_NAME
from brokers.models import Broker
from brokers.names import OBJECT_PREFIX
from brokers.testing.faulty import FaultyBroker
from replication import transfer, write
from replication.models import Content, Replica, Segment
from tests.kit.clock import VirtualClock
from tests.machine.crash import Fuse, watched
from tests.machine.faults import FAULTS, LONGEST_PAUSE, PAUSING, Script
from vfs import holder

State = Replica.State
READABLE = (State.STORED, State.SUSPECT, State.LOST)
# Plain bytes of a segment, so that small files have many.
SEGMENT = 600
DOMAINS = ("one", "two", "three", "three")
Objects = dict[str, tuple[bytes, datetime]]


class Inline(Executor):
    """Runs at once what it is given, in the caller's thread: every run of a program is the same."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class Driver(FaultyBroker):
    """A FaultyBroker whose calls are effects of the fuse."""

    def __init__(self, inner: CloudBroker, fuse: Fuse) -> None:
        super().__init__(inner)
        self._fuse = fuse

    def _run(self, operation: str, name: str, effect: Callable[[bytes], Any], data: bytes = b"") -> Any:
        self._fuse.effect()
        answer = super()._run(operation, name, effect, data)
        self._fuse.effect()
        return answer


class Dice:
    """Randomness from a seed, the same in every run."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def token_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def random(self) -> float:
        return self._random.random()


@dataclass
class Place:
    """One provider. `aside` holds its objects while an empty place stands in for it (a disk that is not mounted)."""

    name: str
    pk: int
    domain: str
    driver: Driver
    aside: Objects | None = None
    away: bool = False
    # Faults that may still act: (operation, the number of the last call that they concern).
    scripted: list[tuple[str, float]] = field(default_factory=list)
    paused_until: float = 0.0
    late: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def here(self) -> Objects:
        return memory.space(self.name).objects

    def held(self) -> list[str]:
        return sorted(name for name in self.here if name.startswith(OBJECT_PREFIX))

    def object(self, name: str) -> bytes | None:
        """The bytes of an object, wherever this provider's disk is now."""
        for objects in (self.here, self.aside or {}):
            if name in objects:
                return objects[name][0]
        return None

    def well(self, now: float) -> bool:
        """Whether every call of it works now."""
        acting = [op for op, last in self.scripted if self._calls(op) < last]
        return not (self.away or self.aside is not None or acting or now < self.paused_until)

    def _calls(self, operation: str) -> int:
        return len(self.driver.calls) if operation == "*" else self.driver.count(operation)


@functools.cache
def _statement() -> tuple[str, tuple[Any, ...]]:
    wanted = Segment.objects.filter(Q(content__versions__isnull=False) | Q(content__upload__isnull=False))
    rows = wanted.order_by("pk", "replicas__pk").distinct().values_list(
        "pk", "checksum", "content__state", "content__versions",
        "replicas__broker", "replicas__state", "replicas__locator", "replicas__key",
    )  # fmt: skip
    sql, params = rows.query.sql_with_params()
    return sql, params


def _rows() -> list[tuple[Any, ...]]:
    """Segments that somebody needs, with their replicas. (The statement is made once: this runs at every step.)"""
    with connection.cursor() as cursor:
        cursor.execute(*_statement())
        return cursor.fetchall()


class World:
    def __init__(self, seed: int) -> None:
        self.clock = VirtualClock()
        self.fuse = Fuse()
        self.hints: list[tuple[str, tuple[Any, ...]]] = []
        self._verified: dict[str, str] = {}  # key -> checksum, of puts that succeeded
        self._dice = Dice(seed)
        self._lives = 0
        self.places: list[Place] = []
        self._by_id: dict[int, Place] = {}
        self._stack = ExitStack()

    # -- beginning and end --------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """The product runs in this world."""
        with ExitStack() as stack:
            stack.callback(memory.clear)
            stack.callback(open_module.forget)
            stack.callback(clock_module.install, clock_module.install(self.clock))
            stack.callback(entropy.install, entropy.install(self._dice))
            inline, put = Inline(), transfer.put
            stack.enter_context(mock.patch.object(transfer, "pool", lambda _broker=None: inline))
            stack.enter_context(mock.patch("brokers.health.ThreadPoolExecutor", lambda *_a, **_k: inline))
            stack.enter_context(mock.patch.object(write, "SEGMENT_SIZE", SEGMENT))
            stack.enter_context(mock.patch("celery.app.task.Task.apply_async", self._hint()))

            def noted(broker: Broker, key: str, data: Any, checksum: str) -> str:
                locator = put(broker, key, data, checksum)
                self._verified[key] = checksum
                return locator

            stack.enter_context(mock.patch.object(transfer, "put", noted))
            start = holder._start
            stack.enter_context(
                mock.patch.object(holder, "_start", lambda pid: start(pid) and f"{start(pid)}-{self._lives}")
            )
            stack.callback(holder._of.cache_clear)
            holder._of.cache_clear()
            for number, domain in enumerate(DOMAINS):
                stack.enter_context(self._connect(f"place-{number}", domain))
            stack.enter_context(watched(self.fuse))
            yield

    @contextmanager
    def _connect(self, name: str, domain: str) -> Iterator[None]:
        memory.clear(name)
        broker = services.add_broker(name, "memory", f"domain {domain}", {"space": name})
        driver = Driver(memory.MemoryBroker({"space": name}), self.fuse)
        place = Place(name, broker.pk, broker.domain, driver)
        self.places.append(place)
        self._by_id[broker.pk] = place
        with open_module.wrap(broker.pk, lambda _inner: driver):
            yield

    def _hint(self) -> Callable[..., None]:
        def sent(task: Any, args: tuple[Any, ...] = (), *_more: Any, **_options: Any) -> None:
            self.hints.append((task.name, tuple(args or ())))

        return sent

    def restart(self) -> None:
        """A new process: nothing of the old one's memory is left."""
        self.fuse.revive()
        self._lives += 1
        holder._of.cache_clear()
        open_module.forget()
        if hasattr(write, "_slots"):
            write._slots.taken = 0

    def place_of(self, broker_id: int) -> Place:
        return self._by_id[broker_id]

    # -- what happens to a provider -----------------------------------------------------------------------

    def script(self, place: Place, name: str, calls: int | None, seed: int) -> None:
        """The next `calls` calls fail in this way; None: all, until `calm`."""
        operation, act = FAULTS[name]
        first = place._calls(operation)
        last = float("inf") if calls is None else first + calls
        kinds = ("put", "delete", "probe") if name in ("full", "read-only") else (operation,)
        counts = {kind: place._calls(kind) for kind in kinds}

        def on(record: Any) -> bool:
            if operation == "*":
                return bool(len(place.driver.calls) <= last)
            begun = counts.get(record.operation, 0)
            return calls is None or bool(begun < record.number <= begun + calls)

        act(Script(place, on, random.Random(seed)))
        for kind in kinds:
            place.scripted.append((kind, float("inf") if calls is None else counts[kind] + calls))
        if name in PAUSING:
            place.paused_until = float("inf")  # until `calm`

    def calm(self, place: Place) -> None:
        """The provider works again, though it may insist on the pause that it asked for."""
        place.driver.clear()
        place.scripted.clear()
        if place.paused_until == float("inf"):
            place.paused_until = self.clock.monotonic() + LONGEST_PAUSE
        if place.away:
            place.driver.fail("*", Unavailable("unreachable"))

    def go_away(self, place: Place) -> None:
        place.away = True
        place.driver.fail("*", Unavailable("unreachable"))

    def unmount(self, place: Place) -> None:
        """An empty place stands in: it answers, it takes writes, and nothing of ours is there."""
        if place.aside is None:
            place.aside = dict(place.here)
            place.here.clear()

    def come_back(self, place: Place) -> None:
        """Reachable, and the right disk again. What was written to the empty place meanwhile is gone with it,
        except for what is the last copy of anything: that is copied over."""
        place.away = False
        if place.aside is not None:
            keep = {name: place.here[name] for name in place.held() if self.needed(place, {name})}
            back, place.aside = place.aside, None
            place.here.clear()
            place.here.update({**back, **keep})
        self.calm(place)

    def empty(self, place: Place) -> bool:
        """The provider comes back without anything, if that is no catastrophe: -> whether it was done."""
        if place.aside is not None or self.needed(place, set(place.held())):
            return False
        place.here.clear()
        return True

    def lose_marker(self, place: Place) -> None:
        """The object that says which broker this is gets lost."""
        place.here.pop(MARKER_NAME, None)

    def damage_marker(self, place: Place) -> None:
        if MARKER_NAME in place.here:
            place.here[MARKER_NAME] = (b"broker nobody", self.clock.now())

    def dice(self, seed: int) -> random.Random:
        return random.Random(seed)

    def land(self, place: Place) -> None:
        """What timed out arrives."""
        for name, data in place.late:
            place.here.setdefault(name, (data, self.clock.now()))
        place.late.clear()

    # -- the truth ----------------------------------------------------------------------------------------

    def copies(self, *, acknowledged: bool = False) -> dict[int, list[tuple[Place, str, str]]]:
        """For every segment that somebody needs (or whose file was acknowledged): its intact copies, as (place,
        name, state)."""
        found: dict[int, list[tuple[Place, str, str]]] = {}
        for segment, checksum, content, version, broker, state, locator, key in (row[:8] for row in _rows()):
            if acknowledged and version is None:
                continue
            copies = found.setdefault(segment, [])
            if content == Content.State.OPEN and state == State.PLANNED:
                checksum = self._verified.get(key, "")
            elif state not in READABLE:
                continue
            place = self._by_id[broker]
            data = place.object(locator or key)
            if checksum and data is not None and hashlib.sha256(data).hexdigest() == checksum:
                copies.append((place, locator or key, state))
        return found

    def needed(self, place: Place, names: set[str]) -> set[str]:
        """Those of the objects without which some segment has no intact copy any more."""
        needed = set()
        for copies in self.copies().values():
            mine = {name for where, name, _state in copies if where is place and name in names}
            if mine and len(mine) == len(copies):
                needed |= mine
        return needed

    def lost(self) -> list[int]:
        """Segments of acknowledged files that have no intact copy anywhere: nothing here did that."""
        return sorted(pk for pk, copies in self.copies(acknowledged=True).items() if not copies)

    def domains(self, content_id: uuid.UUID) -> int:
        """The least number of distinct domains on which a segment of this content stands intact and STORED."""
        segments = set(Segment.objects.filter(content=content_id).values_list("pk", flat=True))
        return min(
            len({place.domain for place, _name, state in copies if state == State.STORED})
            for pk, copies in self.copies().items()
            if pk in segments
        )

    def certain(self, content_id: uuid.UUID) -> bool:
        """Whether a reader must succeed: every segment stands intact on a provider that works."""
        now = self.clock.monotonic()
        segments = set(Segment.objects.filter(content=content_id).values_list("pk", flat=True))
        return all(
            any(place.well(now) for place, _name, _state in copies)
            for pk, copies in self.copies().items()
            if pk in segments
        )

    def takers(self) -> int:
        """Distinct domains that take new copies for certain, the product knowing it."""
        now = self.clock.monotonic()
        rows = {b.pk: b for b in Broker.objects.all()}
        return len(
            {
                p.domain
                for p in self.places
                if p.well(now) and rows[p.pk].writable and rows[p.pk].available is None
            }
        )

    def unknown(self) -> list[str]:
        """Objects on any provider that no row knows."""
        names = [(place, name) for place in self.places for name in place.held()]
        known = set(Replica.objects.values_list("broker_id", "locator"))
        known |= set(Replica.objects.values_list("broker_id", "key"))
        return [f"{place.name}: {name}" for place, name in names if (place.pk, name) not in known]

    def settle_markers(self) -> None:
        """What an operator does when the polls cannot tell whose place it is: look, and mark it again."""
        for broker in Broker.objects.filter(enabled=True).exclude(health="online"):
            if broker.health_reason in ("marker_missing", "wrong_marker", "not_found"):
                try:
                    services.write_marker(broker.pk)
                except BrokerError as error:
                    raise AssertionError(f"{broker} cannot be marked: {error}") from error
