"""The collector: removes only what is certain.

A content goes when nothing refers to it at condemn time and again now, and the grace is over. An object is
deleted only for a DOOMED row, and the row goes only when the broker has been seen without the object.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet

from brokers import clock
from brokers.errors import BrokerError
from brokers.failpoint import reach
from brokers.health import note_failure
from replication import epoch, transfer
from replication.contents import unreferenced
from replication.models import Content, Event, Replica, Segment

log = logging.getLogger(__name__)
State = Replica.State

# An OPEN content that no upload refers to was left by a crash between two commits of its upload.
STRAY_AGE = timedelta(hours=48)
RETRY = timedelta(seconds=30)
RETRY_MOST = timedelta(hours=1)
BATCH = 200


@dataclass
class Report:
    """What was collected (or, with `dry_run`, would be)."""

    contents: int = 0
    objects: int = 0
    bytes: int = 0
    failed: int = 0
    still_referenced: int = 0
    # Why nothing may be deleted now (replication/epoch.py); empty when it may.
    locked: str = ""


def collect(*, dry_run: bool = False, grace: timedelta | None = None) -> Report:
    """Remove condemned contents whose grace is over, and every doomed object. Idempotent; a broker that does
    not answer keeps its rows until it does. `grace` overrides the setting; what nobody ever saw has none."""
    report = Report()
    grace = settings.CLOUDSTORE_COLLECT_GRACE if grace is None else grace
    now = clock.now()
    due = due_contents(now, grace)
    lock = epoch.lock()
    report.locked = lock.reason if lock else ""
    if dry_run:
        _tell(report, due, now)
        return report
    _condemn_strays(now)
    for content_id in list(due.values_list("pk", flat=True)):
        _doom_content(content_id, report)
        reach("collect.doomed")
    _delete_doomed(report, now)
    _drop_empty(report, now, grace)
    return report


def due_contents(now: datetime, grace: timedelta) -> QuerySet[Content]:
    """Condemned contents whose grace was over at `now`. What was never sealed nobody ever saw: no grace."""
    never_seen = Q(sealed_at=None, condemned_at__lte=now)
    return Content.objects.filter(
        never_seen | Q(condemned_at__lte=now - grace), state=Content.State.CONDEMNED
    )


def _tell(report: Report, due: QuerySet[Content], now: datetime) -> None:
    certain = unreferenced(due)
    report.contents = certain.count()
    report.still_referenced = due.count() - report.contents
    objects = Replica.objects.filter(
        Q(segment__content__in=certain) | Q(state=State.DOOMED), Q(check_at=None) | Q(check_at__lte=now)
    ).select_related("segment")
    report.objects = objects.count()
    report.bytes = sum(objects.values_list("segment__sealed_size", flat=True))


def _condemn_strays(now: datetime) -> None:
    strays = unreferenced(Content.objects.filter(state=Content.State.OPEN, created_at__lt=now - STRAY_AGE))
    for pk in list(strays.values_list("pk", flat=True)):
        Content.objects.filter(pk=pk, state=Content.State.OPEN).update(
            state=Content.State.CONDEMNED, condemned_at=now
        )


def _doom_content(content_id: uuid.UUID, report: Report) -> None:
    """Doom every replica of a content that is surely unreferenced."""
    with transaction.atomic():
        # The update is the lock: who wants to refer to a content must find it SEALED, in a transaction too.
        locked = Content.objects.filter(pk=content_id, state=Content.State.CONDEMNED).update(
            state=Content.State.CONDEMNED
        )
        if not locked:
            return
        if not unreferenced(Content.objects.filter(pk=content_id)).exists():
            report.still_referenced += 1
            log.error("content %s is condemned but referenced; left alone (see manage.py fsck)", content_id)
            return
        Replica.objects.filter(segment__content=content_id).exclude(state=State.DOOMED).update(
            state=State.DOOMED, reason="collected", check_at=None, attempts=0
        )


def _delete_doomed(report: Report, now: datetime) -> None:
    """Delete the objects of DOOMED rows, many at once, and drop the rows of those that are surely gone. (A put
    that timed out may still land after its delete: replication/orphans.py finds what it leaves.)"""
    doomed = Replica.objects.filter(Q(check_at=None) | Q(check_at__lte=now), state=State.DOOMED)
    if not doomed.exists():
        return
    # Nothing to try, and no back-off to start, while a broker is away, or knows a later epoch than this database.
    readable = epoch.deletable()
    lock = epoch.lock()
    report.locked = lock.reason if lock else ""
    report.failed += doomed.exclude(broker__in=readable).count()
    last = 0
    while True:
        due = doomed.filter(broker__in=readable, pk__gt=last).select_related("broker", "segment")
        batch = list(due.order_by("pk")[:BATCH])
        if not batch:
            return
        last = batch[-1].pk
        running: list[tuple[Replica, Future[None]]] = [
            (r, transfer.pool(r.broker).submit(transfer.remove, r.broker, r.locator or r.key)) for r in batch
        ]
        gone: list[Replica] = []
        for replica, future in running:
            try:
                future.result()
            except BrokerError as error:
                note_failure(replica.broker_id, error)
                _again(replica, error.code, report)
            except Exception:
                # A row that always fails must not hold up the others.
                log.exception("deleting replica %s failed", replica.pk)
                _again(replica, "failed", report)
            else:
                gone.append(replica)
        reach("collect.deleted")
        _drop(gone, report)


def _drop(gone: Iterable[Replica], report: Report) -> None:
    rows = list(gone)
    with transaction.atomic():
        Replica.objects.filter(pk__in=[r.pk for r in rows], state=State.DOOMED).delete()
        per_content: dict[uuid.UUID, int] = {}
        for replica in rows:
            per_content[replica.segment.content_id] = per_content.get(replica.segment.content_id, 0) + 1
        Event.objects.bulk_create(
            [Event(kind="deleted", content=c, detail=f"{n} objects") for c, n in per_content.items()]
        )
    report.objects += len(rows)
    report.bytes += sum(r.segment.sealed_size for r in rows)


def _again(replica: Replica, why: str, report: Report) -> None:
    report.failed += 1
    wait = min(RETRY * 2 ** min(replica.attempts, 10), RETRY_MOST)
    Replica.objects.filter(pk=replica.pk, state=State.DOOMED).update(
        check_at=clock.now() + wait, attempts=min(replica.attempts + 1, 1000), reason=why[:50]
    )


def _drop_empty(report: Report, now: datetime, grace: timedelta) -> None:
    """Drop condemned contents that have no object left anywhere."""
    empty = due_contents(now, grace).exclude(segments__replicas__isnull=False)
    for pk in list(unreferenced(empty).values_list("pk", flat=True)):
        with transaction.atomic():
            if Replica.objects.filter(segment__content=pk).exists():
                continue
            Segment.objects.filter(content=pk).delete()
            dropped, _ = Content.objects.filter(pk=pk, state=Content.State.CONDEMNED).delete()
            if dropped:
                Event.objects.create(kind="collected", content=pk)
                report.contents += 1
