"""Scrub: existence is not health, so every stored byte is re-read and hashed within the scrub period."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from django.db.models import F, Q, QuerySet, Sum

from brokers import clock
from brokers.models import Broker
from replication import policy, suspects
from replication.models import Content, Replica

log = logging.getLogger(__name__)
State = Replica.State

# How often the scheduler runs a scrub, and how much faster than needed it goes, so that an outage of hours
# does not break the promise.
INTERVAL = timedelta(minutes=5)
MARGIN = 3.0
LEAST_BUDGET = 64 * 1024 * 1024
# What was proven this recently, as a part of the period, is left alone: a provider may bill what is read. What all
# becomes due at one moment is read in another 1 / MARGIN of the period, and so within it.
REST = 0.6
BATCH = 200


@dataclass
class Report:
    """Replicas and bytes that were read, and what became of them."""

    replicas: int = 0
    bytes: int = 0
    lost: int = 0
    unreachable: int = 0


def scrub(budget: int | None = None, *, everything: bool = False) -> Report:
    """Re-read and hash the replicas that were proven longest ago, up to `budget` bytes.

    Without a budget it takes this run's part of the period. With `everything` each replica is read now, however
    recently it was proven. What is found damaged or missing becomes due for the reconciler. Reads brokers only;
    safe to run many times at once."""
    report = Report()
    started = clock.now()
    period = timedelta(days=policy.current().scrub_days)
    due = _due().filter(
        Q(verified_at=None) | Q(verified_at__lte=started if everything else started - period * REST)
    )
    if budget is None and not everything:
        budget = _budget(period)
    for replica in _batches(due):
        if budget is not None and report.bytes >= budget:
            break
        before = replica.attempts
        try:
            became = suspects.verify(replica, replica.segment)
        except Exception:
            # A row that always fails must not hold up the others.
            log.exception("scrubbing replica %s failed", replica.pk)
            became = suspects.postpone(replica, "failed")
        report.replicas += 1
        report.bytes += replica.segment.sealed_size
        report.lost += became == State.LOST
        if became != State.LOST and Replica.objects.filter(pk=replica.pk, attempts__gt=before).exists():
            report.unreachable += 1
    return report


def _due() -> QuerySet[Replica]:
    readable = [b.pk for b in Broker.objects.all() if b.readable and not b.over_traffic]
    waits = Q(check_at__isnull=False, check_at__gt=clock.now())
    return (
        Replica.objects.filter(
            state__in=(State.STORED, State.SUSPECT),
            broker__in=readable,
            segment__content__state=Content.State.SEALED,
        )
        .exclude(waits)
        .select_related("segment", "broker")
        .order_by(F("verified_at").asc(nulls_first=True), "pk")
    )


def _batches(due: QuerySet[Replica]) -> Iterator[Replica]:
    """Every due replica once, in order, a batch at a time. What was looked at need not leave the set: the clock
    may stand still or step back meanwhile."""
    seen: set[int] = set()
    rest = due
    while batch := list(rest[:BATCH]):
        at, pk = batch[-1].verified_at, batch[-1].pk
        for replica in batch:
            if replica.pk not in seen:
                seen.add(replica.pk)
                yield replica
        if at is None:
            rest = due.filter(Q(verified_at=None, pk__gt=pk) | Q(verified_at__isnull=False))
        else:
            rest = due.filter(Q(verified_at=at, pk__gt=pk) | Q(verified_at__gt=at))


def _budget(period: timedelta) -> int:
    """Bytes of one scheduled run."""
    stored = _due().aggregate(total=Sum("segment__sealed_size"))["total"] or 0
    return max(LEAST_BUDGET, int(stored * MARGIN * (INTERVAL / period)))
