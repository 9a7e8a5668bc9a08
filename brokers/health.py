"""How each broker is doing: polls, and what follows from them.

A broker goes down with one bad poll and comes up with two good ones, so that one that flaps stays down. Whether
the place is the right one is told by its marker. A place that answers but holds nothing of ours is "blank":
after a dwell it is taken over again, and everything stored there before counts as lost (`adopted`). Everything
else is an outage, which is never a loss: so many objects missing or refused at once are one too (an incident).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q

from brokers import clock, history, marker
from brokers.driver import StorageInfo
from brokers.errors import (
    BrokerError,
    Corrupt,
    InvalidKey,
    NotFound,
    OutOfSpace,
    OverLimit,
    RangeError,
    ReadOnly,
    TooLarge,
)
from brokers.layers import guard
from brokers.models import FULL_MARGIN, Broker, BrokerEvent, Health
from brokers.open import OpenBroker, open_broker
from brokers.state import OBJECTS_MISSING

log = logging.getLogger(__name__)

QUICK = timedelta(seconds=15)
GOOD_POLLS = 2
# While one process polls, the others leave the broker alone for so long.
LEASE = timedelta(seconds=60)
POLL_THREADS = 8

BLANK = "blank"
MARKER_MISSING = "marker_missing"
WRONG_MARKER = "wrong_marker"

# How often a sample of a broker's objects is looked at during an incident.
INCIDENT_LOOK = timedelta(minutes=5)
# For so long after an operator's confirmation what is missing is believed, however much it is.
INCIDENT_CONFIRMED = timedelta(days=7)

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
    if isinstance(error, Corrupt | RangeError | InvalidKey | TooLarge | OverLimit):
        return
    now = clock.now()
    Broker.objects.filter(pk=broker_id, enabled=True, check_at__gt=now).update(check_at=now)


def note_incident(broker_id: int, missing: int, of: int, kind: str = OBJECTS_MISSING) -> bool:
    """So many objects are missing (or refused: `state.OBJECTS_REFUSED`) at once that something happened to the broker
    rather than to them: it is OFFLINE with that reason, and its replicas stay, until a sample of its objects is
    there again (`end_incident`) or an operator confirms the loss (`confirm_loss`). Told once, in the journal and in
    the log. Idempotent; True when this call did it."""
    now = clock.now()
    how = "are missing" if kind == OBJECTS_MISSING else "are refused"
    detail = f"{missing} objects of {of} {how} at once; this is an outage until they are back or you confirm"
    with transaction.atomic():
        mine = Broker.objects.filter(pk=broker_id, enabled=True, incident="")
        if not mine.update(
            incident=kind, incident_since=now, incident_look_at=now + INCIDENT_LOOK,
            health=Health.OFFLINE, health_reason=kind, health_detail=detail, health_since=now, successes=0,
        ):  # fmt: skip
            return False
        event = BrokerEvent.objects.create(broker_id=broker_id, at=now, kind=kind, detail=detail)
    log.warning("broker %s: %s", event.broker.name, detail)
    return True


def incident_due() -> list[Broker]:
    """Brokers with an incident of which a sample is to be looked at now. Each is given to one caller."""
    now = clock.now()
    due = []
    for broker in Broker.objects.filter(enabled=True, incident_look_at__lte=now).exclude(incident=""):
        mine = Broker.objects.filter(pk=broker.pk, incident_look_at=broker.incident_look_at)
        if mine.update(incident_look_at=now + INCIDENT_LOOK):
            due.append(broker)
    return due


def end_incident(broker_id: int) -> Broker:
    """A sample of the objects is there again: the broker returns by its next good polls. Idempotent."""
    return _end_incident(broker_id, "incident_ended", "a sample of its objects is there again")


def confirm_loss(broker_id: int) -> Broker:
    """An operator says that what is missing is lost: the broker returns by its next good polls, and each object
    that it does not have counts as lost as soon as it is looked at, however many they are. Idempotent; does nothing
    without an incident."""
    now = clock.now()
    return _end_incident(
        broker_id, "loss_confirmed", "what is missing counts as lost", incident_confirmed_at=now
    )


def _end_incident(broker_id: int, kind: str, detail: str, **changes: Any) -> Broker:
    guard.check()
    now = clock.now()
    with transaction.atomic():
        mine = Broker.objects.filter(pk=broker_id).exclude(incident="")
        if mine.update(
            incident="", incident_since=None, incident_look_at=None, check_at=now, successes=0, **changes
        ):
            BrokerEvent.objects.create(broker_id=broker_id, at=now, kind=kind, detail=detail)
            ended = True
        else:
            ended = False
    return poll(broker_id) if ended else Broker.objects.get(pk=broker_id)


def loss_confirmed(broker: Broker) -> bool:
    """Whether an operator said lately that what is missing there is lost."""
    at = broker.incident_confirmed_at
    return at is not None and clock.now() - at < INCIDENT_CONFIRMED


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
    if health == Health.ONLINE and (words := _lack_of_room(broker, info)):
        health, reason, detail = Health.FULL, OutOfSpace.code, words
    return Observation(health, reason, detail[:500], latency, info)


def _lack_of_room(broker: Broker, info: StorageInfo) -> str:
    """Why there is too little room for new copies; empty when there is enough. A full broker needs a margin more
    than one that is not."""
    now = Broker(
        available=info["available"], used=info["used"], capacity_limit=broker.capacity_limit, held=broker.held
    )
    unused = now.unused
    enough = broker.reserve + (FULL_MARGIN if broker.health == Health.FULL else 0)
    if unused is None or unused >= enough:
        return ""
    if now.available is not None and now.available == unused:
        return f"{unused} bytes are available"
    return f"{unused} bytes are left of the {broker.capacity_limit} that it may hold"


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
        incident=broker.incident,
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
    """The row's new values. ONLINE or not known -> worse at once; worse -> better with the second good poll.
    While there is an incident a place that answers is OFFLINE all the same."""
    now = clock.now()
    if seen.info is not None:
        history.note_capacity(broker.pk, seen.info["used"], seen.info["available"])
    if broker.incident and seen.health != Health.OFFLINE:
        detail = broker.health_detail if broker.health_reason == broker.incident else ""
        seen = replace(seen, health=Health.OFFLINE, reason=broker.incident, detail=detail)
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
        # What was there is lost for certain now.
        changes.update(incident="", incident_since=None, incident_look_at=None)
        events = [("blank_adopted", "the place was empty; what was stored there before counts as lost")]
    _write(broker, changes, [*events, *_events(broker, changes)])
    broker.refresh_from_db()
    return broker
