"""Brokers that are usable but not well: slow against their own past, or failing often.

Judged from the history of all processes (brokers/history.py), every half minute by a worker. A verdict must hold for
a while before the row changes, a longer one for the better, so that a broker that flaps changes a few times an hour
at most. A degraded broker is read last and gets new copies only where no other can take them.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import QuerySet

from brokers import clock, history
from brokers.history import Counts
from brokers.models import Broker, BrokerEvent, Health

log = logging.getLogger(__name__)

WINDOW = timedelta(minutes=15)
# How long the history must say so before a broker counts as degraded, and as well again.
ENTER_DWELL = timedelta(minutes=5)
LEAVE_DWELL = timedelta(minutes=15)

ERRORS, SLOW = "errors", "slow"
# Errors: at least so many calls in the window, and this part of them failed; well again below the second.
LEAST_CALLS = 20
ERROR_PART = 0.10
ERROR_PART_WELL = 0.05
# Slow: so many times what the last week took, and longer than so many seconds; well again below the second factor.
FACTOR = 3.0
FACTOR_WELL = 2.0
BASELINE = timedelta(days=7)
# operation -> (percentile, least calls in the window, least calls in the past, least seconds). `peek` reads the
# marker at each poll: few calls, but always the same bytes.
SPEEDS = {
    "get": (0.95, 20, 200, 1.0),
    "put": (0.95, 20, 200, 1.0),
    "peek": (0.5, 3, 50, 0.5),
}

Verdict = tuple[str, str]  # reason, words; ("", "") for well


def watch() -> int:
    """Judge every enabled broker: -> how many changed. Any number of processes may; outside any transaction."""
    brokers = list(Broker.objects.filter(enabled=True).exclude(health=Health.OFFLINE))
    recent = history.recent([broker.pk for broker in brokers], WINDOW)
    return sum(_settle(broker, judge(broker, recent[broker.pk])) for broker in brokers)


def judge(broker: Broker, seen: Counts) -> Verdict | None:
    """What the window says of a broker; None when it says too little to change anything."""
    part, factor = (ERROR_PART_WELL, FACTOR_WELL) if broker.degraded else (ERROR_PART, FACTOR)
    least = 1 if broker.degraded else LEAST_CALLS
    if not seen.calls:
        return None
    if seen.calls >= least and seen.error_rate >= part:
        return ERRORS, f"{seen.failures} of {seen.calls} calls failed within {_minutes(WINDOW)} minutes"
    suspicious = [op for op in SPEEDS if _is_slow(seen, op, None, factor)]
    if suspicious:
        past = history.between(broker.pk, clock.now() - BASELINE, clock.now() - WINDOW)
        for operation in suspicious:
            if _is_slow(seen, operation, past, factor):
                part = SPEEDS[operation][0]
                now, before = seen.quantile(operation, part), past.quantile(operation, part)
                return SLOW, f"{operation} takes {now:.1f} s where it took {before:.2f} s in the week before"
    return "", ""


def _is_slow(seen: Counts, operation: str, past: Counts | None, factor: float) -> bool:
    """Slow by its own seconds alone when no past is given."""
    part, least, least_past, seconds = SPEEDS[operation]
    now = seen.quantile(operation, part)
    if now is None or seen.count(operation) < least or now < seconds:
        return False
    if past is None:
        return True
    before = past.quantile(operation, part)
    return before is not None and past.count(operation) >= least_past and now >= factor * before


def _minutes(span: timedelta) -> int:
    return int(span.total_seconds() // 60)


def _settle(broker: Broker, verdict: Verdict | None) -> bool:
    """Write down what follows; the verdict must have stood for its dwell."""
    if verdict is None:
        return False
    now = clock.now()
    reason, words = verdict
    agrees = bool(reason) == broker.degraded
    dwell = LEAVE_DWELL if broker.degraded else ENTER_DWELL
    # Another process may judge at the same moment: of two that read the same row one writes.
    mine = Broker.objects.filter(
        pk=broker.pk, degraded_since=broker.degraded_since, turning_since=broker.turning_since
    )
    if agrees:
        if broker.turning_since is not None:
            mine.update(turning_since=None)
        return False
    if broker.turning_since is None:
        mine.update(turning_since=now)
        return False
    if now - broker.turning_since < dwell:
        return False
    return _change(broker, mine, reason, words, now)


def _change(broker: Broker, mine: QuerySet[Broker], reason: str, words: str, now: datetime) -> bool:
    with transaction.atomic():
        if not mine.update(
            degraded_since=now if reason else None,
            degraded_reason=reason,
            degraded_detail=words[:200],
            turning_since=None,
        ):
            return False
        kind = "degraded" if reason else "well_again"
        BrokerEvent.objects.create(
            broker=broker, at=now, kind=kind, detail=f"{reason}: {words}" if reason else ""
        )
    log.info("broker %s: %s %s", broker.name, kind, words)
    return True
