"""Draining: a broker takes no new copies, is read from, and every copy on it is made elsewhere, verified, and then
deleted. The reconciler does it (placement.py: what is on such a broker is leaving); here is what begins, ends and
shows it. All state is in the database, so that a kill at any moment changes nothing but the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from django.db import transaction
from django.db.models import Count, F, QuerySet, Sum

from brokers import clock, services
from brokers.failpoint import reach
from brokers.models import Broker
from replication import placement, places, policy, targets
from replication.models import Content, Replica, Segment

State = Replica.State


@dataclass
class Progress:
    """How far a broker's drain is. `objects` and `bytes` are what the broker still holds for us, `deleting` those
    of them that have no worth any more. `waiting` says what holds segments up, with their number. Rate in bytes
    per second since the drain began; both figures are None while nothing has moved."""

    broker: str
    draining: bool
    since: datetime | None
    objects: int
    bytes: int
    deleting: int
    uploading: int
    moved_bytes: int
    rate: float | None = None
    seconds_left: int | None = None
    waiting: dict[str, int] = field(default_factory=dict)
    blocked: str = ""

    @property
    def empty(self) -> bool:
        return self.objects == 0


def begin(broker_id: int) -> Progress:
    """Drain a broker from now on. Idempotent; any number of brokers may drain at once. It begins even where the
    others cannot take everything: then the copies stay, and `Progress.blocked` says why."""
    held = _held(broker_id)
    services.set_draining(broker_id, True, objects=held["n"], size=held["size"] or 0)
    step()
    return progress(broker_id)


def undo(broker_id: int) -> Progress:
    """Use the broker like the others again: what is left on it stays. Idempotent."""
    services.set_draining(broker_id, False)
    return progress(broker_id)


def progress(broker_id: int) -> Progress:
    """How far the drain of a broker is, or what one would have to move. Changes nothing."""
    broker = Broker.objects.get(pk=broker_id)
    rows = Replica.objects.filter(broker=broker)
    held = _held(broker_id)
    size = held["size"] or 0
    moved = max(broker.draining_bytes - size, 0) if broker.draining else 0
    result = Progress(
        broker=broker.name,
        draining=broker.draining,
        since=broker.draining_since,
        objects=held["n"],
        bytes=size,
        deleting=rows.filter(state=State.DOOMED).count(),
        uploading=rows.filter(segment__content__state=Content.State.OPEN).exclude(state=State.DOOMED).count(),
        moved_bytes=moved,
        blocked=_blocked(broker, size) if held["n"] else "",
    )
    if broker.draining_since is not None and moved:
        seconds = max((clock.now() - broker.draining_since).total_seconds(), 1.0)
        result.rate = moved / seconds
        result.seconds_left = round(size / result.rate)
    if broker.draining:
        stuck = Segment.objects.filter(replicas__in=rows.exclude(state=State.DOOMED)).exclude(blocked="")
        why = stuck.order_by().values("blocked").annotate(n=Count("pk", distinct=True))
        result.waiting = {row["blocked"]: row["n"] for row in why}
    return result


def _held(broker_id: int) -> dict[str, int]:
    return Replica.objects.filter(broker=broker_id).aggregate(n=Count("pk"), size=Sum("segment__sealed_size"))


def _blocked(broker: Broker, size: int) -> str:
    """Why the other brokers cannot take everything; empty when they can, as far as is known."""
    others = [t for t in targets.load().values() if t.id != broker.pk and not t.leaving]
    domains = {t.domain for t in others if t.counts and t.readable}
    room = {t.domain for t in others if placement.fits(t, 0)}
    wanted = policy.current().copies
    if len(domains) < wanted:
        return f"{wanted} copies need {wanted - len(domains)} more healthy domain(s) beside this broker's"
    if not room:
        return "no other broker takes new copies"
    free = [t.available for t in others if placement.fits(t, 0)]
    if all(a is not None for a in free) and sum(a or 0 for a in free) < size:
        return f"the other brokers have room for {sum(a or 0 for a in free)} of {size} bytes"
    return ""


def step() -> int:
    """Make everything on draining brokers due that is at rest: -> how many segments. Every sweep calls it;
    idempotent, and cheap when no broker drains."""
    due = 0
    for broker in Broker.objects.exclude(draining_since=None):
        rows = Replica.objects.filter(broker=broker).exclude(state=State.DOOMED)
        live = rows.filter(segment__content__state=Content.State.SEALED, segment__check_at=None)
        due += _make_due(live.values_list("segment_id", flat=True))
        _drop_condemned(rows.filter(segment__content__state=Content.State.CONDEMNED))
    return due


def _make_due(segments: Iterable[int]) -> int:
    now = clock.now()
    return sum(
        Segment.objects.filter(pk__in=window, check_at=None).update(check_at=now)
        for window in places.windows(list(segments))
    )


def _drop_condemned(rows: QuerySet[Replica]) -> None:
    """What nothing refers to is not copied again. Its copy here goes while another one waits for the grace."""
    for pk, segment in list(rows.values_list("pk", "segment_id")):
        with transaction.atomic():
            # As in reconcile._doom, the row's update is the lock of the segment.
            Segment.objects.filter(pk=segment).update(attempts=F("attempts"))
            others = Replica.objects.filter(segment=segment, state=State.STORED).exclude(pk=pk)
            if others.filter(broker__draining_since=None, broker__enabled=True).exists():
                Replica.objects.filter(pk=pk).exclude(state=State.DOOMED).update(
                    state=State.DOOMED, reason="drained", check_at=None, attempts=0
                )
        reach("drain.condemned")


def words_of(progress: Progress) -> str:
    """For a terminal or a message."""
    state = "draining" if progress.draining else "not draining"
    words = f"{progress.broker}: {state}, {progress.objects} objects ({progress.bytes} bytes) left"
    if progress.deleting:
        words += f", {progress.deleting} of them only to be deleted"
    if progress.rate is not None and progress.seconds_left is not None:
        words += f", {progress.rate / 1e6:.2f} MB/s, about {progress.seconds_left} s left"
    if progress.uploading:
        words += f"\nwaiting: {progress.uploading} segments of uploads under way"
    for why, count in sorted(progress.waiting.items()):
        words += f"\nwaiting: {count} segments: {why}"
    if progress.blocked:
        words += f"\n{progress.blocked}"
    return words
