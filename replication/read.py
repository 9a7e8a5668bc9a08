"""Reading a content: which segments, which replica, read ahead, fail over. Bytes that did not verify never leave.

The request thread touches the database; fetching and opening run on the pools, each broker's on its own. A unit
of work is a run of frames of one segment; a unit tries the segment's replicas in turn until one verifies.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from django.db.models import QuerySet, Subquery

from brokers.errors import BrokerError, Corrupt, NotFound, Timeout
from brokers.health import note_failure
from brokers.models import Broker, Health
from prepared.query import Query, Slot
from replication import suspects, targets, transfer
from replication.errors import ContentDamaged, ContentUnavailable
from replication.keys import content_key
from replication.models import Content, Replica, Segment
from replication.seal import FRAME_SIZE, SealError, frame_span, open_frames

# Units fetched before the reader asks for them.
READ_AHEAD = 3
# Frames of the first units, and of all later ones: a small first one answers soon, and 2 MiB at a time keep the
# memory of a download near 16 MiB while a distant broker still streams.
RAMP = (1, 4)
UNIT_FRAMES = 8
# How many segments' rows are loaded at once.
ROWS = 32
# How long one replica is waited for alone, in seconds and in times of what its broker lately took.
PATIENCE = 3.0
PATIENCE_FACTOR = 4.0


@dataclass(frozen=True, slots=True)
class _Source:
    replica_id: int
    broker: Broker
    locator: str


@dataclass(slots=True)
class _Fetched:
    """What a unit came to: its plain frames, and which replicas failed on the way."""

    frames: list[bytes] = field(default_factory=list)
    failures: list[tuple[_Source, BrokerError]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Unit:
    segment_id: int
    header: bytes
    size: int  # plain bytes of the segment
    first: int
    last: int
    skip: int  # plain bytes to drop at the front of the first frame
    take: int  # plain bytes to yield
    sources: tuple[_Source, ...]


class ContentReader:
    """Reads one SEALED content. For one thread, outside any transaction."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self.size = content.size
        self.sha256 = content.sha256
        self._key = content_key(content)

    def stream(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The plain bytes `start..end` (end exclusive, None for the content's end), in verified pieces of at
        most 256 KiB. The first piece is fetched by this call, so that a failure is known before anything is
        answered.

        Raises ContentUnavailable when the brokers that hold a segment do not answer, ContentDamaged when every
        copy that could be read failed; later the iterator raises the same. Raises ValueError for a range
        outside the content."""
        end = self.size if end is None else end
        if not 0 <= start <= end <= self.size:
            raise ValueError(f"range {start}..{end} of {self.size} bytes")
        if start == end:
            return iter(())
        pieces = self._pieces(start, end)
        first = next(pieces)

        def chain() -> Iterator[bytes]:
            yield first
            yield from pieces

        return chain()

    def _pieces(self, start: int, end: int) -> Iterator[bytes]:
        units = self._units(start, end)
        running: deque[tuple[_Unit, _Fetch]] = deque()
        try:
            for unit in units:
                running.append((unit, _Fetch(self._key, unit)))
                if len(running) > READ_AHEAD:
                    yield from self._open(*running.popleft())
            while running:
                yield from self._open(*running.popleft())
        finally:
            for _unit, fetch in running:
                fetch.cancel()

    def _open(self, unit: _Unit, fetch: _Fetch) -> Iterator[bytes]:
        fetched = fetch.result()
        for source, error in fetched.failures:
            _note(source, error)
        if not fetched.frames:
            raise _failure(unit, [error for _source, error in fetched.failures])
        skip, left = unit.skip, unit.take
        for frame in fetched.frames:
            piece = frame[skip : skip + left]  # the same object where it is all of it
            skip = 0
            left -= len(piece)
            yield piece
        if left:
            raise ContentDamaged(f"segment {unit.segment_id} is shorter than its row says")

    def _units(self, start: int, end: int) -> Iterator[_Unit]:
        ramp = iter(RAMP)
        brokers = targets.known()
        expected = start
        while expected < end:
            segments = self._segments(expected, end)
            if not segments:
                raise ContentDamaged("a segment has no row")
            for segment in segments:
                if segment.offset > expected:
                    raise ContentDamaged("a segment has no row")
                sources = _order(segment, brokers)
                stop = min(end, segment.offset + segment.size)
                while expected < stop:
                    first, skip = divmod(expected - segment.offset, FRAME_SIZE)
                    frames = next(ramp, UNIT_FRAMES)
                    unit_end = min(stop, segment.offset + (first + frames) * FRAME_SIZE)
                    last = (unit_end - 1 - segment.offset) // FRAME_SIZE
                    yield _Unit(
                        segment.id,
                        segment.header,
                        segment.size,
                        first,
                        last,
                        skip,
                        unit_end - expected,
                        sources,
                    )
                    expected = unit_end

    def _segments(self, start: int, end: int) -> list[_Segment]:
        """The segments from `start` on, at most ROWS of them, with their replicas."""
        found: dict[int, _Segment] = {}
        for segment_id, offset, size, header, *replica in _ROWS(
            content=self.content.pk, start=start, end=end
        ):
            segment = found.get(segment_id)
            if segment is None:
                segment = found[segment_id] = _Segment(segment_id, offset, size, bytes(header))
            if replica[0] is not None:
                segment.replicas.append(_Replica(*replica))
        return list(found.values())


@dataclass(frozen=True, slots=True)
class _Replica:
    id: int
    broker_id: int
    locator: str
    state: str


@dataclass(frozen=True, slots=True)
class _Segment:
    id: int
    offset: int
    size: int
    header: bytes
    replicas: list[_Replica] = field(default_factory=list)


def _segment_rows() -> QuerySet[Segment, tuple[Any, ...]]:
    of_content = Segment.objects.order_by().filter(content=Slot("content", Content, "id"))
    # All segments but the last are alike in most contents, but a resumed upload may have shorter ones.
    at_start = of_content.filter(offset__lte=Slot("start", Segment, "offset")).order_by("-position")
    first = Subquery(at_start.values("position")[:1])
    return (
        of_content.filter(
            position__gte=first, position__lt=first + ROWS, offset__lt=Slot("end", Segment, "offset")
        )
        .order_by("position")
        .values_list("id", "offset", "size", "header", *(f"replicas__{name}" for name in _Replica.__slots__))
    )


_ROWS = Query(_segment_rows)
# Those that may still hold the bytes, the least doubtful first.
_READABLE = (Replica.State.STORED, Replica.State.SUSPECT, Replica.State.LOST)


def _order(segment: _Segment, brokers: dict[int, Broker]) -> tuple[_Source, ...]:
    """The replicas of a segment, the likeliest and fastest first. Doubtful ones come last, but they come:
    they verify or they don't."""

    def rank(replica: _Replica) -> tuple[bool, int, bool, bool, float, int]:
        broker = brokers[replica.broker_id]
        doubt = _READABLE.index(Replica.State(replica.state))
        return (
            not broker.readable,
            doubt,
            broker.reluctant,
            broker.health == Health.UNKNOWN,
            transfer.latency(broker),
            replica.id,
        )

    # A broker that was added after the brokers were read has nothing that this content waits for.
    known = [r for r in segment.replicas if r.locator and r.state in _READABLE and r.broker_id in brokers]
    return tuple(_Source(r.id, brokers[r.broker_id], r.locator) for r in sorted(known, key=rank))


class _Fetch:
    """Gets the frames of one unit from the first replica that verifies. Each is asked on a thread of its broker,
    so that a broker that hangs holds up only who needs it."""

    def __init__(self, key: bytes, unit: _Unit) -> None:
        self._key = key
        self._unit = unit
        self._span = frame_span(unit.first, unit.last, unit.size)
        self._lock = threading.Lock()
        self._left = deque(unit.sources)
        self._asked: list[_Source] = []
        self._failures: list[tuple[_Source, BrokerError]] = []
        self._outcome: Future[_Fetched] = Future()
        self._ask_next()

    def result(self) -> _Fetched:
        """Waits for it. A replica that takes much longer than its broker lately took is not waited for alone: the
        next one is asked as well, and the first that verifies counts."""
        while True:
            with self._lock:
                patience = _patience(self._asked[-1]) if self._asked and self._left else None
            try:
                return self._outcome.result(patience)
            except FutureTimeout:
                if self._outcome.done():
                    return self._outcome.result()
                with self._lock:
                    slow = self._asked[-1]
                note_failure(slow.broker.pk, Timeout("it takes long"))
                self._ask_next()

    def cancel(self) -> None:
        """The reader is gone: ask nobody any more."""
        with self._lock:
            self._left.clear()
        self._outcome.cancel()

    def _ask_next(self) -> None:
        with self._lock:
            source = self._left.popleft() if self._left else None
            if source is not None:
                self._asked.append(source)
            elif len(self._failures) == len(self._asked):
                self._settle(_Fetched([], self._failures))
        if source is not None:
            transfer.pool(source.broker).submit(self._ask, source)

    def _ask(self, source: _Source) -> None:
        if self._outcome.done():
            return  # another one was faster, or the reader is gone
        try:
            data = transfer.fetch(source.broker, source.locator, *self._span)
            frames = list(open_frames(self._key, self._unit.header, self._unit.first, data))
        except (SealError, BrokerError) as error:
            known = error if isinstance(error, BrokerError) else Corrupt(str(error))
            with self._lock:
                self._failures.append((source, known))
            self._ask_next()
        except BaseException as error:  # noqa: BLE001 - the reader gets it, whatever it is
            with suppress(InvalidStateError):
                self._outcome.set_exception(error)
        else:
            with self._lock:
                self._settle(_Fetched(frames, list(self._failures)))

    def _settle(self, fetched: _Fetched) -> None:
        with suppress(InvalidStateError):
            self._outcome.set_result(fetched)


def _patience(source: _Source) -> float:
    return max(PATIENCE, PATIENCE_FACTOR * transfer.latency(source.broker))


def _note(source: _Source, error: BrokerError) -> None:
    """A failed read: either it speaks of this object, or of the broker."""
    if isinstance(error, NotFound | Corrupt) or error.code == "range":
        suspects.suspect(source.replica_id, error.code)
    else:
        note_failure(source.broker.pk, error)


def _failure(unit: _Unit, errors: list[BrokerError]) -> ContentUnavailable | ContentDamaged:
    about_object = all(isinstance(e, NotFound | Corrupt) or e.code == "range" for e in errors)
    if not unit.sources or (errors and about_object):
        return ContentDamaged(f"no copy of segment {unit.segment_id} could be verified")
    return ContentUnavailable(f"no broker that holds segment {unit.segment_id} answers now")


def open_content(content: Content) -> ContentReader:
    """A reader of a SEALED content. Raises ContentUnavailable for one that is not (or no longer) sealed, and
    KeyringError when its key does not open."""
    if content.state == Content.State.OPEN:
        raise ContentUnavailable("the content is not complete")
    return ContentReader(content)
