"""Names every violation of the invariants of bytes (replication/models.py), from the rows alone or, with
`full`, from every byte on every broker. It reads; it mends nothing."""

from __future__ import annotations

import hashlib
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby

from django.conf import settings
from django.db.models import Count, F, Max, Q, QuerySet, Sum
from django.db.models.functions import Coalesce

from brokers import clock
from brokers.errors import BrokerError, NotFound
from brokers.keyring import KeyringError
from brokers.models import Broker
from brokers.names import OBJECT_PREFIX
from replication import collect, epoch, orphans, policy, targets, transfer, vault
from replication.contents import unreferenced
from replication.keys import content_key
from replication.models import Content, Replica, Segment, Snapshot
from replication.seal import SealError, open_object, parse_header, sealed_size

State = Replica.State
WINDOW = 64
# Objects that are read ahead.
READ_AHEAD = 8
NOT_READABLE = "broker_not_readable"
# The collector may be so late before fsck calls it a violation.
OVERDUE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation: a stable code, and what it is about in words. `content` is set where the bytes of that
    content cannot be had now."""

    code: str
    detail: str
    content: uuid.UUID | None = None

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


def check(full: bool = False) -> list[Finding]:
    """All findings; empty means that every invariant holds. `full` lists every broker and re-reads every
    object, however long that takes."""
    findings = [
        *_layout(),
        *_references(),
        *_copies(),
        *_unsettled(),
        *_keys(),
        *_lock(),
    ]
    if full:
        readable = set()
        for broker in Broker.objects.all():
            seen = list(_listing(broker))
            findings += seen
            if not any(f.code == NOT_READABLE for f in seen):
                readable.add(broker.pk)
        findings += _objects(readable)
    return findings


def _layout() -> Iterator[Finding]:
    """Segments stand at 0..n-1 without gaps, their offsets and sizes add up, each is sealed."""
    sealed = Content.objects.filter(state=Content.State.SEALED)
    sums = sealed.annotate(n=Count("segments"), top=Max("segments__position"), total=Sum("segments__size"))
    for content in sums.iterator():
        if content.n == 0 or content.top != content.n - 1 or content.total != content.size:
            yield Finding(
                "segments_do_not_add_up",
                f"content {content.pk}: {content.n} segments, {content.total} of {content.size} bytes",
            )
    end: dict[uuid.UUID, int] = {}
    segments = Segment.objects.filter(content__state=Content.State.SEALED).order_by("content", "position")
    for segment in segments.iterator():
        before = end.get(segment.content_id, 0)
        if segment.offset != before:
            yield Finding("wrong_offset", f"segment {segment}: offset {segment.offset}, not {before}")
        end = {segment.content_id: segment.offset + segment.size}
        try:
            header = parse_header(bytes(segment.header))
        except SealError as error:
            yield Finding("bad_header", f"segment {segment}: {error}")
            continue
        says = (header.content_id, header.position, header.offset, header.size)
        if says != (segment.content_id, segment.position, segment.offset, segment.size):
            yield Finding("bad_header", f"segment {segment}: the header speaks of another segment")
        if len(segment.checksum) != 64:
            yield Finding("no_checksum", f"segment {segment}")
        if segment.sealed_size != sealed_size(segment.size):
            yield Finding(
                "wrong_sealed_size",
                f"segment {segment}: {segment.sealed_size}, not {sealed_size(segment.size)} bytes",
            )


def _references() -> Iterator[Finding]:
    condemned = Content.objects.filter(state=Content.State.CONDEMNED)
    free = set(unreferenced(condemned).values_list("pk", flat=True))
    for pk in condemned.values_list("pk", flat=True):
        if pk not in free:
            yield Finding("condemned_but_referenced", f"content {pk}")
    for content in unreferenced(Content.objects.exclude(state=Content.State.CONDEMNED)):
        yield Finding("unreferenced", f"content {content.pk} is {content.state}, and nothing refers to it")


def _copies() -> Iterator[Finding]:
    rules = policy.current()
    brokers = list(Broker.objects.all())
    counting = [pk for pk, t in targets.load(brokers).items() if t.counts]
    good = Q(replicas__state=State.STORED, replicas__broker__in=counting)
    rows = (
        Segment.objects.filter(content__state=Content.State.SEALED)
        .annotate(
            domains=Count("replicas__broker__domain", distinct=True, filter=good),
            copies=Count("replicas", distinct=True, filter=good),
            wanted=Coalesce("content__copies", rules.copies),
        )
        .exclude(domains=F("wanted"), copies=F("wanted"))
        .order_by("pk")
    )
    for segment in rows.iterator():
        if segment.domains == 0:
            code = "no_copy"
        elif segment.domains < segment.wanted:
            code = "copies_missing"
        else:
            code = "copies_too_many"
        yield Finding(
            code,
            f"segment {segment}: {segment.copies} copies on {segment.domains} domains of {segment.wanted}",
            segment.content_id if code == "no_copy" else None,
        )


def _unsettled() -> Iterator[Finding]:
    """At rest every replica of a sealed content is STORED, and nothing is overdue for the collector. What is
    condemned waits for its grace by right."""
    rows = Replica.objects.exclude(state=State.STORED).filter(
        Q(segment__content__state=Content.State.SEALED) | Q(state=State.DOOMED)
    )
    for replica in rows.exclude(segment__content__state=Content.State.OPEN).select_related("segment"):
        yield Finding(
            f"replica_{replica.state}",
            f"replica {replica.key} of segment {replica.segment}: {replica.reason}",
        )
    for content in collect.due_contents(clock.now() - OVERDUE, settings.CLOUDSTORE_COLLECT_GRACE):
        yield Finding("overdue", f"content {content.pk} should have been collected")


def _keys() -> Iterator[Finding]:
    for content in Content.objects.exclude(state=Content.State.CONDEMNED).iterator():
        try:
            content_key(content)
        except KeyringError as error:
            yield Finding("key_does_not_open", f"content {content.pk}: {error}", content.pk)


def _listing(broker: Broker) -> Iterator[Finding]:
    """What one broker lists and no row knows."""
    if not broker.readable:
        yield Finding(NOT_READABLE, f"{broker.name}: {broker.health_reason or broker.health}")
        return
    try:
        window: list[tuple[str, int]] = []
        for found in transfer.listing(broker, OBJECT_PREFIX):
            window.append((found.path, found.size))
            if len(window) == WINDOW:
                yield from _unknown(broker, window)
                window = []
        yield from _unknown(broker, window)
        snapshots = vault.on_broker(broker)
    except BrokerError as error:
        yield Finding(NOT_READABLE, f"{broker.name}: {error.code}")
        return
    known = Snapshot.objects.filter(pk__in=list(snapshots)).values_list("pk", flat=True)
    for snapshot_id in set(snapshots) - set(known):
        yield Finding("unknown_snapshot", f"{broker.name}: snapshot {snapshot_id}")


def _lock() -> Iterator[Finding]:
    lock = epoch.lock()
    if lock is not None:
        yield Finding("deletion_locked", f"since {lock.locked_at:%Y-%m-%d %H:%M}: {lock.reason}")


def _unknown(broker: Broker, window: list[tuple[str, int]]) -> Iterator[Finding]:
    for name, size in orphans.unknown(broker, window):
        yield Finding("unknown_object", f"{broker.name}: {name} ({size} bytes)")


_Read = tuple[Replica, "Future[bytes]"]


def _objects(readable: set[int]) -> Iterator[Finding]:
    """Every object on these brokers against its row, and what it opens to against the hash of its content."""
    rows = (
        Replica.objects.filter(broker__in=readable, state__in=(State.STORED, State.SUSPECT))
        .select_related("segment__content", "broker")
        .order_by("segment__content", "segment__position", "pk")
    )
    for content, reads in groupby(_read_ahead(rows), key=lambda read: read[0].segment.content):
        yield from _content(content, reads, readable)


def _read_ahead(rows: QuerySet[Replica]) -> Iterator[_Read]:
    running: deque[_Read] = deque()
    for replica in rows.iterator():
        work = transfer.pool(replica.broker).submit(transfer.fetch_all, replica.broker, replica.locator)
        running.append((replica, work))
        if len(running) > READ_AHEAD:
            yield running.popleft()
    yield from running


def _content(content: Content, reads: Iterator[_Read], readable: set[int]) -> Iterator[Finding]:
    key = _key(content) if content.state == Content.State.SEALED else None
    plain, segments, why = hashlib.sha256(), 0, ""
    for segment, copies in groupby(reads, key=lambda read: read[0].segment):
        good: bytes | None = None
        for replica, future in copies:
            try:
                data = future.result()
            except NotFound:
                yield Finding("object_missing", f"{replica.broker.name}: {replica.key}")
                continue
            except BrokerError as error:
                detail = f"{replica.broker.name}: {replica.key}: {error.code}"
                yield Finding("object_unreadable", detail)
                continue
            if hashlib.sha256(data).hexdigest() == segment.checksum:
                good = data
            else:
                yield Finding("object_damaged", f"{replica.broker.name}: {replica.key}")
        if key is None:
            continue
        if good is None:
            elsewhere = segment.replicas.filter(state=State.STORED).exclude(broker__in=readable)
            if not elsewhere.exists():
                why = why or f"no good copy of segment {segment.position}"
            continue
        try:
            plain.update(open_object(key, good))
        except SealError as error:
            why = why or f"segment {segment.position}: {error}"
        else:
            segments += 1
    if key is not None and not why and segments == content.segments.count():
        why = "" if plain.hexdigest() == content.sha256 else "its bytes have another SHA-256"
    if why:
        yield Finding("does_not_read_back", f"content {content.pk}: {why}", content.pk)


def _key(content: Content) -> bytes | None:
    """None for one that does not open: `_keys` has told it."""
    try:
        return content_key(content)
    except KeyringError:
        return None
