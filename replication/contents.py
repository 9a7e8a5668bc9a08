"""Contents: making, sealing, condemning them; and how their copies stand."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db import connection, models
from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet

from brokers import clock
from brokers.models import Health
from prepared.change import Update, insert
from prepared.query import Query, Slot
from replication import policy as policies
from replication import targets
from replication.errors import StateConflict
from replication.keys import new_wrapped_key
from replication.models import Content, Event, Replica, Segment
from replication.write import Written


def create(copies: int | None = None) -> Content:
    """A new OPEN content with its own random key. Joins the caller's transaction."""
    content_id = uuid.uuid4()
    version, wrapped = new_wrapped_key(content_id)
    return insert(Content(id=content_id, copies=copies, key_version=version, wrapped_key=wrapped))


_ID = Slot("content", Content, "id")
_SEAL = Update(
    lambda: (
        Content.objects.filter(pk=_ID, state=Content.State.OPEN),
        {
            "state": Content.State.SEALED,
            "size": Slot("size", Content, "size"),
            "sha256": Slot("sha256", Content, "sha256"),
            "sealed_at": Slot("now", Content, "sealed_at"),
        },
    )
)
# Of each segment: position, size, and the domains on which it is stored.
_FACTS = Query(
    lambda: (
        Segment.objects.order_by()
        .filter(content=_ID)
        .annotate(
            stored=Count(
                "replicas__broker__domain", distinct=True, filter=Q(replicas__state=Replica.State.STORED)
            )
        )
        .values_list("position", "size", "stored")
    )
)


def seal(content_id: uuid.UUID, written: Written) -> None:
    """OPEN -> SEALED, with the outcome of its writer. Call it inside the transaction that makes the content
    visible. Raises StateConflict when the content is no longer OPEN, or when its rows do not hold what was
    promised; the transaction must then be rolled back."""
    connection.validate_no_broken_transaction()
    written.record()
    changed = _SEAL(content=content_id, size=written.size, sha256=written.sha256, now=clock.now())
    if changed != 1:
        raise StateConflict("the upload has expired or was cancelled")
    count, total, end = 0, 0, 0
    for position, size, stored in _FACTS(content=content_id):
        count, total, end = count + 1, total + size, max(end, position + 1)
        if stored < written.copies:
            raise StateConflict("a segment has fewer verified copies than were acknowledged")
    if (count, end, total) != (written.segments, written.segments, written.size):
        raise StateConflict("the segments do not add up to the content")


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
    brokers = targets.known()
    answering = [pk for pk, b in brokers.items() if b.readable]
    # One content is what every upload asks for.
    one = {"content": ids[0]} if len(ids) == 1 else None
    least: dict[uuid.UUID, int] = {}
    blocked: set[uuid.UUID] = set()
    for content_id, count, why in _SEGMENTS_OF_ONE(**one) if one else _segments(Q(content__in=ids)):
        least[content_id] = min(least.get(content_id, count), count)
        if why:
            blocked.add(content_id)
    holders: dict[uuid.UUID, list[str]] = {}
    for content_id, name in _HOLDERS_OF_ONE(**one) if one else _holders(Q(segment__content__in=ids)):
        holders.setdefault(content_id, []).append(name)
    copies = _COPIES_OF_ONE(**one) if one else _copies(Q(pk__in=ids))
    wanted = {content_id: own or policy.copies for content_id, own in copies}
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


def _answers(prefix: str) -> Q:
    """A broker that answers now: `Broker.readable` as a condition."""
    others = [health for health in Health.values if health != Health.OFFLINE]
    return Q(**{f"{prefix}enabled": True, f"{prefix}health__in": others})


def _segments(of: Q) -> QuerySet[Segment, tuple[Any, ...]]:
    """Of each segment: its content, the domains that hold it and answer, and what blocks its repair."""
    good = Q(replicas__state=Replica.State.STORED) & _answers("replicas__broker__")
    count = Count("replicas__broker__domain", distinct=True, filter=good)
    return (
        Segment.objects.order_by()
        .filter(of)
        .annotate(good=count)
        .values_list("content_id", "good", "blocked")
    )


def _holders(of: Q) -> QuerySet[Replica, tuple[Any, ...]]:
    """Of each content: the names of the brokers that hold any of it and answer."""
    rows = Replica.objects.filter(of, _answers("broker__"), state=Replica.State.STORED)
    names = rows.annotate(content=F("segment__content_id")).values_list("content", "broker__name")
    return names.order_by("broker__name").distinct()


def _copies(of: Q) -> QuerySet[Content, tuple[Any, ...]]:
    return Content.objects.filter(of).values_list("pk", "copies")


_SEGMENTS_OF_ONE = Query(lambda: _segments(Q(content=_ID)))
_HOLDERS_OF_ONE = Query(lambda: _holders(Q(segment__content=_ID)))
_COPIES_OF_ONE = Query(lambda: _copies(Q(pk=_ID)))
