"""Objects under our prefix that no row knows: noted when seen, deleted only when seen again long after."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from django.conf import settings
from django.db import transaction

from brokers import clock
from brokers.errors import BrokerError
from brokers.health import note_failure
from brokers.models import Broker
from brokers.names import OBJECT_PREFIX
from replication import epoch, transfer
from replication.models import Event, Orphan, Replica

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
    # Why nothing may be deleted now (replication/epoch.py); empty when it may.
    locked: str = ""


def unknown(broker: Broker, found: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Those of (locator, size) that no replica of this broker has as its locator or key."""
    names = [name for name, _size in found]
    of_broker = Replica.objects.filter(broker=broker)
    known = set(of_broker.filter(locator__in=names).values_list("locator", flat=True))
    known |= set(of_broker.filter(key__in=names).values_list("key", flat=True))
    return [(name, size) for name, size in found if name not in known]


def unknown_objects(broker: Broker) -> Iterator[tuple[str, int]]:
    """(locator, size) of every object of ours on a broker that no row knows. Raises BrokerError."""
    window: list[tuple[str, int]] = []
    for found in transfer.listing(broker, OBJECT_PREFIX):
        window.append((found.path, found.size))
        if len(window) == WINDOW:
            yield from unknown(broker, window)
            window = []
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
    window: list[tuple[str, int]] = []
    for found in transfer.listing(broker, OBJECT_PREFIX):
        report.objects += 1
        window.append((found.path, found.size))
        if len(window) == WINDOW:
            report.orphans += _note(broker, window, dry_run)
            window = []
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
        if not unknown(broker, [(orphan.locator, orphan.size)]):
            orphan.delete()
            continue
        try:
            transfer.remove(broker, orphan.locator)
        except BrokerError as error:
            note_failure(broker.pk, error)
            report.failed += 1
            continue
        with transaction.atomic():
            Event.objects.create(kind="orphan deleted", broker=broker, detail=orphan.locator[:300])
            orphan.delete()
        report.deleted += 1
        report.bytes += orphan.size
