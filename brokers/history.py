"""How each broker has done: calls, errors, bytes and latencies by spans of time, for charts, limits and judgement.

Each process counts its calls in memory (`note`, called by the layers) and adds what it counted to the rows of
`BrokerSample` once a minute, from a thread of its own: no call waits for the database, none costs a row. What a
process that dies has not written yet, at most a minute, is lost. Rows of five minutes are kept for two days, then
they become rows of an hour, after five weeks rows of a day, which go after 400 days: less than 2,000 rows a broker.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.db import DatabaseError, connections, transaction
from django.db.models import QuerySet, Sum

from brokers import clock, histogram
from brokers.errors import BrokerError, Corrupt, Misconfigured, Unauthorized
from brokers.models import Broker, BrokerSample, Traffic

log = logging.getLogger(__name__)

FINE, HOUR, DAY = 300, 3600, 86_400
# Rows of a span become rows of the next one when they are as old as this; those of a day are deleted.
KEPT = {FINE: timedelta(days=2), HOUR: timedelta(days=35), DAY: timedelta(days=400)}
NEXT = {FINE: HOUR, HOUR: DAY}
EVER = datetime.fromtimestamp(0, UTC)
# While the database is away so many spans wait in memory; then the oldest are dropped.
WAITING = 500
TRIES = 20
# Errors that speak against a broker beside the temporary ones. What is missing, full or read-only is no failure.
_AGAINST = (Unauthorized, Misconfigured, Corrupt)


@dataclass
class Counts:
    """What calls came to. `p95` and the like are in seconds."""

    calls: int = 0
    failures: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    latency: dict[str, histogram.Histogram] = field(default_factory=dict)
    used: int | None = None
    available: int | None = None

    def add(self, other: Counts | BrokerSample) -> None:
        """Take in what was counted later."""
        self.calls += other.calls
        self.failures += other.failures
        self.bytes_up += other.bytes_up
        self.bytes_down += other.bytes_down
        histogram.add(self.errors, other.errors)
        histogram.add(self.latency, other.latency)
        self.used = self.used if other.used is None else other.used
        self.available = self.available if other.available is None else other.available

    def quantile(self, operation: str, part: float) -> float | None:
        """Seconds that `part` of the calls of one kind took at most; None without calls."""
        return histogram.quantile(self.latency.get(operation, {}), part)

    def count(self, operation: str) -> int:
        """How many calls of a kind were timed."""
        return sum(self.latency.get(operation, {}).values())

    @property
    def error_rate(self) -> float:
        return self.failures / self.calls if self.calls else 0.0


@dataclass
class Point(Counts):
    """One step of a series: `span` seconds from `start`."""

    start: datetime = EVER
    span: int = FINE


# -- counting (no database) ----------------------------------------------------------------------------------

_Key = tuple[int, datetime]
_lock = threading.Lock()
_counts: dict[_Key, Counts] = {}


def _forget_in_child() -> None:
    global _lock, _counts, _flusher
    _lock, _counts, _flusher = threading.Lock(), {}, None


os.register_at_fork(after_in_child=_forget_in_child)


def start_of(at: datetime, span: int) -> datetime:
    """The start of the span that a moment lies in. Spans begin at multiples since 1970, so days are UTC's."""
    seconds = int(at.timestamp())
    return datetime.fromtimestamp(seconds - seconds % span, UTC)


def _here(broker_id: int) -> Counts:
    """The counts of now; the caller has the lock."""
    key = (broker_id, start_of(clock.now(), FINE))
    found = _counts.get(key)
    if found is None:
        found = _counts[key] = Counts()
        while len(_counts) > WAITING:
            del _counts[next(iter(_counts))]
    return found


def note(
    broker_id: int, operation: str, seconds: float | None, error: BrokerError | None, up: int, down: int
) -> None:
    """One call has ended. `seconds` is None when it says nothing of how fast the broker is. No IO."""
    with _lock:
        counts = _here(broker_id)
        counts.calls += 1
        counts.bytes_up += up
        counts.bytes_down += down
        if error is not None:
            counts.errors[error.code] = counts.errors.get(error.code, 0) + 1
            counts.failures += error.temporary or isinstance(error, _AGAINST)
        if seconds is not None:
            histogram.add(counts.latency, {operation: {histogram.step_of(seconds): 1}})


def note_capacity(broker_id: int, used: int | None, available: int | None) -> None:
    """What the provider told of its room. No IO."""
    with _lock:
        counts = _here(broker_id)
        counts.used, counts.available = used, available


def forget() -> None:
    """Drop what this process has counted and not written."""
    with _lock:
        _counts.clear()


# -- writing down --------------------------------------------------------------------------------------------


def flush() -> int:
    """Add what this process counted to the rows: -> how many rows. Never raises for a database that is away: the
    counts are kept for the next time. Not for hot paths."""
    global _counts
    with _lock:
        taken, _counts = _counts, {}
    if not taken:
        return 0
    done = 0
    try:
        known = set(Broker.objects.filter(pk__in={pk for pk, _ in taken}).values_list("pk", flat=True))
        oldest = clock.now() - KEPT[FINE] / 2
        for key in list(taken):
            pk, start = key
            if pk in known and start >= oldest:
                _merge(pk, FINE, start, taken[key])
                done += 1
            del taken[key]
    except DatabaseError as error:
        log.info("the history of the brokers waits for the database: %s", type(error).__name__)
        with _lock:
            for key, counts in _counts.items():
                taken.setdefault(key, Counts()).add(counts)
            _counts = taken
    return done


def _merge(broker_id: int, span: int, start: datetime, counts: Counts) -> None:
    """Add counts to a row, which is made when there is none. Any number of processes may do it at once: each
    change is a compare-and-set. Raises DatabaseError; a broker that is gone counts as done."""
    at = BrokerSample.objects.filter(broker=broker_id, span=span, start=start)
    for _ in range(TRIES):
        row = at.first()
        if row is None:
            new = BrokerSample(broker_id=broker_id, span=span, start=start)
            # A row of nothing first: of two that find none, both add to the one that stands.
            with transaction.atomic():
                if not Broker.objects.filter(pk=broker_id).exists():
                    return
                BrokerSample.objects.bulk_create([new], ignore_conflicts=True)
            continue
        sum_of = Counts()
        sum_of.add(row)
        sum_of.add(counts)
        if at.filter(revision=row.revision).update(revision=row.revision + 1, **vars(sum_of)):
            return
    raise DatabaseError("too many processes write the same sample")


def compact() -> int:
    """Rows that are old enough become fewer, those that are too old go: -> how many went. Idempotent; any number
    of processes may call it, and one that dies leaves every call counted once."""
    gone = 0
    now = clock.now()
    for span, into in NEXT.items():
        before = start_of(now - KEPT[span], into)
        old = BrokerSample.objects.filter(span=span, start__lt=before).order_by("broker", "start")
        groups: dict[tuple[int, datetime], list[tuple[int, int]]] = {}
        for pk, broker_id, start, revision in old.values_list("pk", "broker_id", "start", "revision"):
            groups.setdefault((broker_id, start_of(start, into)), []).append((pk, revision))
        for (broker_id, start), rows in groups.items():
            gone += _fold(broker_id, into, start, rows)
    expired = BrokerSample.objects.filter(span=DAY, start__lt=now - KEPT[DAY])
    return gone + expired.delete()[0]


class _Changed(Exception):
    """Somebody else has changed or folded these rows."""


def _fold(broker_id: int, span: int, start: datetime, rows: list[tuple[int, int]]) -> int:
    sum_of = Counts()
    try:
        with transaction.atomic():
            for pk, revision in rows:
                row = BrokerSample.objects.filter(pk=pk, revision=revision).first()
                if row is None or not BrokerSample.objects.filter(pk=pk, revision=revision).delete()[0]:
                    raise _Changed
                sum_of.add(row)
            _merge(broker_id, span, start, sum_of)
    except _Changed:
        return 0
    return len(rows)


class _Flusher(threading.Thread):
    """Flushes once a minute, on a connection of its own."""

    def __init__(self, seconds: float) -> None:
        super().__init__(name="broker history", daemon=True)
        self._seconds = seconds
        self._stop_now = threading.Event()

    def run(self) -> None:
        while not self._stop_now.wait(self._seconds):
            try:
                flush()
            except Exception:
                log.exception("writing the history of the brokers failed")
            finally:
                connections.close_all()

    def stop(self) -> None:
        self._stop_now.set()


_flusher: _Flusher | None = None


def start(seconds: float | None = None) -> None:
    """From now on this process writes what it counts. For processes that serve or work; idempotent, and cheap."""
    global _flusher
    seconds = settings.CLOUDSTORE_HISTORY_SECONDS if seconds is None else seconds
    if _flusher is not None or not seconds:
        return
    with _lock:
        if _flusher is None:
            _flusher = _Flusher(seconds)
            _flusher.start()
            atexit.register(stop)


def stop() -> None:
    """Write what is left and end the thread of `start`. Idempotent."""
    global _flusher
    with _lock:
        flusher, _flusher = _flusher, None
    if flusher is not None:
        flusher.stop()
        flush()


# -- asking --------------------------------------------------------------------------------------------------


def between(broker_id: int, since: datetime, until: datetime | None = None) -> Counts:
    """Everything counted in the spans that begin at `since` or later, and before `until`."""
    rows = BrokerSample.objects.filter(broker=broker_id, start__gte=since)
    return _sum(rows if until is None else rows.filter(start__lt=until))


def _sum(rows: Iterable[BrokerSample]) -> Counts:
    sum_of = Counts()
    for row in rows:
        sum_of.add(row)
    return sum_of


def recent(broker_ids: Iterable[int], window: timedelta) -> dict[int, Counts]:
    """The counts of the last `window`, by broker (one query)."""
    since = start_of(clock.now() - window, FINE)
    found = {pk: Counts() for pk in broker_ids}
    rows = BrokerSample.objects.filter(broker__in=found, start__gte=since).exclude(span=DAY)
    for row in rows:
        found[row.broker_id].add(row)
    return found


def series(broker_id: int, since: datetime, until: datetime, step: int = HOUR) -> list[Point]:
    """The history of a broker for a chart: one point for each `step` seconds from `since` to `until` in which there
    were calls, oldest first. Where only longer rows are left a point stands for the whole row (`span`).

    Raises ValueError for a step shorter than 300 s."""
    if step < FINE:
        raise ValueError(f"a step has at least {FINE} seconds")
    points: dict[datetime, Point] = {}
    rows: QuerySet[BrokerSample] = BrokerSample.objects.filter(
        broker=broker_id, start__gte=start_of(since, step), start__lt=until
    )
    for row in rows.order_by("start"):
        at = start_of(row.start, step) if row.span < step else row.start
        point = points.setdefault(at, Point(start=at, span=max(step, row.span)))
        point.add(row)
    return list(points.values())


def month_of(at: datetime) -> tuple[datetime, datetime]:
    """Start and end of the calendar month (UTC) that a moment lies in."""
    begin = at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return begin, (begin + timedelta(days=32)).replace(day=1)


def traffic(broker_id: int, at: datetime, counts: str = Traffic.DOWN) -> int:
    """Bytes of the calendar month (UTC) of `at`, as written so far: processes write once a minute."""
    begin, end = month_of(at)
    sums = BrokerSample.objects.filter(broker=broker_id, start__gte=begin, start__lt=end).aggregate(
        up=Sum("bytes_up"), down=Sum("bytes_down")
    )
    up, down = sums["up"] or 0, sums["down"] or 0
    return {Traffic.UP: up, Traffic.DOWN: down, Traffic.BOTH: up + down}[Traffic(counts)]


Recorder = Callable[[str, float | None, BrokerError | None, int, int], None]


def recorder(broker_id: int) -> Recorder:
    """`note` for one broker, for the layers."""

    def record(operation: str, seconds: float | None, error: BrokerError | None, up: int, down: int) -> None:
        note(broker_id, operation, seconds, error, up, down)

    return record
