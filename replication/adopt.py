"""Objects of ours that the database does not know: each says in its header which slice of which content it is, under
which wrapped key. So what was stored after a database was saved comes back from the brokers alone.

`gather` gives them rows; `finish` seals the contents of which every byte is there and verifies. No object is ever
deleted or changed here. Both may be interrupted at any time and run again.
"""

from __future__ import annotations

import hashlib
import logging
import re
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Min

from brokers import clock
from brokers.driver import StoredFile
from brokers.errors import BrokerError
from brokers.failpoint import reach
from brokers.health import note_failure
from brokers.keyring import KeyringError, keyring
from brokers.models import Broker
from brokers.names import OBJECT_PREFIX
from replication import epoch, orphans, transfer
from replication.contents import unreferenced
from replication.keys import PURPOSE, content_key
from replication.models import Content, Event, Replica, Segment
from replication.seal import HEADER_SIZE, Header, SealError, open_object, parse_header, sealed_size

log = logging.getLogger(__name__)
State = Replica.State

WINDOW = 200
FOUND = "found"
# The first bytes of a content, by which its kind is told.
HEAD = 512
_KEY = re.compile(r"cs/[0-9a-f]{2}/[0-9a-f]{32}\Z")

Place = Callable[[Content, datetime, bytes], None]


@dataclass
class Report:
    """What a run found. `incomplete` and `damaged` are contents of which not every byte is there or verifies: their
    objects stay where they are, without rows."""

    brokers: int = 0
    objects: int = 0
    unknown: int = 0
    not_ours: int = 0  # no header of ours, or sealed under a master key that is not given
    deleted_before: int = 0  # of contents that this database has seen deleted
    copies: int = 0  # more copies of contents that the database knows
    contents: int = 0  # brought back
    bytes: int = 0
    incomplete: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[dict[str, Any]] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)


def gather(
    report: Report,
    tell: Callable[[str], None] = lambda _words: None,
    *,
    dry_run: bool = False,
    broker_id: int | None = None,
) -> None:
    """List every readable broker (or this one alone) and give rows to the objects that have none: more copies of what
    is known, and the slices of contents that are not. Idempotent."""
    if epoch.lock() is not None and not dry_run:
        _forget_unsealed()
    searched = Broker.objects.all() if broker_id is None else Broker.objects.filter(pk=broker_id)
    for broker in searched.order_by("pk"):
        if not broker.readable:
            report.unreachable.append(broker.name)
            continue
        try:
            window: list[StoredFile] = []
            for entry in transfer.listing(broker, OBJECT_PREFIX):
                window.append(entry)
                if len(window) == WINDOW:
                    _window(broker, window, report, dry_run)
                    tell(f"{broker.name}: {report.objects} objects listed, {report.unknown} unknown")
                    window = []
            _window(broker, window, report, dry_run)
            report.brokers += 1
        except BrokerError as error:
            note_failure(broker.pk, error)
            report.unreachable.append(broker.name)


def _forget_unsealed() -> None:
    """This database is an older one: an upload that it saw in progress may have become a file since. So its rows go,
    and its objects tell what came of it."""
    never = Content.objects.filter(sealed_at=None).exclude(
        pk__in=Event.objects.filter(kind=FOUND).values("content")
    )
    for content in unreferenced(never):
        _forget(content)


def _window(broker: Broker, window: list[StoredFile], report: Report, dry_run: bool) -> None:
    report.objects += len(window)
    entries = {entry.path: entry for entry in window}
    unknown = orphans.unknown(broker, [(entry.path, entry.size) for entry in window])
    report.unknown += len(unknown)
    running: list[tuple[StoredFile, Future[bytes]]] = [
        (entries[path], transfer.pool().submit(transfer.fetch, broker, path, 0, HEADER_SIZE))
        for path, _size in unknown
    ]
    for entry, future in running:
        try:
            data = future.result()
            header = parse_header(data)
            if entry.size not in (-1, sealed_size(header.size)):
                raise SealError("it is cut")
            keyring().open(PURPOSE, header.key_version, header.wrapped_key, header.content_id.bytes)
        except (SealError, KeyringError) as error:
            log.info("%s: %s is left alone: %s", broker.name, entry.path, error)
            report.not_ours += 1
            continue
        except BrokerError as error:
            if error.temporary:
                raise
            report.not_ours += 1
            continue
        if not dry_run:
            _take(broker, entry, data, header, report)


def _take(broker: Broker, entry: StoredFile, data: bytes, header: Header, report: Report) -> None:
    content = Content.objects.filter(pk=header.content_id).first()
    if content is None:
        if Event.objects.filter(content=header.content_id, kind__in=("condemned", "collected")).exists():
            report.deleted_before += 1
            return
        with transaction.atomic():
            content, created = Content.objects.get_or_create(
                pk=header.content_id,
                defaults={"key_version": header.key_version, "wrapped_key": header.wrapped_key},
            )
            if created:
                Event.objects.create(kind=FOUND, content=content.pk, detail="objects newer than the database")
    if content.state == Content.State.CONDEMNED:
        report.deleted_before += 1
    elif content.state == Content.State.SEALED:
        _take_copy(broker, entry, data, header, report)
    elif _was_found(content.pk):
        _take_slice(content, broker, entry, data, header)


def _was_found(content_id: uuid.UUID) -> bool:
    """Whether this OPEN content is one of ours here, and not an upload in progress."""
    return Event.objects.filter(kind=FOUND, content=content_id).exists()


def _take_copy(broker: Broker, entry: StoredFile, data: bytes, header: Header, report: Report) -> None:
    """One more copy of a segment that is known, when its bytes are the ones that were sealed."""
    segment = Segment.objects.filter(content=header.content_id, position=header.position).first()
    if segment is None or bytes(segment.header) != data:
        return
    try:
        transfer.fetch_whole(broker, entry.path, segment.sealed_size, segment.checksum)
    except BrokerError as error:
        log.info("%s: %s is no copy of %s: %s", broker.name, entry.path, segment, error)
        return
    now = clock.now()
    if _add(segment, broker, entry, state=State.STORED, stored_at=now, verified_at=now):
        # Too few or too many: the reconciler decides.
        Segment.objects.filter(pk=segment.pk).update(check_at=now, blocked="", attempts=0)
        report.copies += 1


def _take_slice(content: Content, broker: Broker, entry: StoredFile, data: bytes, header: Header) -> None:
    segment, _created = Segment.objects.get_or_create(
        content=content,
        position=header.position,
        defaults={
            "offset": header.offset,
            "size": header.size,
            "sealed_size": sealed_size(header.size),
            "header": data,
        },
    )
    if bytes(segment.header) == data:
        _add(segment, broker, entry, state=State.PLANNED, created_at=entry.modified or clock.now())


def _add(segment: Segment, broker: Broker, entry: StoredFile, **values: Any) -> bool:
    key = _KEY.search(entry.path)
    try:
        with transaction.atomic():
            Replica.objects.create(
                segment=segment,
                broker=broker,
                key=key[0] if key else entry.path[-100:],
                locator=entry.path,
                **values,
            )
    except IntegrityError:
        return False  # there is one on this broker already
    return True


# -- bringing back ------------------------------------------------------------------------------------


def finish(place: Place, report: Report, tell: Callable[[str], None] = lambda _words: None) -> None:
    """Seal every gathered content of which each byte is there and verifies; `place(content, stored at, first bytes)`
    is called in the transaction that seals it and must refer to it. The rows of the others go again."""
    found = Event.objects.filter(kind=FOUND).values("content")
    due = unreferenced(Content.objects.filter(state=Content.State.OPEN, pk__in=found))
    for number, pk in enumerate(list(due.order_by("pk").values_list("pk", flat=True)), 1):
        _finish(Content.objects.get(pk=pk), place, report)
        if number % 100 == 0:
            tell(f"{number} contents looked at, {report.contents} brought back")


def _finish(content: Content, place: Place, report: Report) -> None:
    segments = list(content.segments.order_by("position"))
    about = {
        "content": str(content.pk),
        "segments": len(segments),
        "bytes": sum(segment.size for segment in segments),
    }
    if not _complete(segments):
        report.incomplete.append(about)
        _forget(content)
        return
    sha256, head = hashlib.sha256(), b""
    good: dict[int, list[int]] = {}
    key = content_key(content)
    for segment in segments:
        plain, checksum, good[segment.pk] = _verified(segment, key)
        if plain is None:
            report.damaged.append({**about, "position": segment.position})
            _forget(content)
            return
        sha256.update(plain)
        head = head or plain[:HEAD]
        segment.checksum = checksum
    reach("adopt.content_verified")
    _seal(content, segments, good, sha256.hexdigest(), head, place)
    report.contents += 1
    report.bytes += sum(segment.size for segment in segments)


def _complete(segments: list[Segment]) -> bool:
    """Whether they stand side by side from 0 on, and the last one says that it is the last."""
    end = 0
    for position, segment in enumerate(segments):
        last = bool(parse_header(bytes(segment.header)).last)
        if segment.position != position or segment.offset != end or last != (position == len(segments) - 1):
            return False
        end += segment.size
    return bool(segments)


def _verified(segment: Segment, key: bytes) -> tuple[bytes | None, str, list[int]]:
    """The plain bytes of a segment, the checksum of its object, and the replicas that hold just that object."""
    rows = list(segment.replicas.select_related("broker").order_by("pk"))
    running = [(row, transfer.pool().submit(transfer.fetch_all, row.broker, row.locator)) for row in rows]
    plain, checksum, good = None, "", []
    for row, future in running:
        try:
            data = future.result()
            if checksum and hashlib.sha256(data).hexdigest() != checksum:
                raise SealError("it differs from another copy that verifies")
            if not checksum:
                if data[:HEADER_SIZE] != bytes(segment.header):
                    raise SealError("its header changed")
                plain, checksum = open_object(key, data), hashlib.sha256(data).hexdigest()
        except (BrokerError, SealError) as error:
            log.info("%s: %s does not verify: %s", row.broker.name, row.locator, error)
            continue
        good.append(row.pk)
    return plain, checksum, good


def _seal(
    content: Content,
    segments: list[Segment],
    good: dict[int, list[int]],
    sha256: str,
    head: bytes,
    place: Place,
) -> None:
    now = clock.now()
    stored_at = Replica.objects.filter(segment__content=content).aggregate(at=Min("created_at"))["at"] or now
    with transaction.atomic():
        changed = Content.objects.filter(pk=content.pk, state=Content.State.OPEN).update(
            state=Content.State.SEALED,
            size=sum(segment.size for segment in segments),
            sha256=sha256,
            sealed_at=now,
        )
        if changed != 1:
            return
        for segment in segments:
            # Due: the reconciler compares the copies with what is wanted.
            segment.check_at = now
            segment.replicas.exclude(pk__in=good[segment.pk]).delete()
            segment.replicas.update(state=State.STORED, stored_at=now, verified_at=now)
        Segment.objects.bulk_update(segments, ["checksum", "check_at"], batch_size=500)
        content.refresh_from_db()
        place(content, stored_at, head)


def _forget(content: Content) -> None:
    """Take back the rows of a gathered content; its objects stay."""
    with transaction.atomic():
        Replica.objects.filter(segment__content=content).delete()
        Segment.objects.filter(content=content).delete()
        Event.objects.filter(kind=FOUND, content=content.pk).delete()
        content.delete()
