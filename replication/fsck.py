"""Names every violation of the invariants of bytes (replication/models.py), from the rows alone or, with
`full`, from every byte on every broker. It reads; it mends nothing."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings
from django.db.models import Count, F, Max, Q, Sum
from django.db.models.functions import Coalesce

from brokers import clock
from brokers.errors import BrokerError, NotFound
from brokers.keyring import KeyringError
from brokers.models import Broker
from brokers.names import OBJECT_PREFIX
from replication import collect, orphans, policy, targets, transfer
from replication.contents import unreferenced
from replication.keys import content_key
from replication.models import Content, Replica, Segment
from replication.seal import SealError, parse_header

State = Replica.State
WINDOW = 64
# The collector may be so late before fsck calls it a violation.
OVERDUE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation: a stable code, and what it is about in words."""

    code: str
    detail: str

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
    ]
    if full:
        for broker in Broker.objects.all():
            findings += _broker(broker)
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
            yield Finding("key_does_not_open", f"content {content.pk}: {error}")


def _broker(broker: Broker) -> Iterator[Finding]:
    """Everything that one broker holds against what the rows say it holds."""
    if not broker.readable:
        yield Finding("broker_not_readable", f"{broker.name}: {broker.health_reason or broker.health}")
        return
    try:
        window: list[tuple[str, int]] = []
        for found in transfer.listing(broker, OBJECT_PREFIX):
            window.append((found.path, found.size))
            if len(window) == WINDOW:
                yield from _unknown(broker, window)
                window = []
        yield from _unknown(broker, window)
    except BrokerError as error:
        yield Finding("broker_not_readable", f"{broker.name}: {error.code}")
        return
    batch: list[Replica] = []
    stored = Replica.objects.filter(broker=broker, state__in=(State.STORED, State.SUSPECT))
    for replica in stored.select_related("segment", "broker").order_by("pk").iterator():
        batch.append(replica)
        if len(batch) == WINDOW // 8:
            yield from _read(batch)
            batch = []
    yield from _read(batch)


def _unknown(broker: Broker, window: list[tuple[str, int]]) -> Iterator[Finding]:
    for name, size in orphans.unknown(broker, window):
        yield Finding("unknown_object", f"{broker.name}: {name} ({size} bytes)")


def _read(batch: list[Replica]) -> Iterator[Finding]:
    running: list[tuple[Replica, Future[str]]] = [
        (replica, transfer.pool().submit(_hash, replica)) for replica in batch
    ]
    for replica, future in running:
        try:
            checksum = future.result()
        except NotFound:
            yield Finding("object_missing", f"{replica.broker.name}: {replica.key}")
        except BrokerError as error:
            yield Finding("object_unreadable", f"{replica.broker.name}: {replica.key}: {error.code}")
        else:
            if checksum != replica.segment.checksum:
                yield Finding("object_damaged", f"{replica.broker.name}: {replica.key}")


def _hash(replica: Replica) -> str:
    data = transfer.fetch_all(replica.broker, replica.locator)
    return hashlib.sha256(data).hexdigest()
