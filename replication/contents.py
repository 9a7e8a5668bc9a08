"""Contents: making, sealing, condemning them; and how their copies stand."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from django.db import connection, models
from django.db.models import Count, Exists, Min, OuterRef, Q, QuerySet, Sum
from django.db.models.functions import Coalesce

from brokers import clock
from brokers.models import Broker
from replication import policy as policies
from replication.errors import StateConflict
from replication.keys import new_wrapped_key
from replication.models import Content, Event, Replica, Segment
from replication.write import Written


def create(copies: int | None = None) -> Content:
    """A new OPEN content with its own random key. Joins the caller's transaction."""
    content_id = uuid.uuid4()
    version, wrapped = new_wrapped_key(content_id)
    return Content.objects.create(id=content_id, copies=copies, key_version=version, wrapped_key=wrapped)


def seal(content_id: uuid.UUID, written: Written) -> None:
    """OPEN -> SEALED, with the outcome of its writer. Call it inside the transaction that makes the content
    visible. Raises StateConflict when the content is no longer OPEN, or when its rows do not hold what was
    promised; the transaction must then be rolled back."""
    connection.validate_no_broken_transaction()
    written.record()
    changed = Content.objects.filter(pk=content_id, state=Content.State.OPEN).update(
        state=Content.State.SEALED, size=written.size, sha256=written.sha256, sealed_at=clock.now()
    )
    if changed != 1:
        raise StateConflict("the upload has expired or was cancelled")
    stored = Count("replicas__broker__domain", distinct=True, filter=Q(replicas__state=Replica.State.STORED))
    found = Segment.objects.filter(content=content_id).annotate(stored=stored)
    facts = found.aggregate(n=Count("pk"), least=Min("stored"), top=models.Max("position"))
    total = Segment.objects.filter(content=content_id).aggregate(total=Sum("size"))["total"]
    if (facts["n"], facts["top"], total) != (written.segments, written.segments - 1, written.size):
        raise StateConflict("the segments do not add up to the content")
    if facts["least"] < written.copies:
        raise StateConflict("a segment has fewer verified copies than were acknowledged")


def abandon(content_id: uuid.UUID) -> bool:
    """OPEN -> CONDEMNED: an upload that will not be finished. Nobody ever saw it, so the collector needs no
    grace. Idempotent; True when this call did it."""
    now = clock.now()
    changed = Content.objects.filter(pk=content_id, state=Content.State.OPEN).update(
        state=Content.State.CONDEMNED, condemned_at=now
    )
    return changed == 1


def referrers() -> list[models.ForeignKey]:
    """The foreign keys of other packages that keep a content alive."""
    return [
        relation.field
        for relation in Content._meta.related_objects
        if relation.related_model is not Segment and isinstance(relation.field, models.ForeignKey)
    ]


def unreferenced(contents: QuerySet[Content]) -> QuerySet[Content]:
    """Those of `contents` that no row outside this package refers to."""
    for key in referrers():
        rows = key.model._base_manager.filter(**{key.name: OuterRef("pk")})
        contents = contents.filter(~Exists(rows))
    return contents


def condemn_unreferenced(content_ids: Iterable[uuid.UUID]) -> int:
    """SEALED -> CONDEMNED for those that nothing refers to any more. Call it inside the transaction that
    removed the last reference. Idempotent; -> how many this call condemned."""
    now = clock.now()
    doomed = list(
        unreferenced(
            Content.objects.filter(pk__in=list(content_ids), state=Content.State.SEALED)
        ).values_list("pk", flat=True)
    )
    changed = Content.objects.filter(pk__in=doomed, state=Content.State.SEALED).update(
        state=Content.State.CONDEMNED, condemned_at=now
    )
    Event.objects.bulk_create([Event(kind="condemned", content=pk, at=now) for pk in doomed])
    return changed


@dataclass(frozen=True, slots=True)
class CopyStatus:
    """How the copies of one content stand. `stored` is the least over its segments; `brokers` are
    those that hold any of them and answer now."""

    wanted: int
    stored: int
    brokers: tuple[str, ...]
    state: str  # ok | catching_up | degraded | damaged

    @property
    def text(self) -> str:
        count, where = f"{self.stored} of {self.wanted}", ", ".join(self.brokers)
        if self.state == "ok":
            return f"{count}: {where}" if where else count
        words = {
            "catching_up": "catching up",
            "degraded": "waiting for a broker",
            "damaged": "unreadable now",
        }[self.state]
        return f"{count}, {words} ({where})" if where else f"{count}, {words}"


def copy_status(content_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, CopyStatus]:
    """The copies of many contents, in a constant number of queries. Counts replicas that are STORED on brokers
    that answer now: a broker in an outage shows at once, though repair waits for its dwell."""
    ids = list(content_ids)
    policy = policies.current()
    brokers = {b.pk: b for b in Broker.objects.all()}
    answering = [pk for pk, b in brokers.items() if b.readable]
    good = Q(replicas__state=Replica.State.STORED, replicas__broker__in=answering)
    least: dict[uuid.UUID, int] = {}
    blocked: set[uuid.UUID] = set()
    rows = (
        Segment.objects.filter(content__in=ids)
        .annotate(good=Count("replicas__broker__domain", distinct=True, filter=good))
        .values_list("content_id", "good", "blocked")
        .order_by()
    )
    for content_id, count, why in rows:
        least[content_id] = min(least.get(content_id, count), count)
        if why:
            blocked.add(content_id)
    holders: dict[uuid.UUID, list[str]] = {}
    held = (
        Replica.objects.filter(segment__content__in=ids, state=Replica.State.STORED, broker__in=answering)
        .values_list("segment__content_id", "broker__name")
        .order_by("broker__name")
        .distinct()
    )
    for content_id, name in held:
        holders.setdefault(content_id, []).append(name)
    wanted = dict(Content.objects.filter(pk__in=ids).values_list("pk", Coalesce("copies", policy.copies)))
    result = {}
    for content_id, count in wanted.items():
        stored = min(least.get(content_id, 0), count)
        if stored >= count:
            state = "ok"
        elif stored == 0:
            state = "damaged"
        else:
            waiting = (
                content_id in blocked
                or len({b.domain for b in brokers.values() if b.writable or b.pk in answering}) < count
            )
            state = "degraded" if waiting else "catching_up"
        result[content_id] = CopyStatus(count, stored, tuple(holders.get(content_id, ())), state)
    return result
