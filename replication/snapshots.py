"""Rows of snapshots: beginning, ending, keeping and dropping them."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction

from brokers import clock
from brokers.errors import BrokerError
from brokers.health import note_failure
from brokers.models import Broker
from replication import epoch, vault
from replication.models import Event, Snapshot, SnapshotCopy

log = logging.getLogger(__name__)
State = Snapshot.State

# A snapshot that is still being written after so long was left by a crash.
ABANDONED = timedelta(hours=6)


def begin() -> Snapshot:
    """A WRITING row in an epoch of its own. Raises SnapshotRefused while deletion is locked: which database is
    right is the operator's to say first."""
    number = epoch.advance()
    if number is None:
        reason = epoch.current().reason
        raise vault.SnapshotRefused(
            f"no snapshot while deletion is locked ({reason}); see manage.py epoch_confirm --dry-run"
        )
    return Snapshot.objects.create(number=number)


def finish(snapshot: Snapshot, stored: list[Broker]) -> None:
    """WRITING -> STANDING when it stands anywhere, else DOOMED. Raises SnapshotRefused in the latter case."""
    state = State.STANDING if stored else State.DOOMED
    with transaction.atomic():
        changed = Snapshot.objects.filter(pk=snapshot.pk, state=State.WRITING).update(
            state=state,
            finished_at=clock.now(),
            parts=snapshot.parts,
            size=snapshot.size,
            rows=snapshot.rows,
            master_keys=snapshot.master_keys,
        )
        if changed and stored:
            names = ", ".join(broker.name for broker in stored)
            Event.objects.create(kind="snapshot", detail=f"{snapshot.rows} rows on {names}"[:300])
    if not stored:
        raise vault.SnapshotRefused("no broker took the snapshot; see manage.py broker_list")
    snapshot.refresh_from_db()
    if len(stored) < vault.LEAST_COPIES:
        log.warning(
            "the snapshot stands on %s alone: connect brokers on at least %s domains, or losing that one and the "
            "database loses every file's name",
            stored[0].name,
            vault.LEAST_COPIES,
        )


def abandon(snapshot: Snapshot) -> None:
    """WRITING -> DOOMED. Idempotent."""
    Snapshot.objects.filter(pk=snapshot.pk, state=State.WRITING).update(state=State.DOOMED)


def standing() -> list[Snapshot]:
    """Those that stand on two brokers, newest first."""
    rows = Snapshot.objects.filter(state=State.STANDING).prefetch_related("copies")
    return [s for s in rows if sum(c.verified_at is not None for c in s.copies.all()) >= vault.LEAST_COPIES]


def kept(snapshots: Iterable[Snapshot], now: datetime) -> set[uuid.UUID]:
    """Which of them (newest first) are kept: the last ones, then the newest of each day for a while."""
    keep: set[uuid.UUID] = set()
    days: set[object] = set()
    for place, snapshot in enumerate(snapshots):
        day = snapshot.created_at.date()
        young = now - snapshot.created_at <= timedelta(days=settings.CLOUDSTORE_SNAPSHOT_DAYS)
        if place < settings.CLOUDSTORE_SNAPSHOT_KEEP or (young and day not in days):
            keep.add(snapshot.pk)
        days.add(day)
    return keep


def retain() -> int:
    """Drop the snapshots that are no longer kept and what crashes left of others: -> how many went. Whatever stands
    on fewer than two brokers counts for nothing here, and nothing goes while no newer one stands on two. A broker
    that does not answer keeps its objects until it does. Idempotent."""
    brokers = epoch.deletable(fresh=True)
    if not brokers:
        return 0
    there = _listed(brokers)
    now = clock.now()
    whole = standing()
    keep = kept(whole, now)
    newest = whole[0].number if whole else -1
    for snapshot in Snapshot.objects.exclude(state=State.DOOMED).exclude(pk__in=keep):
        old = snapshot.state == State.STANDING and snapshot.number < newest
        left = snapshot.state == State.WRITING and now - snapshot.created_at > ABANDONED
        if old or left:
            Snapshot.objects.filter(pk=snapshot.pk, state=snapshot.state).update(state=State.DOOMED)
    return sum(_drop(snapshot, there) for snapshot in Snapshot.objects.filter(state=State.DOOMED))


def note_all() -> None:
    """Give rows to the snapshots that the brokers hold. Idempotent; deletes nothing."""
    _listed(broker.pk for broker in Broker.objects.all() if broker.readable)


def _listed(brokers: Iterable[int]) -> dict[int, dict[uuid.UUID, vault.Found]]:
    """What the brokers hold, with a row for each snapshot that had none: an older database, or a rebuilt one,
    gets to know the later ones this way."""
    there: dict[int, dict[uuid.UUID, vault.Found]] = {}
    for broker in Broker.objects.filter(pk__in=list(brokers)):
        try:
            there[broker.pk] = vault.on_broker(broker)
        except BrokerError as error:
            note_failure(broker.pk, error)
    known = set(Snapshot.objects.values_list("pk", flat=True))
    for found in [f for listed in there.values() for f in listed.values()]:
        try:
            _note(found, known)
        except Exception as error:  # noqa: BLE001 - a damaged one must not keep the others from being dropped
            log.info("snapshot %s on %s is not readable: %s", found.id, found.broker.name, error)
    return there


def _note(found: vault.Found, known: set[uuid.UUID]) -> None:
    if found.id in known:
        return
    if not found.manifest:
        Snapshot.objects.get_or_create(pk=found.id, defaults={"number": found.number})
        return
    manifest = vault.read_manifest(found)
    with transaction.atomic():
        row, _created = Snapshot.objects.get_or_create(
            pk=found.id,
            defaults={
                "number": manifest.number,
                "state": State.STANDING,
                "created_at": datetime.fromisoformat(manifest.created_at),
                "finished_at": clock.now(),
                "parts": len(manifest.parts),
                "size": manifest.size,
                "rows": sum(manifest.rows.values()),
                "master_keys": list(manifest.master_keys),
            },
        )
        SnapshotCopy.objects.get_or_create(
            snapshot=row, broker=found.broker, defaults={"verified_at": clock.now()}
        )


def _drop(snapshot: Snapshot, there: dict[int, dict[uuid.UUID, vault.Found]]) -> bool:
    """Delete a DOOMED snapshot's objects, then its row: -> whether it is gone."""
    holders = set(snapshot.copies.values_list("broker_id", flat=True))
    whole = holders <= set(there)
    for listed in there.values():
        found = listed.get(snapshot.pk)
        if found is None:
            continue
        try:
            vault.remove(found)
        except BrokerError as error:
            note_failure(found.broker.pk, error)
            whole = False
    if whole:
        with transaction.atomic():
            Snapshot.objects.filter(pk=snapshot.pk, state=State.DOOMED).delete()
            Event.objects.create(kind="snapshot dropped", detail=str(snapshot.number))
    return whole
