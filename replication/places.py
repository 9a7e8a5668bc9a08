"""What happened to a broker's whole place: it came back empty, or it lost its marker.

Both are told by evidence that only the right place can give, and both end in rows that the reconciler repairs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta

from django.conf import settings
from django.db import transaction

from brokers import clock
from brokers.errors import BrokerError
from brokers.health import MARKER_MISSING
from brokers.models import Broker, Health
from brokers.names import OBJECT_PREFIX
from brokers.services import write_marker
from replication import orphans, transfer
from replication.models import Event, Replica, Segment

log = logging.getLogger(__name__)
State = Replica.State
WINDOW = 500


def windows(ids: list[int], size: int = WINDOW) -> Iterator[list[int]]:
    """`ids` in parts that every database takes as parameters."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def settle() -> None:
    """Look at every broker whose place changed as a whole. Idempotent; cheap when there is none."""
    for broker in Broker.objects.exclude(blank_adopted_at=None):
        lose_blank(broker)
    for broker in Broker.objects.filter(enabled=True, health=Health.OFFLINE, health_reason=MARKER_MISSING):
        try:
            recognise(broker)
        except Exception:
            # One place that always fails must not hold up the repair of all others.
            log.exception("looking at the place of %s failed", broker)


def lose_blank(broker: Broker) -> int:
    """STORED and SUSPECT -> LOST for what a broker held before its place was found blank and adopted anew: the
    one case in which a whole broker's loss is proven. Idempotent; -> how many."""
    gone = Replica.objects.filter(
        broker=broker, state__in=(State.STORED, State.SUSPECT), stored_at__lt=broker.blank_adopted_at
    )
    with transaction.atomic():
        segments = list(gone.values_list("segment_id", flat=True))
        if not segments:
            return 0
        lost = gone.update(state=State.LOST, reason="blank", check_at=None, attempts=0)
        _due(segments)
        Event.objects.create(kind="lost", broker=broker, detail=f"{lost} replicas: the place came back empty")
    return lost


def recognise(broker: Broker) -> bool:
    """A place without marker whose objects are all this broker's own is this broker's: their keys are random, so
    no other place has them. It came back empty and was written to before a poll saw that, or somebody deleted the
    marker. After the dwell it is marked again, and what it lost is looked at one by one. A place with anything
    unknown stays OFFLINE for an operator. -> whether it was marked."""
    dwell = timedelta(seconds=settings.CLOUDSTORE_BLANK_DWELL)
    if clock.now() - broker.health_since < dwell:
        return False
    try:
        there = _all_known(broker)
        if not there:
            return False
        _suspect_others(broker, there)
        # Last: after a crash before this the place is still without marker, and is looked at again.
        write_marker(broker.pk)
    except BrokerError as error:
        log.info("the place of %s was not recognised: %s", broker, error.code)
        return False
    log.info("the place of %s had lost its marker; its objects prove it, and it is marked again", broker)
    return True


def _all_known(broker: Broker) -> set[str]:
    """The locators of a place that holds nothing but this broker's objects; empty when there is anything else,
    or nothing."""
    there: set[str] = set()
    window: list[tuple[str, int]] = []
    for found in transfer.listing(broker, OBJECT_PREFIX):
        there.add(found.path)
        window.append((found.path, found.size))
        if len(window) == WINDOW:
            if orphans.unknown(broker, window):
                return set()
            window = []
    return set() if orphans.unknown(broker, window) else there


def _suspect_others(broker: Broker, there: set[str]) -> None:
    """STORED -> SUSPECT for what a complete listing did not show. The listing alone is no proof: each is read
    once more before it counts as lost."""
    now = clock.now()
    rows = Replica.objects.filter(broker=broker, state=State.STORED).values_list(
        "pk", "locator", "segment_id"
    )
    missing = [(pk, segment) for pk, locator, segment in rows.iterator() if locator not in there]
    for part in windows([pk for pk, _segment in missing]):
        with transaction.atomic():
            # `attempts` says that the first look has been taken (replication/suspects.py).
            Replica.objects.filter(pk__in=part, state=State.STORED).update(
                state=State.SUSPECT, reason="not_found", check_at=now, attempts=1
            )
    _due([segment for _pk, segment in missing])


def _due(segments: list[int]) -> None:
    now = clock.now()
    for part in windows(segments):
        Segment.objects.filter(pk__in=part).update(check_at=now, blocked="", attempts=0)
