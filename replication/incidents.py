"""A broker that lost sight of many objects at once: how it comes back.

It is offline with all its replicas (brokers/health.py), so that after the repair dwell copies are made elsewhere, as
in any outage. Every few minutes a sample of what it should hold is asked for; when that is there the broker returns.
When it stays away an operator decides.
"""

from __future__ import annotations

import logging

from django.db import transaction
from django.db.models import Max, Min, QuerySet

from brokers import clock, entropy, health
from brokers.errors import BrokerError, NotFound, Unauthorized
from brokers.models import Broker
from replication import transfer
from replication.models import Replica, Segment
from replication.places import windows

log = logging.getLogger(__name__)
State = Replica.State

# Objects of one sample. One of them may be missing: single losses happen beside an incident.
SAMPLE = 20
MISSING = 1


def settle() -> int:
    """Look at a sample of every broker whose turn it is: -> how many returned. Every sweep calls it; cheap when
    there is no incident. Outside any transaction; any number of processes may."""
    returned = 0
    for broker in health.incident_due():
        try:
            if is_back(broker):
                end(broker.pk)
                returned += 1
        except BrokerError as error:
            log.info("no sample of %s: %s", broker, error.code)
    return returned


def is_back(broker: Broker) -> bool:
    """Whether a random sample of what the broker should hold is there, half of it from what was missing. Raises
    BrokerError when it does not answer."""
    rows = Replica.objects.filter(broker=broker).exclude(locator="")
    doubted = rows.filter(state=State.SUSPECT) | rows.filter(
        state=State.STORED, reason__in=(NotFound.code, Unauthorized.code)
    )
    others = rows.filter(state=State.STORED, reason="")
    sample = _some(doubted, SAMPLE // 2)
    sample += _some(others, SAMPLE - len(sample))
    missing = sum(not transfer.has(broker, locator) for locator in sample)
    return bool(sample) and missing <= (MISSING if len(sample) == SAMPLE else 0)


def _some(rows: QuerySet[Replica], count: int) -> list[str]:
    """Up to `count` locators drawn at random, without reading all rows."""
    ends = rows.aggregate(low=Min("pk"), high=Max("pk"))
    if ends["low"] is None:
        return []
    found: dict[int, str] = {}
    for _ in range(4 * count):
        if len(found) == count:
            break
        at = ends["low"] + int(entropy.uniform() * (ends["high"] - ends["low"] + 1))
        row = rows.filter(pk__gte=at).order_by("pk").values_list("pk", "locator").first()
        if row is not None:
            found.setdefault(*row)
    return list(found.values())


def end(broker_id: int) -> Broker:
    """The broker's objects are there again: it returns, and what was doubted is looked at. Outside any
    transaction. Idempotent."""
    broker = health.end_incident(broker_id)
    _look_again(broker_id)
    return broker


def confirm(broker_id: int) -> Broker:
    """An operator says that what is missing is lost: the broker returns, and what it does not have is replaced.
    Outside any transaction. Idempotent."""
    broker = health.confirm_loss(broker_id)
    _look_again(broker_id)
    return broker


def _look_again(broker_id: int) -> None:
    now = clock.now()
    doubted = Replica.objects.filter(broker=broker_id, state__in=(State.SUSPECT, State.STORED))
    rows = list(doubted.filter(check_at__gt=now).values_list("pk", "segment_id"))
    for part in windows([pk for pk, _segment in rows]):
        Replica.objects.filter(pk__in=part).update(check_at=now)
    for part in windows([segment for _pk, segment in rows]):
        with transaction.atomic():
            Segment.objects.filter(pk__in=part).update(check_at=now, blocked="", attempts=0)
