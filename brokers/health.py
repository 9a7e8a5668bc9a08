"""How each broker is doing: polls, and what follows from them.

A broker goes down with one bad poll and comes up with two good ones, so that one that flaps stays down. Whether
the place is the right one is told by its marker. A place that answers but holds nothing of ours is "blank":
after a dwell it is taken over again, and everything stored there before counts as lost (`adopted`). Everything
else is an outage, which is never a loss.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q

from brokers import clock, marker
from brokers.driver import StorageInfo
from brokers.errors import (
    BrokerError,
    Corrupt,
    InvalidKey,
    NotFound,
    OutOfSpace,
    RangeError,
    ReadOnly,
    TooLarge,
)
from brokers.layers import guard
from brokers.models import Broker, BrokerEvent, Health
from brokers.open import OpenBroker, open_broker

log = logging.getLogger(__name__)

QUICK = timedelta(seconds=15)
# A broker takes no new copies below the first, and again only above the second.
FULL_BELOW = 64 * 1024 * 1024
FULL_UNTIL = 128 * 1024 * 1024
GOOD_POLLS = 2
# While one process polls, the others leave the broker alone for so long.
LEASE = timedelta(seconds=60)
POLL_THREADS = 8

BLANK = "blank"
MARKER_MISSING = "marker_missing"
WRONG_MARKER = "wrong_marker"

OBJECTS_MISSING = "objects_missing"
INCIDENT_TOLD = timedelta(hours=1)

_RANK = {Health.OFFLINE: 0, Health.READ_ONLY: 1, Health.FULL: 1, Health.ONLINE: 2}


@dataclass(frozen=True)
class Observation:
    """What one look at a broker showed. `reason` is an error's code, or one of the three above."""

    health: Health
    reason: str = ""
    detail: str = ""
    latency_ms: float | None = None
    info: StorageInfo | None = None


def poll(broker_id: int) -> Broker:
    """Look at one broker now and write down what follows: -> the row as it is then.

    Outside any transaction. A disabled broker is left alone. When another process wrote its own poll meanwhile,
    that one stands. Never raises for what is wrong with the broker."""
    guard.check()
    broker = Broker.objects.get(pk=broker_id)
    if not broker.enabled:
        return broker
    return _settle(broker, _look(broker))


def poll_due() -> int:
    """Poll every enabled broker whose time has come, side by side, so that one that hangs delays no other: ->
    how many. Any number of processes may call it."""
    guard.check()
    now = clock.now()
    claimed = []
    for broker in Broker.objects.filter(Q(check_at=None) | Q(check_at__lte=now), enabled=True):
        mine = Broker.objects.filter(pk=broker.pk, check_at=broker.check_at, enabled=True)
        if mine.update(check_at=now + LEASE):
            claimed.append(broker)
    if not claimed:
        return 0
    with ThreadPoolExecutor(min(POLL_THREADS, len(claimed)), thread_name_prefix="poll") as pool:
        looks = [(broker, pool.submit(_observe_opened, *_open(broker))) for broker in claimed]
        for broker, look in looks:
            _settle(broker, look.result())
    return len(claimed)


def note_failure(broker_id: int, error: BrokerError) -> None:
    """The data path met an error: poll the broker at the next occasion. Errors that speak of one object only,
    and not of the place, change nothing."""
    if isinstance(error, Corrupt | RangeError | InvalidKey | TooLarge):
        return
    now = clock.now()
    Broker.objects.filter(pk=broker_id, enabled=True, check_at__gt=now).update(check_at=now)


def note_incident(broker_id: int, missing: int, of: int) -> None:
    """So many objects are missing at once that something happened to the broker rather than to them: told to the
    operator, in the journal and in the log, once an hour at most."""
    now = clock.now()
    told = BrokerEvent.objects.filter(broker=broker_id, kind=OBJECTS_MISSING, at__gt=now - INCIDENT_TOLD)
    if told.exists():
        return
    detail = f"{missing} objects of {of} are missing at once; this counts as an outage for the repair dwell"
    event = BrokerEvent.objects.create(broker_id=broker_id, at=now, kind=OBJECTS_MISSING, detail=detail)
    log.warning("broker %s: %s", event.broker.name, detail)


def adopted(broker: Broker) -> datetime | None:
    """The moment at which a blank place was last taken over: what was stored there before is lost. None when
    that never happened."""
    return broker.blank_adopted_at


# -- looking (no database) ---------------------------------------------------------------------------------


def _open(broker: Broker) -> tuple[Broker, OpenBroker | Observation]:
    try:
        return broker, open_broker(broker)
    except BrokerError as error:
        return broker, _offline(error)


def _observe_opened(broker: Broker, opened: OpenBroker | Observation) -> Observation:
    return opened if isinstance(opened, Observation) else observe(broker, opened)


def _look(broker: Broker) -> Observation:
    return _observe_opened(*_open(broker))


def _offline(error: BrokerError) -> Observation:
    return Observation(Health.OFFLINE, error.code, str(error)[:500])


def observe(broker: Broker, opened: OpenBroker) -> Observation:
    """Read the marker, try a write, ask for the capacity. No database, no change to the place beside the probe;
    nothing is written to a place that is not surely the right one."""
    began = clock.monotonic()
    try:
        found = opened.peek(broker.marker_locator or marker.MARKER_NAME)
    except NotFound:
        return _without_marker(opened)
    except BrokerError as error:
        return _offline(error)
    latency = round((clock.monotonic() - began) * 1000, 3)
    if found != marker.content(broker.marker):
        other = marker.parse(found)
        detail = f"the place belongs to broker {other}" if other else "the marker is damaged"
        return Observation(Health.OFFLINE, WRONG_MARKER, detail, latency)
    health, reason, detail = Health.ONLINE, "", ""
    try:
        opened.probe()
    except ReadOnly as error:
        health, reason, detail = Health.READ_ONLY, error.code, str(error)
    except OutOfSpace as error:
        health, reason, detail = Health.FULL, error.code, str(error)
    except BrokerError as error:
        return _offline(error)
    try:
        info = opened.info()
    except BrokerError as error:
        log.info("%s does not tell its capacity: %s", broker.name, error.code)
        return Observation(health, reason, detail[:500], latency, None)
    available = info["available"]
    enough = FULL_UNTIL if broker.health == Health.FULL else FULL_BELOW
    if health == Health.ONLINE and available is not None and available < enough:
        health, reason, detail = Health.FULL, OutOfSpace.code, f"{available} bytes are available"
    return Observation(health, reason, detail[:500], latency, info)


def _without_marker(opened: OpenBroker) -> Observation:
    try:
        if marker.has_objects(opened):
            return Observation(
                Health.OFFLINE,
                MARKER_MISSING,
                "objects are there, but the marker that names the broker is gone",
            )
    except BrokerError as error:
        return _offline(error)
    return Observation(Health.OFFLINE, BLANK, "the place answers, but holds nothing of this broker")


# -- writing down (no provider) ----------------------------------------------------------------------------


def _unchanged(broker: Broker) -> Any:
    """The row, if nothing that a poll decides upon has changed since it was read."""
    return Broker.objects.filter(
        pk=broker.pk,
        enabled=True,
        revision=broker.revision,
        health=broker.health,
        health_since=broker.health_since,
        checked_at=broker.checked_at,
        successes=broker.successes,
        failures=broker.failures,
    )


def _settle(broker: Broker, seen: Observation) -> Broker:
    if _blank_long_enough(broker, seen):
        return _adopt(broker)
    changes = _next(broker, seen)
    _write(broker, changes, _events(broker, changes))
    broker.refresh_from_db()
    return broker


def _write(broker: Broker, changes: dict[str, Any], events: Iterable[tuple[str, str]]) -> bool:
    now = clock.now()
    with transaction.atomic():
        if not _unchanged(broker).update(**changes):
            return False
        for kind, detail in events:
            BrokerEvent.objects.create(broker=broker, at=now, kind=kind, detail=detail[:500])
    for kind, detail in events:
        log.info("broker %s: %s %s", broker.name, kind, detail)
    return True


def _events(broker: Broker, changes: dict[str, Any]) -> list[tuple[str, str]]:
    health, reason = changes["health"], changes["health_reason"]
    if health == broker.health and (reason == broker.health_reason or health != Health.OFFLINE):
        return []
    detail = changes["health_detail"]
    return [(str(health), f"{reason}: {detail}" if reason and detail else reason)]


def _next(broker: Broker, seen: Observation) -> dict[str, Any]:
    """The row's new values. ONLINE or not known -> worse at once; worse -> better with the second good poll."""
    now = clock.now()
    current = Health(broker.health)
    failures = 0 if seen.health == Health.ONLINE else broker.failures + 1
    changes: dict[str, Any] = {
        "checked_at": now,
        "health": current,
        "health_reason": seen.reason,
        "health_detail": seen.detail,
        "successes": 0,
        "failures": failures,
        "check_at": now + _backoff(failures),
        "blank_since": (broker.blank_since or now) if seen.reason == BLANK else None,
    }
    if seen.latency_ms is not None:
        changes["latency_ms"] = seen.latency_ms
    if seen.info is not None:
        changes.update(seen.info, measured_at=now)
    if seen.reason == BLANK:
        changes["check_at"] = now + _quick()
    if current == seen.health:
        return changes
    if current != Health.UNKNOWN and _RANK[seen.health] > _RANK[current]:
        good = broker.successes + 1
        if good < GOOD_POLLS:
            changes.update(
                successes=good,
                health_reason=broker.health_reason,
                health_detail="it answers well again; one more good poll is needed",
                check_at=now + _quick(),
            )
            return changes
    changes.update(health=seen.health, health_since=now)
    return changes


def _interval() -> timedelta:
    return timedelta(seconds=settings.CLOUDSTORE_HEALTH_INTERVAL)


def _quick() -> timedelta:
    return min(QUICK, _interval())


def _backoff(failures: int) -> timedelta:
    if not failures:
        return _interval()
    return min(_quick() * 2 ** min(failures - 1, 16), _interval())


# -- blank places ------------------------------------------------------------------------------------------


def _blank_long_enough(broker: Broker, seen: Observation) -> bool:
    """Blank now, blank at an earlier poll, and all the time between."""
    dwell = timedelta(seconds=settings.CLOUDSTORE_BLANK_DWELL)
    return (
        seen.reason == BLANK
        and broker.health == Health.OFFLINE
        and broker.blank_since is not None
        and clock.now() - broker.blank_since >= dwell
    )


def _adopt(broker: Broker) -> Broker:
    """Take a blank place over. The row says so before the marker is written: after a crash between the two the
    place is still blank and is adopted again, and no replica counts that was there before."""
    now = clock.now()
    if not _write(broker, {"blank_adopted_at": now, "checked_at": now}, []):
        broker.refresh_from_db()
        return broker
    broker.refresh_from_db()
    try:
        opened = open_broker(broker)
        opened.prepare()
        locator = marker.write(opened, broker.marker)
        broker.marker_locator = locator
        seen = observe(broker, opened)
    except BrokerError as error:
        seen = _offline(error)
        locator = broker.marker_locator
    changes = _next(broker, seen)
    changes["marker_locator"] = locator
    events = []
    if seen.health != Health.OFFLINE:
        changes.update(
            health=seen.health,
            health_since=clock.now(),
            health_reason=seen.reason,
            health_detail=seen.detail,
            successes=0,
            check_at=clock.now() + _backoff(changes["failures"]),
        )
        events = [("blank_adopted", "the place was empty; what was stored there before counts as lost")]
    _write(broker, changes, [*events, *_events(broker, changes)])
    broker.refresh_from_db()
    return broker
