"""Reading a content: which segments, which replica, read ahead, fail over. Bytes that did not verify never leave.

The request thread touches the database; fetching and opening run on the pools, each broker's on its own. A unit
of work is a run of frames of one segment; a unit tries the segment's replicas in turn until one verifies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from django.db.models import Prefetch

from brokers.errors import BrokerError, Corrupt, NotFound
from brokers.health import note_failure
from brokers.models import Broker, Health
from replication import suspects, transfer
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

    def stream(self, start: int = 0, end: int | None = None) -> Iterator[memoryview]:
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

        def chain() -> Iterator[memoryview]:
            yield first
            yield from pieces

        return chain()

    def _pieces(self, start: int, end: int) -> Iterator[memoryview]:
        units = self._units(start, end)
        running: deque[tuple[_Unit, Future[_Fetched]]] = deque()
        try:
            for unit in units:
                running.append((unit, _fetch(self._key, unit)))
                if len(running) > READ_AHEAD:
                    yield from self._open(*running.popleft())
            while running:
                yield from self._open(*running.popleft())
        finally:
            for _unit, future in running:
                future.cancel()

    def _open(self, unit: _Unit, future: Future[_Fetched]) -> Iterator[memoryview]:
        fetched = future.result()
        for source, error in fetched.failures:
            _note(source, error)
        if not fetched.frames:
            raise _failure(unit, [error for _source, error in fetched.failures])
        skip, left = unit.skip, unit.take
        for frame in fetched.frames:
            piece = memoryview(frame)[skip : skip + left]
            skip = 0
            left -= len(piece)
            yield piece
        if left:
            raise ContentDamaged(f"segment {unit.segment_id} is shorter than its row says")

    def _units(self, start: int, end: int) -> Iterator[_Unit]:
        ramp = iter(RAMP)
        brokers = {b.pk: b for b in Broker.objects.all()}
        position, expected = -1, start
        while expected < end:
            rows = list(self._rows(expected, end, position))
            if not rows:
                raise ContentDamaged("a segment has no row")
            for segment in rows:
                if segment.offset > expected:
                    raise ContentDamaged("a segment has no row")
                position = segment.position
                sources = _order(segment, brokers)
                stop = min(end, segment.offset + segment.size)
                while expected < stop:
                    first, skip = divmod(expected - segment.offset, FRAME_SIZE)
                    frames = next(ramp, UNIT_FRAMES)
                    unit_end = min(stop, segment.offset + (first + frames) * FRAME_SIZE)
                    last = (unit_end - 1 - segment.offset) // FRAME_SIZE
                    yield _Unit(
                        segment.pk,
                        bytes(segment.header),
                        segment.size,
                        first,
                        last,
                        skip,
                        unit_end - expected,
                        sources,
                    )
                    expected = unit_end

    def _rows(self, start: int, end: int, after: int) -> Iterator[Segment]:
        good = Replica.objects.filter(
            state__in=(Replica.State.STORED, Replica.State.SUSPECT, Replica.State.LOST)
        )
        rows = self.content.segments.filter(position__gt=after, offset__lt=end)
        if after < 0:
            # All segments but the last are alike in most contents, but a resumed upload may have shorter ones.
            before = (
                self.content.segments.filter(offset__lte=start).order_by("-position").values("position")[:1]
            )
            rows = rows.filter(position__gte=before)
        return iter(rows.order_by("position").prefetch_related(Prefetch("replicas", good))[:ROWS])


def _order(segment: Segment, brokers: dict[int, Broker]) -> tuple[_Source, ...]:
    """The replicas of a segment, the likeliest and fastest first. Doubtful ones come last, but they come:
    they verify or they don't."""

    def rank(replica: Replica) -> tuple[bool, int, bool, float]:
        broker = brokers[replica.broker_id]
        doubt = (Replica.State.STORED, Replica.State.SUSPECT, Replica.State.LOST).index(
            Replica.State(replica.state)
        )
        return (not broker.readable, doubt, broker.health == Health.UNKNOWN, transfer.latency(broker))

    ranked = sorted(segment.replicas.all(), key=rank)
    return tuple(_Source(r.pk, brokers[r.broker_id], r.locator) for r in ranked if r.locator)


def _fetch(key: bytes, unit: _Unit) -> Future[_Fetched]:
    """The frames of one unit from the first replica that verifies. Each is asked on a thread of its broker, so
    that a broker that hangs holds up only who needs it."""
    outcome: Future[_Fetched] = Future()
    fetched = _Fetched()
    sources = iter(unit.sources)
    start, length = frame_span(unit.first, unit.last, unit.size)

    def ask_next() -> None:
        source = next(sources, None)
        if source is None:
            outcome.set_result(fetched)
        else:
            transfer.pool(source.broker).submit(ask, source)

    def ask(source: _Source) -> None:
        if not outcome.running() and not outcome.set_running_or_notify_cancel():
            return  # the reader is gone
        try:
            try:
                data = transfer.fetch(source.broker, source.locator, start, length)
                fetched.frames = list(open_frames(key, unit.header, unit.first, data))
            except SealError as error:
                fetched.failures.append((source, Corrupt(str(error))))
                ask_next()
            except BrokerError as error:
                fetched.failures.append((source, error))
                ask_next()
            else:
                outcome.set_result(fetched)
        except BaseException as error:  # noqa: BLE001 - the reader gets it, whatever it is
            outcome.set_exception(error)

    ask_next()
    return outcome


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
