"""Objects under our prefix and with a name of ours that no row knows: noted when seen, deleted only when seen again
long after, and never while one is the last copy of something that the database knows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from django.conf import settings
from django.db import transaction

from brokers import clock
from brokers.errors import BrokerError, Corrupt, NotFound, RangeError
from brokers.health import note_failure
from brokers.models import Broker
from brokers.names import OBJECT_PREFIX, is_object_key, name_in
from replication import epoch, transfer
from replication.models import Content, Event, Orphan, Replica, Segment
from replication.seal import HEADER_SIZE, SealError, parse_header

log = logging.getLogger(__name__)
WINDOW = 500


@dataclass
class Report:
    brokers: int = 0
    objects: int = 0
    orphans: int = 0
    deleted: int = 0
    bytes: int = 0
    failed: int = 0
    # The last copies of what the database knows: left alone, for `manage.py adopt`.
    needed: int = 0
    # Why nothing may be deleted now (replication/epoch.py); empty when it may.
    locked: str = ""


def unknown(broker: Broker, found: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Those of (locator, size) that no replica of this broker has as its locator or key."""
    names = [name for name, _size in found]
    of_broker = Replica.objects.filter(broker=broker)
    known = set(of_broker.filter(locator__in=names).values_list("locator", flat=True))
    known |= set(of_broker.filter(key__in=names).values_list("key", flat=True))
    return [(name, size) for name, size in found if name not in known]


def ours(broker: Broker, locator: str) -> bool:
    """Whether an object has a name as we give them. Others under our prefix are nobody's to delete."""
    return is_object_key(name_in(locator, broker.marker_locator))


def _windows(broker: Broker) -> Iterator[list[tuple[str, int]]]:
    """(locator, size) of every object with a name of ours, in windows. Raises BrokerError."""
    window: list[tuple[str, int]] = []
    for found in transfer.listing(broker, OBJECT_PREFIX):
        if not ours(broker, found.path):
            continue
        window.append((found.path, found.size))
        if len(window) == WINDOW:
            yield window
            window = []
    yield window


def unknown_objects(broker: Broker) -> Iterator[tuple[str, int]]:
    """(locator, size) of every object of ours on a broker that no row knows. Raises BrokerError."""
    for window in _windows(broker):
        yield from unknown(broker, window)


def scan(*, delete: bool = True, dry_run: bool = False) -> Report:
    """List every readable broker, note objects that no row knows, forget those that are gone, and delete those
    first seen longer ago than the orphan age. Two scans apart must have seen an orphan before it goes."""
    report = Report()
    deletable = epoch.deletable()
    lock = epoch.lock()
    report.locked = lock.reason if lock else ""
    for broker in Broker.objects.all():
        if not broker.readable or broker.over_traffic:
            continue
        try:
            _scan(broker, report, delete=delete and broker.pk in deletable, dry_run=dry_run)
            report.brokers += 1
        except BrokerError as error:
            note_failure(broker.pk, error)
            report.failed += 1
    return report


def _scan(broker: Broker, report: Report, *, delete: bool, dry_run: bool) -> None:
    started = clock.now()
    for window in _windows(broker):
        report.objects += len(window)
        report.orphans += _note(broker, window, dry_run)
    if dry_run:
        return
    # The listing was complete (it would have raised), so what it did not show is gone or has a row by now.
    Orphan.objects.filter(broker=broker, last_seen__lt=started).delete()
    if delete:
        _delete_old(broker, report)


def _note(broker: Broker, window: list[tuple[str, int]], dry_run: bool) -> int:
    strays = unknown(broker, window)
    if not dry_run:
        now = clock.now()
        for locator, size in strays:
            Orphan.objects.update_or_create(
                broker=broker,
                locator=locator,
                defaults={"size": size, "last_seen": now},
                create_defaults={"size": size, "first_seen": now, "last_seen": now},
            )
    return len(strays)


def _delete_old(broker: Broker, report: Report) -> None:
    before = clock.now() - settings.CLOUDSTORE_ORPHAN_AGE
    for orphan in Orphan.objects.filter(broker=broker, first_seen__lt=before):
        try:
            why = _delete(broker, orphan)
        except BrokerError as error:
            note_failure(broker.pk, error)
            report.failed += 1
            continue
        if not why:
            report.deleted += 1
            report.bytes += max(0, orphan.size)
        elif why == LAST_COPY:
            report.needed += 1


# -- one by one ---------------------------------------------------------------------------------------

NOT_OURS, REFERENCED, NOT_SEEN_TWICE, TOO_YOUNG = "not_ours", "referenced", "not_seen_twice", "too_young"
LOCKED, LAST_COPY, GONE, UNREADABLE = "deletion_locked", "last_copy", "gone", "broker_not_readable"
WORDS = {
    NOT_OURS: "it does not have a name of ours",
    REFERENCED: "a row knows it: it is a copy that is in use, or waits for its own delete",
    NOT_SEEN_TWICE: "two scans, apart, have to see it first (manage.py collect --orphans)",
    TOO_YOUNG: "it was seen too short a time ago",
    LOCKED: "deletion is locked (manage.py epoch_confirm --dry-run)",
    LAST_COPY: "it is the last copy of a segment that is in use: manage.py adopt takes it in",
    GONE: "it is gone already",
    UNREADABLE: "the broker does not answer now",
}


@dataclass
class Outcome:
    """What became of one orphan that was chosen: deleted (with `dry_run`: would be), or why not."""

    locator: str
    deleted: bool
    size: int = -1
    refused: str = ""
    detail: str = ""


# Called in the transaction that tells of a delete.
Record = Callable[[Broker, Orphan], None]


def delete_chosen(
    broker_id: int, locators: Iterable[str], *, dry_run: bool = False, record: Record | None = None
) -> list[Outcome]:
    """Delete these orphans now: -> what became of each. The same guards as for the scan's own deletes, in their order:
    a name of ours, no row that knows it (asked again right before the delete), two scans apart that saw it, older
    than the orphan age, deletion not locked, not the last copy of anything. Idempotent. Outside any transaction."""
    broker = Broker.objects.get(pk=broker_id)
    deletable = broker.pk in epoch.deletable(fresh=True)
    return [_chosen(broker, locator, deletable, dry_run, record) for locator in dict.fromkeys(locators)]


def _chosen(broker: Broker, locator: str, deletable: bool, dry_run: bool, record: Record | None) -> Outcome:
    orphan = Orphan.objects.filter(broker=broker, locator=locator).first()
    size = orphan.size if orphan else -1
    why, detail = _refusal(broker, locator, orphan), ""
    if not why and not deletable:
        why = UNREADABLE if epoch.lock() is None else LOCKED
    if not why and orphan is not None:
        try:
            why = _delete(broker, orphan, dry_run=dry_run, record=record)
        except BrokerError as error:
            note_failure(broker.pk, error)
            why, detail = error.code, str(error)
    return Outcome(locator, not why, size, why, detail or WORDS.get(why, ""))


def _refusal(broker: Broker, locator: str, orphan: Orphan | None) -> str:
    if not ours(broker, locator):
        return NOT_OURS
    if not unknown(broker, [(locator, -1)]):
        return REFERENCED
    if orphan is None or orphan.last_seen <= orphan.first_seen:
        return NOT_SEEN_TWICE
    return "" if orphan.first_seen < clock.now() - settings.CLOUDSTORE_ORPHAN_AGE else TOO_YOUNG


def _delete(broker: Broker, orphan: Orphan, *, dry_run: bool = False, record: Record | None = None) -> str:
    """Delete an orphan that is old enough, after asking the database once more: -> "", or why not. Raises
    BrokerError."""
    try:
        needed = _is_last_copy(broker, orphan.locator)
    except NotFound:
        if not dry_run:
            orphan.delete()
        return GONE
    if needed:
        return LAST_COPY
    if not unknown(broker, [(orphan.locator, orphan.size)]):
        if not dry_run:
            orphan.delete()
        return REFERENCED
    if dry_run:
        return ""
    transfer.remove(broker, orphan.locator)
    with transaction.atomic():
        Event.objects.create(kind="orphan deleted", broker=broker, detail=orphan.locator[:300])
        if record is not None:
            record(broker, orphan)
        orphan.delete()
    return ""


def _is_last_copy(broker: Broker, locator: str) -> bool:
    """Whether its header names a segment in use of which no copy is known to be good. So a broker that was removed by
    force and connected again, and not looked through yet, keeps what it alone has."""
    try:
        data = transfer.fetch(broker, locator, 0, HEADER_SIZE)
        header = parse_header(data)
    except (SealError, RangeError, Corrupt):  # shorter than a header, or of another kind
        return False
    segment = Segment.objects.filter(content=header.content_id, position=header.position).first()
    if segment is None or bytes(segment.header) != data or segment.content.state != Content.State.SEALED:
        return False
    return not segment.replicas.filter(state=Replica.State.STORED).exists()
