"""Brokers as placement sees them: the bridge from rows to `placement.Target`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime, timedelta

from django.conf import settings

from brokers import clock
from brokers.models import Broker, Health
from prepared.query import Query, columns, instances
from replication.models import Policy
from replication.placement import Target


def repair_dwell() -> timedelta:
    """How long an outage may last before copies are made elsewhere."""
    dwell: timedelta = settings.CLOUDSTORE_REPAIR_DWELL
    return dwell


def trim_dwell() -> timedelta:
    """How long a copy too many is kept after the copies or a broker changed."""
    dwell: timedelta = settings.CLOUDSTORE_TRIM_DWELL
    return dwell


def target(broker: Broker, now: datetime) -> Target:
    since = broker.offline_since
    counts = broker.enabled and (since is None or now - since < repair_dwell())
    return Target(
        id=broker.pk,
        domain=broker.domain,
        readable=broker.readable,
        writable=broker.writable,
        counts=counts,
        available=broker.available,
        weight=broker.weight,
        leaving=broker.draining,
    )


_ALL = Query(lambda: Broker.objects.order_by().values_list(*columns(Broker)))


def known() -> dict[int, Broker]:
    """All brokers as they are now, by id (one query)."""
    return {broker.pk: broker for row in _ALL() for broker in instances(row, Broker)}


def load(brokers: Iterable[Broker] | None = None) -> dict[int, Target]:
    """All brokers as targets now, by id (one query when `brokers` is not given)."""
    now = clock.now()
    return {b.pk: target(b, now) for b in (Broker.objects.all() if brokers is None else brokers)}


def trim_after(brokers: Iterable[Broker], policy: Policy) -> datetime:
    """From when on a copy too many may go: the dwell after the last change of the copies, or of the health of
    one of the brokers concerned."""
    changes = [policy.copies_changed_at]
    changes += [b.health_since for b in brokers if b.health in (Health.ONLINE, Health.OFFLINE)]
    return max(changes) + trim_dwell()


def fingerprint(brokers: Iterable[Broker], policy: Policy) -> str:
    """Changes whenever the answer to "which segments need work" may have changed for many at once."""
    now = clock.now()
    facts = [f"{policy.copies}"]
    for b in sorted(brokers, key=lambda b: b.pk):
        t = target(b, now)
        facts.append(f"{t.id}:{t.domain}:{t.readable}:{t.writable}:{t.counts}:{t.weight > 0}:{t.leaving}")
    return hashlib.sha256("|".join(facts).encode()).hexdigest()
