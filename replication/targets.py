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


def target(broker: Broker, now: datetime, *, background: bool = False) -> Target:
    """`background`: for work that nobody waits for, which leaves a broker alone whose traffic is used up."""
    rests = background and broker.over_traffic
    since = broker.offline_since
    counts = broker.enabled and (since is None or now - since < repair_dwell())
    return Target(
        id=broker.pk,
        domain=broker.domain,
        readable=broker.readable and not rests,
        writable=broker.writable and not rests,
        counts=counts,
        available=broker.room,
        weight=broker.weight,
        leaving=broker.draining,
        reluctant=broker.reluctant,
    )


_ALL = Query(lambda: Broker.objects.order_by().values_list(*columns(Broker)))


def known() -> dict[int, Broker]:
    """All brokers as they are now, by id (one query)."""
    return {broker.pk: broker for row in _ALL() for broker in instances(row, Broker)}


def load(brokers: Iterable[Broker] | None = None, *, background: bool = False) -> dict[int, Target]:
    """All brokers as targets now, by id (one query when `brokers` is not given)."""
    now = clock.now()
    rows = Broker.objects.all() if brokers is None else brokers
    return {b.pk: target(b, now, background=background) for b in rows}


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
        t = target(b, now, background=True)
        facts.append(f"{t.id}:{t.domain}:{t.readable}:{t.writable}:{t.counts}:{t.weight > 0}:{t.leaving}")
    return hashlib.sha256("|".join(facts).encode()).hexdigest()
