"""Removing a broker: refused while it holds a copy that is needed; an emptied one leaves nothing of ours behind.

The place is emptied before the row goes, marker last; after a kill on the way the broker is still there, draining and
without a copy, and removing it again goes on.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef, ProtectedError, QuerySet, Sum

from brokers import clock, services
from brokers.failpoint import reach
from brokers.models import Broker
from brokers.names import META_PREFIX
from replication import collect, epoch, orphans, places, transfer
from replication.models import Content, Event, Replica, Segment, Snapshot, SnapshotCopy

State = Replica.State


class RemovalRefused(Exception):
    """Nothing was removed; `code` and the words say why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass
class Standing:
    """What stands against removing a broker. `needed` copies of `contents` are on it alone or not yet made
    elsewhere; of `only_here`, no other broker has a whole copy: a forced removal loses them. `doomed` objects wait
    for their delete."""

    broker: str
    reachable: bool
    needed: int
    bytes: int
    doomed: int
    contents: int
    only_here: list[uuid.UUID] = field(default_factory=list)


def look(broker_id: int) -> Standing:
    """What removing a broker would meet. Changes nothing."""
    broker = Broker.objects.get(pk=broker_id)
    needed = _needed(broker_id)
    return Standing(
        broker=broker.name,
        reachable=broker.readable,
        needed=needed.count(),
        bytes=needed.aggregate(size=Sum("segment__sealed_size"))["size"] or 0,
        doomed=Replica.objects.filter(broker=broker, state=State.DOOMED).count(),
        contents=needed.order_by().values("segment__content").distinct().count(),
        only_here=list(_only_here(broker_id)),
    )


def needed_contents(broker_id: int) -> QuerySet[Content]:
    """The contents that a broker holds a needed copy of."""
    return Content.objects.filter(pk__in=_needed(broker_id).order_by().values("segment__content"))


def empty(broker_id: int, *, leave_objects: bool = False) -> None:
    """Make the place of a broker that holds no needed copy free of everything of ours: doomed objects, snapshots,
    the epoch, the marker. `leave_objects`: touch nothing there, for a place that does not answer.

    Raises RemovalRefused before anything is deleted when a copy is needed, when deletion is locked, when the place
    does not answer or holds objects that no row knows; BrokerError when it fails on the way. Idempotent; outside any
    transaction."""
    broker = Broker.objects.get(pk=broker_id)
    _refuse_needed(broker)
    services.set_draining(broker_id, True)
    broker.refresh_from_db()
    if leave_objects:
        return
    _refuse_last_snapshot(broker)
    if not broker.readable:
        raise RemovalRefused(
            "not_reachable",
            f"{broker.name} does not answer now, so what is left there cannot be deleted; remove it with its objects "
            "left there, or wait until it answers",
        )
    if broker.pk not in epoch.deletable(fresh=True):
        raise RemovalRefused("deletion_locked", "nothing may be deleted now; see manage.py epoch_confirm")
    collect.collect()
    doomed = Replica.objects.filter(broker=broker, state=State.DOOMED).count()
    if doomed:
        raise RemovalRefused(
            "still_deleting",
            f"{doomed} objects on {broker.name} are still to be deleted; try again in a few minutes",
        )
    strays = sum(1 for _ in orphans.unknown_objects(broker))
    if strays:
        raise RemovalRefused(
            "unknown_objects",
            f"{broker.name} holds {strays} objects that this database does not know: `manage.py adopt` takes in what "
            "is ours, `manage.py collect` deletes the rest when it is old enough",
        )
    _empty_place(broker)


def _empty_place(broker: Broker) -> None:
    with transaction.atomic():
        SnapshotCopy.objects.filter(broker=broker).delete()
        # A snapshot that stood here alone goes as a whole.
        Snapshot.objects.filter(copies=None, state=Snapshot.State.STANDING).update(
            state=Snapshot.State.DOOMED
        )
    reach("removal.unlisted")
    for entry in list(transfer.listing(broker, META_PREFIX)):
        transfer.remove(broker, entry.path)
    if broker.marker_locator:
        transfer.remove(broker, broker.marker_locator)
    reach("removal.emptied")


def forget(broker_id: int) -> int:
    """Drop the row of a broker whose place was emptied: -> the objects that stay there, of which nothing has any
    worth. Call it inside the transaction that audits it. Raises RemovalRefused when a copy is needed."""
    broker = Broker.objects.select_for_update().get(pk=broker_id)
    _refuse_needed(broker)
    left, _ = Replica.objects.filter(broker=broker, state=State.DOOMED).delete()
    _delete(broker, f"{broker.name} removed, {left} objects left there")
    return left


def force(broker_id: int) -> list[uuid.UUID]:
    """Drop a broker whatever it holds: -> the contents that are lost by it, each with an event. Nothing at the place
    is touched, its marker neither, so that it can be connected and adopted again. What has another copy is made
    whole again by the reconciler. Call it inside the transaction that audits it."""
    broker = Broker.objects.select_for_update().get(pk=broker_id)
    lost = list(_only_here(broker_id))
    segments = list(_needed(broker_id).values_list("segment_id", flat=True))
    Replica.objects.filter(broker=broker).delete()
    now = clock.now()
    for window in places.windows(segments):
        Segment.objects.filter(pk__in=window).update(check_at=now, blocked="", attempts=0)
    Event.objects.bulk_create(
        [Event(kind="lost", content=pk, at=now, detail=f"{broker.name} was removed by force") for pk in lost]
    )
    _delete(broker, f"{broker.name} removed by force, {len(lost)} contents lost")
    return lost


def _delete(broker: Broker, words: str) -> None:
    try:
        with transaction.atomic():
            broker.delete()
    except (ProtectedError, IntegrityError):
        raise RemovalRefused("in_use", f"a copy was begun on {broker.name} just now; try again") from None
    Event.objects.create(kind="broker removed", detail=words[:300])


def _needed(broker_id: int) -> QuerySet[Replica]:
    return Replica.objects.filter(broker=broker_id).exclude(state=State.DOOMED)


def _only_here(broker_id: int) -> QuerySet[Content, uuid.UUID]:
    """Sealed contents with a segment of which no other broker has a copy that may be good."""
    elsewhere = Replica.objects.filter(
        segment=OuterRef("segment"), state__in=(State.STORED, State.SUSPECT)
    ).exclude(broker=broker_id)
    alone = _needed(broker_id).filter(~Exists(elsewhere), segment__content__state=Content.State.SEALED)
    contents = Content.objects.filter(pk__in=alone.order_by().values("segment__content"))
    return contents.order_by("pk").values_list("pk", flat=True)


def _refuse_needed(broker: Broker) -> None:
    needed = _needed(broker.pk).count()
    if needed:
        raise RemovalRefused(
            "copies_needed", f"{broker.name} holds {needed} copies that are needed; drain it first"
        )


def _refuse_last_snapshot(broker: Broker) -> None:
    newest = Snapshot.objects.filter(state=Snapshot.State.STANDING).order_by("-number").first()
    if newest is None:
        return
    copies = newest.copies.exclude(verified_at=None)
    if copies.filter(broker=broker).exists() and not copies.exclude(broker=broker).exists():
        raise RemovalRefused(
            "last_snapshot",
            f"the newest snapshot of the metadata stands on {broker.name} alone; make another one first "
            "(manage.py snapshot)",
        )
