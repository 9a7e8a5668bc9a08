"""Doubt about one replica: from the read that raised it to the proof, one way or the other.

A missing object is believed at once when it stands alone. When many objects of one broker are missing at the
same time, or the broker refuses many of them, something happened to the broker rather than to the objects: it is
offline with its replicas, until a sample of its objects is there again or an operator confirms the loss
(replication/incidents.py).
"""

from __future__ import annotations

import logging
from datetime import timedelta

from django.db import transaction
from django.db.models import QuerySet

from brokers import clock
from brokers.errors import BrokerError, Corrupt, NotFound, RangeError, Unauthorized
from brokers.failpoint import reach
from brokers.health import loss_confirmed, note_failure, note_incident, poll
from brokers.models import Broker
from brokers.state import OBJECTS_MISSING, OBJECTS_REFUSED
from replication import targets, tasks, transfer
from replication.models import Event, Replica, Segment

log = logging.getLogger(__name__)
State = Replica.State

# So many missing at once, and at least this part of the broker's replicas, are an incident of the broker.
INCIDENT_COUNT = 20
INCIDENT_PART = 0.05
# What was believed missing so lately counts towards that, although it may be replaced by now.
INCIDENT_WINDOW = timedelta(hours=1)
# A poll so young proves that the broker's place is the right one, for bytes that are there and damaged.
POLL_AGE = timedelta(seconds=15)
RETRY = timedelta(seconds=30)
RETRY_MOST = timedelta(minutes=30)


def suspect(replica_id: int, reason: str) -> bool:
    """STORED -> SUSPECT, due for a look at once. Idempotent; True when this call did it."""
    now = clock.now()
    with transaction.atomic():
        changed = Replica.objects.filter(pk=replica_id, state=State.STORED).update(
            state=State.SUSPECT, reason=reason, check_at=now, attempts=0
        )
        if changed:
            rows = Segment.objects.filter(replicas=replica_id)
            rows.update(check_at=now, blocked="", attempts=0)
            ids = list(rows.values_list("pk", flat=True))
    if changed:
        log.info("replica %s is suspect: %s", replica_id, reason)
        for pk in ids:
            tasks.hint_segment(pk)
    return bool(changed)


def verify(replica: Replica, segment: Segment) -> str:
    """Re-read one replica whole and settle its state: -> the state it has now.

    Proven: STORED with a new `verified_at`. Proven otherwise: LOST. No answer: its state stays, and the next
    look moves away (an outage is never a loss). Outside any transaction; safe to repeat."""
    broker = replica.broker
    try:
        transfer.fetch_whole(broker, replica.locator or replica.key, segment.sealed_size, segment.checksum)
    except (NotFound, Corrupt, RangeError) as error:
        return _disproven(replica, error)
    except BrokerError as error:
        note_failure(broker.pk, error)
        state = postpone(replica, error.code)
        if isinstance(error, Unauthorized):
            _refused(replica)
        return state
    now = clock.now()
    Replica.objects.filter(pk=replica.pk, state__in=(State.STORED, State.SUSPECT, State.LOST)).update(
        state=State.STORED, reason="", verified_at=now, check_at=None, attempts=0
    )
    return State.STORED


def _disproven(replica: Replica, error: BrokerError) -> str:
    """The broker answered, and the bytes are not there. Believe it when the broker is surely the right one."""
    now = clock.now()
    if isinstance(error, NotFound):
        dwell_over = replica.attempts > 0 and replica.reason == NotFound.code
        if not dwell_over and _incident(replica):
            note_failure(replica.broker_id, error)
            return postpone(replica, error.code, targets.repair_dwell())
    broker = Broker.objects.get(pk=replica.broker_id)
    # A place may have gone between the last poll and this read: what is missing is believed only when the place
    # has shown its marker since.
    if isinstance(error, NotFound) or broker.checked_at is None or now - broker.checked_at > POLL_AGE:
        broker = poll(broker.pk)
    if not broker.readable:
        return postpone(replica, error.code)
    reach("suspects.disproven")
    with transaction.atomic():
        changed = Replica.objects.filter(pk=replica.pk, state__in=(State.STORED, State.SUSPECT)).update(
            state=State.LOST, reason=error.code, check_at=now + RETRY_MOST, attempts=0
        )
        if changed:
            Event.objects.create(
                kind="lost", content=replica.segment.content_id, broker_id=broker.pk, detail=error.code
            )
            Segment.objects.filter(pk=replica.segment_id).update(check_at=now, blocked="", attempts=0)
        else:
            Replica.objects.filter(pk=replica.pk, state=State.LOST).update(check_at=now + RETRY_MOST)
    if changed:
        log.info("replica %s on %s is lost: %s", replica.pk, broker.name, error.code)
    return State.LOST


def _incident(replica: Replica) -> bool:
    """Whether so many objects of the broker are missing at once, or were within the last hour, that it is the
    broker's incident. Then the broker is offline, and the operator is told."""
    if loss_confirmed(replica.broker):
        return False
    of_broker = Replica.objects.filter(broker=replica.broker_id)
    waiting = of_broker.filter(state=State.SUSPECT, reason=NotFound.code).exclude(pk=replica.pk).count()
    believed = Event.objects.filter(
        kind="lost", broker=replica.broker_id, detail=NotFound.code, at__gt=clock.now() - INCIDENT_WINDOW
    )
    missing = waiting + believed.count()
    stored = of_broker.filter(state=State.STORED)
    if not _many(missing, stored):
        return False
    note_incident(replica.broker_id, missing, stored.count() + missing, OBJECTS_MISSING)
    return True


def _refused(replica: Replica) -> None:
    """One more object that its broker refuses to give, though it gives the marker (or a poll would say so)."""
    stored = Replica.objects.filter(broker=replica.broker_id, state__in=(State.STORED, State.SUSPECT))
    refused = stored.filter(reason=Unauthorized.code, check_at__gt=clock.now()).count()
    if _many(refused, stored.exclude(reason=Unauthorized.code)):
        note_incident(replica.broker_id, refused, stored.count(), OBJECTS_REFUSED)


def _many(bad: int, others: QuerySet[Replica]) -> bool:
    return bad >= INCIDENT_COUNT and bad >= INCIDENT_PART * (others.count() + bad)


def postpone(replica: Replica, reason: str, wait: timedelta | None = None) -> str:
    """Look again later. A STORED replica becomes SUSPECT only for what speaks of the object itself."""
    about_object = reason in (NotFound.code, Corrupt.code, RangeError.code)
    state = State.SUSPECT if replica.state == State.STORED and about_object else State(replica.state)
    later = clock.now() + (wait or min(RETRY * 2 ** min(replica.attempts, 10), RETRY_MOST))
    with transaction.atomic():
        Replica.objects.filter(pk=replica.pk, state=replica.state).update(
            state=state, reason=reason, check_at=later, attempts=replica.attempts + 1
        )
        if state == State.SUSPECT:
            Segment.objects.filter(pk=replica.segment_id, check_at__isnull=True).update(check_at=later)
    return state
