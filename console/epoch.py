"""The operator's word that this database is the right one (replication/epoch.py)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction

from accounts import audit
from accounts.models import User
from brokers import clock
from brokers.errors import BrokerError
from brokers.models import Broker
from replication import epoch, orphans
from replication.models import Epoch, Orphan, Replica


@dataclass
class Outlook:
    """What confirming would allow. `unknown_objects` are deleted when they are older than the orphan age and seen
    twice; `doomed_objects` at once."""

    locked: bool
    reason: str
    number: int
    seen: int
    database_is_from: datetime
    older_than_grace: bool
    unknown_objects: int
    unknown_bytes: int
    doomed_objects: int
    brokers_not_answering: list[str]


def look() -> Outlook:
    """Look at every broker and say what confirming would mean. Changes nothing but the lock."""
    epoch.deletable(fresh=True, quiet=True)
    row = epoch.current()
    silent: list[str] = []
    count = total = 0
    for broker in Broker.objects.order_by("name"):
        try:
            if not broker.readable:
                raise BrokerError("offline")
            for _path, size in orphans.unknown_objects(broker):
                count, total = count + 1, total + max(0, size)
        except BrokerError:
            silent.append(broker.name)
    return Outlook(
        locked=row.locked_at is not None,
        reason=row.reason,
        number=row.number,
        seen=row.seen,
        database_is_from=row.raised_at,
        older_than_grace=clock.now() - row.raised_at > settings.CLOUDSTORE_COLLECT_GRACE,
        unknown_objects=count,
        unknown_bytes=total,
        doomed_objects=Replica.objects.filter(state=Replica.State.DOOMED).count(),
        brokers_not_answering=silent,
    )


def confirm(actor: User | None = None) -> Epoch:
    """This database is the right one: the epoch goes above all that any broker knows, deletion is allowed again, and
    what is unknown begins to age from now on. Idempotent. Outside any transaction."""
    epoch.deletable(fresh=True, quiet=True)  # nobody may have looked since the database was put back
    highest = 0
    for broker in Broker.objects.all():
        if broker.readable:
            try:
                highest = max(highest, max(epoch.on_broker(broker), default=0))
            except BrokerError:
                continue  # when it comes back with a higher one, deletion is locked again
    with transaction.atomic():
        before = epoch.current()
        if before.locked_at is None:
            return before
        Epoch.objects.filter(pk=before.pk, seen__lt=highest).update(seen=highest)
        row = epoch.confirm()
        # Two sightings far apart, both by a database that is right.
        Orphan.objects.all().delete()
        audit.record(actor, "epoch.confirmed", row.number, reason=before.reason)
    epoch.spread(row.number)
    return row


GRACE_WORDS = (
    "The database is older than CLOUDSTORE_COLLECT_GRACE ({grace}): what it still shows and was deleted since may "
    "have lost its bytes; `manage.py fsck --full` names such files"
)


def words_of(outlook: Outlook) -> str:
    age = timedelta(seconds=int((clock.now() - outlook.database_is_from).total_seconds()))
    words = [
        f"deletion is {'LOCKED: ' + outlook.reason if outlook.locked else 'allowed'}",
        f"epoch {outlook.number}, last raised {outlook.database_is_from:%Y-%m-%d %H:%M} ({age} ago)",
        f"after confirming: {outlook.doomed_objects} doomed objects go at once; {outlook.unknown_objects} objects "
        f"({outlook.unknown_bytes} bytes) that this database does not know go when they were seen twice, "
        f"{settings.CLOUDSTORE_ORPHAN_AGE} apart. Bring them back before with `manage.py adopt`",
    ]
    if outlook.older_than_grace:
        words.append(GRACE_WORDS.format(grace=settings.CLOUDSTORE_COLLECT_GRACE))
    if outlook.brokers_not_answering:
        words.append(f"not answering, so not looked at: {', '.join(outlook.brokers_not_answering)}")
    return "\n".join(words)
