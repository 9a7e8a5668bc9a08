"""The epoch: tells a database that was put back from an older one before anything is deleted by its word.

The number in the database is raised every few minutes; it is committed first, then told to every broker. So a broker
never knows a higher number than the database, unless the database is older than what was done with it. Then deletion
is locked until an operator confirms: uploads, downloads and repair go on, and no object goes.
"""

from __future__ import annotations

import logging
import re
import weakref
from datetime import timedelta

from django.db import transaction
from django.db.models import F

from brokers import clock
from brokers.errors import BrokerError
from brokers.failpoint import reach
from brokers.health import note_failure
from brokers.models import Broker, Health
from brokers.names import META_PREFIX
from replication import transfer
from replication.models import Epoch, Event

log = logging.getLogger(__name__)

# How long a look at a broker is believed, in seconds.
BELIEVED = 300.0
TOLD_AGAIN = timedelta(hours=1)
_NAME = re.compile(re.escape(META_PREFIX) + r"epoch-([0-9]{12})\Z")
TEXT = b"CloudStore's epoch: the number in this object's name. Do not change or remove it.\n"

# What was seen through an open broker, and when: a process that starts, or connects anew, looks again.
_seen: weakref.WeakKeyDictionary[object, tuple[float, int]] = weakref.WeakKeyDictionary()
_told_at: float | None = None


def name_of(number: int) -> str:
    return f"{META_PREFIX}epoch-{number:012d}"


def current() -> Epoch:
    """The row now; made at first use."""
    found = Epoch.objects.filter(pk=1).first()
    return found or Epoch.objects.get_or_create(pk=1)[0]


def lock() -> Epoch | None:
    """The row while deletion is locked, else None."""
    return Epoch.objects.filter(pk=1, locked_at__isnull=False).first()


def on_broker(broker: Broker) -> dict[int, str]:
    """Every epoch that a broker was told of: number -> locator. Raises BrokerError."""
    found = {}
    for entry in transfer.listing(broker, f"{META_PREFIX}epoch-"):
        match = _NAME.search(entry.path)
        if match:
            found[int(match[1])] = entry.path
    return found


def _highest(broker: Broker, *, fresh: bool) -> int:
    connection = transfer.connection(broker)
    known = _seen.get(connection)
    if not fresh and known is not None and 0 <= clock.monotonic() - known[0] < BELIEVED:
        return known[1]
    number = max(on_broker(broker), default=0)
    _seen[connection] = (clock.monotonic(), number)
    return number


def deletable(*, fresh: bool = False, quiet: bool = False) -> set[int]:
    """The brokers from which objects may be deleted now: those that answer, when none of them has heard of a
    later epoch than the database. Empty while deletion is locked; then the log says so, unless `quiet`. Outside any
    transaction."""
    checked: set[int] = set()
    highest = 0
    for broker in Broker.objects.all():
        if not broker.readable:
            continue
        try:
            highest = max(highest, _highest(broker, fresh=fresh))
        except BrokerError as error:
            note_failure(broker.pk, error)
            continue
        checked.add(broker.pk)
    # Read after the brokers: the number is committed before any of them is told.
    row = current()
    if row.locked_at is None and highest > row.number:
        row = lock_now(
            highest,
            f"a broker was told of epoch {highest}, and this database is at {row.number}: it is an older one",
        )
    if row.locked_at is not None:
        if not quiet:
            _tell(row)
        return set()
    return checked


def lock_now(seen: int, reason: str) -> Epoch:
    """Lock deletion until `confirm`. Idempotent: the first reason stays."""
    current()
    with transaction.atomic():
        if Epoch.objects.filter(pk=1, locked_at=None).update(locked_at=clock.now(), reason=reason, seen=seen):
            Event.objects.create(kind="deletion locked", detail=reason[:300])
    return current()


def _tell(row: Epoch) -> None:
    """Say it in the log, once an hour."""
    global _told_at
    now = clock.monotonic()
    if _told_at is None or not 0 <= now - _told_at < TOLD_AGAIN.total_seconds():
        _told_at = now
        log.warning("deletion is locked: %s. See manage.py epoch_confirm --dry-run", row.reason)


def advance() -> int | None:
    """Raise the epoch and tell every broker that takes writes: -> the number, None while deletion is locked.
    Any number of processes may call it. Outside any transaction."""
    deletable(fresh=True)
    before = current()
    if before.locked_at is not None:
        return None
    mine = Epoch.objects.filter(pk=1, number=before.number, locked_at=None)
    if mine.update(number=F("number") + 1, raised_at=clock.now()):
        reach("epoch.raised")
        spread(before.number + 1)
    return current().number


def spread(number: int) -> None:
    """Tell every broker that takes writes of a number that is committed, and drop the lower ones there."""
    for broker in Broker.objects.filter(enabled=True, health=Health.ONLINE):
        try:
            transfer.put_small(broker, name_of(number), TEXT)
            for lower, locator in on_broker(broker).items():
                if lower < number:
                    transfer.remove(broker, locator)
        except BrokerError as error:
            note_failure(broker.pk, error)
            log.info("%s was not told of epoch %s: %s", broker, number, error.code)


def confirm() -> Epoch:
    """Accept this database as the truth: the number goes above all that a broker knows, and deletion is allowed
    again. Call it inside the transaction that audits it, then `spread` the number. Idempotent."""
    row = Epoch.objects.select_for_update().get(pk=current().pk)
    if row.locked_at is not None:
        Event.objects.create(kind="epoch confirmed", detail=row.reason)
        row.number = max(row.number, row.seen) + 1
        row.raised_at, row.locked_at, row.reason = clock.now(), None, ""
        row.save()
    return row
