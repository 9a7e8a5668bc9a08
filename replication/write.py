"""Writing a content: cut into segments, seal, place, put on W brokers, hand off when one fails.

The request thread alone reads the body and touches the database. It seals each segment while its bytes come,
straight into the object's memory; hashing the plain bytes and the puts run on the pools (replication/transfer.py).
Intent before effect: a segment's rows and object keys are committed before its first put. At most `WINDOW` segments
of one content are under way, and `_slots` bounds those of the whole process, so that memory does not grow with the
number of uploads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction

from brokers import clock, entropy
from brokers.driver import Buffer
from brokers.errors import BrokerError, Timeout
from brokers.health import note_failure
from brokers.models import Broker
from brokers.names import new_object_key
from prepared.change import Update, insert
from prepared.query import Slot
from replication import memory, placement, policy, targets, transfer
from replication.digest import Digest
from replication.errors import StateConflict, WriteRefused
from replication.keys import content_key
from replication.models import Content, Replica, Segment
from replication.seal import SEGMENT_SIZE, Sealed, Sealer, sealed_size

# Segments of one content whose puts are under way while the next one fills.
WINDOW = 3
# The same over all contents of this process: each holds one object (8 MiB), beside the one that each content fills.
PROCESS_WINDOW = 4

# How long a put that timed out may still be under way at the provider.
LATE_PUT = timedelta(minutes=5)

# How long one writer waits for a slot that others hold before it goes on without, in seconds.
SLOT_PATIENCE = 10.0


class _Slots:
    """Counts the segments of this process whose sealed bytes are in memory. The bound is soft: whoever waited
    long goes on, because a slot may be held for a client that has stopped sending after a broker failed."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.taken = 0
        self._changed = threading.Condition()

    def take(self, patience: float) -> bool:
        """Take a slot; False when none came free within `patience` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.taken < self.bound, patience):
                return False
            self.taken += 1
            return True

    def overtake(self) -> None:
        """Take a slot beyond the bound."""
        with self._changed:
            self.taken += 1

    def give_back(self) -> None:
        with self._changed:
            self.taken -= 1
            self._changed.notify()


_slots = _Slots(PROCESS_WINDOW)


@dataclass(slots=True)
class _Put:
    """One attempt to store a segment on one broker."""

    broker: Broker
    key: str
    replica_id: int
    future: Future[str] | None = None
    locator: str = ""
    stored: bool = False
    failed: str = ""


@dataclass(slots=True)
class _Filled:
    """A segment whose bytes have come: its sealed bytes and the memory in which they lie."""

    sealer: Sealer
    sealed: Sealed
    room: bytearray


class _Job:
    """A segment under way. Its sealed bytes, and the process's slot for them, are given up as soon as `needed`
    puts have succeeded, however slowly the client sends what follows; after a failed put they are kept for
    the hand-off, until the writer settles the job."""

    def __init__(self, segment_id: int, filled: _Filled, needed: int, wanted: int) -> None:
        self.segment_id = segment_id
        self.size = filled.sealer.size
        self.needed = needed
        self.wanted = wanted
        self.puts: list[_Put] = []
        self.header = filled.sealed.header
        self.checksum = filled.sealed.checksum
        self._filled: _Filled | None = filled
        self._lock = threading.Lock()

    def send(self, puts: list[_Put]) -> None:
        """Set puts going."""
        with self._lock:
            if self._filled is None:
                raise StateConflict("the segment is settled already")
            self.puts += puts
            sealed = self._filled.sealed
            for put in puts:
                threads = transfer.pool(put.broker)
                put.future = threads.submit(transfer.put, put.broker, put.key, sealed.data, sealed.checksum)
        for future in self.pending():
            future.add_done_callback(lambda _done: self._after_put())

    def _after_put(self) -> None:
        if sum(put.stored or _succeeded(put.future) for put in self.puts) >= self.needed:
            self.free()

    def free(self) -> None:
        """Let go of the bytes and give the slot back. Idempotent."""
        with self._lock:
            filled, self._filled = self._filled, None
        if filled is not None:
            memory.give_back(filled.room)
            _slots.give_back()

    def stored(self) -> int:
        return sum(put.stored for put in self.puts)

    def pending(self) -> list[Future[str]]:
        return [put.future for put in self.puts if put.future is not None]

    def done(self) -> bool:
        return all(future.done() for future in self.pending())


def _succeeded(future: Future[Any] | None) -> bool:
    return future is not None and future.done() and not future.cancelled() and future.exception() is None


class Written:
    """The outcome of a writer: every byte is durable on `copies` brokers per segment, at least. `record()`
    writes down what the puts came to; `contents.seal` calls it in the transaction that seals."""

    def __init__(
        self, size: int, sha256: str, segments: int, copies: int, wanted: int, jobs: Iterable[_Job]
    ) -> None:
        self.size = size
        self.sha256 = sha256
        self.segments = segments
        self.copies = copies
        self.wanted = wanted
        self._jobs = list(jobs)

    def record(self) -> None:
        _record(self._jobs)


def _record(jobs: Iterable[_Job]) -> None:
    """Write the outcome of finished segments into their rows, in the caller's transaction. A segment with
    fewer copies than wanted becomes due for the reconciler."""
    now = clock.now()
    segments, replicas = [], []
    for job in jobs:
        due = now if job.stored() < job.wanted else None
        segments.append(
            {"id": job.segment_id, "checksum": job.checksum, "header": job.header, "check_at": due}
        )
        replicas += [_outcome(put, now) for put in job.puts]
    _SEALED.each(segments)
    _PUT.each(replicas)


def _outcome(put: _Put, now: datetime) -> dict[str, Any]:
    if put.stored:
        return {
            "id": put.replica_id,
            "state": Replica.State.STORED,
            "locator": put.locator,
            "at": now,
            "reason": "",
            "check_at": None,
        }
    # The object may exist all the same, so its key stays known until it is surely gone.
    return {
        "id": put.replica_id,
        "state": Replica.State.DOOMED,
        "locator": "",
        "at": None,
        "reason": put.failed or "abandoned",
        "check_at": delete_after(put.failed),
    }


_SEALED = Update(
    lambda: (
        Segment.objects.filter(pk=Slot("id", Segment, "id")),
        {name: Slot(name, Segment, name) for name in ("checksum", "header", "check_at")},
    )
)
_PUT = Update(
    lambda: (
        Replica.objects.filter(pk=Slot("id", Replica, "id")),
        {
            **{name: Slot(name, Replica, name) for name in ("state", "locator", "reason", "check_at")},
            "stored_at": Slot("at", Replica, "stored_at"),
            "verified_at": Slot("at", Replica, "verified_at"),
        },
    )
)


def delete_after(failure: str) -> datetime | None:
    """When the object of a failed put may be deleted: a put that timed out may still land, so it is left to
    end first. None means now."""
    return clock.now() + LATE_PUT if failure == Timeout.code else None


class ContentWriter:
    """Streams bytes into an OPEN content. For one thread, outside any transaction.

    Raises WriteRefused, at the start before any byte is taken, when fewer healthy domains than the
    acknowledgement needs take writes (fewer are enough when the policy allows degraded writes), and later when
    brokers fail and no other can take over."""

    def __init__(self, content: Content, *, size: int | None = None) -> None:
        self.content = content
        self._expected = size
        self._key = content_key(content)
        rules = policy.current()
        self.wanted = policy.copies_of(content, rules)
        self._brokers = targets.known()
        self._targets = targets.load(self._brokers.values())
        self._out: set[int] = set()  # brokers that failed this content
        self.acknowledge = policy.acknowledged_after(self.wanted, rules)
        reachable = len(self._choose(self.wanted, SEGMENT_SIZE))
        if reachable < self.acknowledge:
            if not (rules.allow_degraded and reachable):
                raise WriteRefused(self._refusal(reachable))
            self.acknowledge = reachable
        self._allow_degraded = rules.allow_degraded
        self._digest = Digest()
        self._sealer: Sealer | None = None  # of the segment that fills
        self._room = bytearray()  # its memory
        self._size = 0
        self._position = 0
        self._jobs: deque[_Job] = deque()
        self._done: list[_Job] = []
        self._least = self.acknowledge

    # -- the public face ------------------------------------------------------------------------------

    def write(self, data: Buffer) -> None:
        """Take the next bytes, in pieces of any size. Raises WriteRefused; the writer is then of no more use
        and `abort()` should follow."""
        view = memoryview(data)
        if self._expected is not None and self._size + len(view) > self._expected:
            raise ValueError(f"more than the {self._expected} bytes that were announced")
        self._digest.update(data)
        while len(view):
            sealer = self._sealer or self._begin()
            piece = view[: sealer.space]
            view = view[len(piece) :]
            self._size += len(piece)
            sealer.write(piece)
            # Where the size is not known, only a further byte shows that this segment is not the last one.
            if not sealer.space and (len(view) or self._expected is not None):
                self._flush()

    def finish(self) -> Written:
        """Wait until every byte stands on enough brokers. Raises WriteRefused. Nothing is visible before
        `contents.seal` is called with what this returns."""
        if self._expected is not None and self._size != self._expected:
            raise ValueError(f"{self._size} bytes came of {self._expected}")
        if self._position == 0 and self._sealer is None:
            self._begin()
        if self._sealer is not None:
            self._flush(last=True)
        while self._jobs:
            self._settle(self._jobs.popleft())
        return Written(
            self._size, self._digest.hexdigest(), self._position, self._least, self.wanted, self._done
        )

    def abort(self) -> None:
        """Give up: waits for puts under way, so that the collector meets none of them. Idempotent."""
        self._sealer, room, self._room = None, self._room, bytearray()
        memory.give_back(room)
        while self._jobs:
            job = self._jobs.popleft()
            wait(job.pending())
            job.free()

    # -- segments -------------------------------------------------------------------------------------

    def _choose(
        self, count: int, size: int, tried: Iterable[int] = (), domains: Iterable[str] = ()
    ) -> list[int]:
        return placement.choose(
            self._targets.values(),
            count,
            sealed_size(size),
            entropy.uniform,
            taken_domains=set(domains),
            tried=self._out | set(tried),
        )

    def _begin(self) -> Sealer:
        """Make room for the next segment."""
        size = None if self._expected is None else min(SEGMENT_SIZE, self._expected - self._size)
        self._room = memory.take(sealed_size(SEGMENT_SIZE if size is None else size))
        self._sealer = Sealer(
            self._key,
            content_id=self.content.pk,
            position=self._position,
            offset=self._size,
            key_version=self.content.key_version,
            wrapped_key=bytes(self.content.wrapped_key),
            size=size,
            last=size is not None and self._size + size == self._expected,
            most=SEGMENT_SIZE,
            room=self._room,
        )
        return self._sealer

    def _flush(self, *, last: bool = False) -> None:
        """Plan the filled segment and set its puts going. `last` counts where the size was not known."""
        sealer, room = self._sealer, self._room
        assert sealer is not None  # noqa: S101
        self._sealer, self._room = None, bytearray()
        filled = _Filled(sealer, sealer.finish(last=last), room)
        self._take_slot()
        under_way = len(self._jobs)
        try:
            self._start(filled)
        finally:
            if len(self._jobs) == under_way:
                _slots.give_back()

    def _start(self, filled: _Filled) -> None:
        size = filled.sealer.size
        chosen = self._choose(self.acknowledge, size)
        least = 1 if self._allow_degraded else self.acknowledge
        if len(chosen) < least:
            raise WriteRefused(self._refusal(len(chosen)))
        with transaction.atomic():
            finished, self._done = self._done, []
            _record(finished)
            row = Segment(
                content=self.content,
                position=self._position,
                offset=self._size - size,
                size=size,
                sealed_size=sealed_size(size),
            )
            segment = insert(row)
            puts = [self._plan(segment.pk, broker) for broker in chosen]
        self._position += 1
        job = _Job(segment.pk, filled, self.acknowledge, self.wanted)
        self._jobs.append(job)
        job.send(puts)

    def _plan(self, segment_id: int, broker_id: int) -> _Put:
        key = new_object_key()
        row = insert(Replica(segment_id=segment_id, broker_id=broker_id, key=key))
        return _Put(self._brokers[broker_id], key, row.pk)

    def _settle(self, job: _Job) -> None:
        """Wait for a segment, handing off what failed, until it stands on enough brokers."""
        try:
            while True:
                self._gather(job)
                short = self.acknowledge - job.stored()
                if short <= 0:
                    break
                if not self._hand_off(job, short):
                    if self._allow_degraded and job.stored():
                        break
                    raise WriteRefused(self._refusal(job.stored()))
        finally:
            wait(job.pending())
            job.free()
        self._least = min(self._least, job.stored())
        self._done.append(job)

    def _gather(self, job: _Job) -> None:
        for put in job.puts:
            if put.future is None:
                continue
            try:
                put.locator = put.future.result()
                put.stored = True
            except BrokerError as error:
                put.failed = error.code
                self._out.add(put.broker.pk)
                note_failure(put.broker.pk, error)
            put.future = None

    def _hand_off(self, job: _Job, short: int) -> bool:
        """Choose other brokers for the copies that failed: -> whether there were any."""
        domains = {put.broker.domain for put in job.puts if put.stored}
        chosen = self._choose(short, job.size, tried={put.broker.pk for put in job.puts}, domains=domains)
        if not chosen:
            return False
        with transaction.atomic():
            puts = [self._plan(job.segment_id, broker) for broker in chosen]
        job.send(puts)
        return True

    # -- bounds ---------------------------------------------------------------------------------------

    def _take_slot(self) -> None:
        """Wait for room for one more segment. What this writer has under way is settled first: only its own
        thread can hand it off."""
        while self._jobs and (len(self._jobs) >= WINDOW or self._jobs[0].done()):
            self._settle(self._jobs.popleft())
        while not _slots.take(0.0 if self._jobs else SLOT_PATIENCE):
            if not self._jobs:
                _slots.overtake()
                return
            self._settle(self._jobs.popleft())

    def _refusal(self, healthy: int) -> str:
        return (
            f"{self.acknowledge} brokers on distinct domains must take the bytes before they are acknowledged, "
            f"and {healthy} can now; try again when the brokers are well"
        )
