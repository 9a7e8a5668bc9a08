"""What the tests of bytes share: brokers in memory, quick writes and reads, faults."""

from __future__ import annotations

import hashlib
from typing import Any

from django.db import transaction

from brokers.drivers import memory
from brokers.models import Broker
from brokers.services import add_broker
from replication import contents
from replication.models import Content, Replica, Segment
from replication.read import open_content
from replication.write import ContentWriter

State = Replica.State


def memory_broker(name: str, *, domain: str = "", **options: Any) -> Broker:
    """A broker in memory, empty, online, on a domain of its own unless told."""
    space = f"tests-{name}"
    memory.drop(space)
    return add_broker(name, "memory", domain or f"domain-{name}", {"space": space, **options})


def store(data: bytes, *, copies: int | None = None, piece: int = 1 << 18) -> Content:
    """Write `data` as a sealed content, the way an upload does."""
    content = contents.create(copies)
    writer = ContentWriter(content, expected_size=len(data))
    try:
        for start in range(0, len(data), piece):
            writer.write(data[start : start + piece])
        written = writer.finish()
    except BaseException:
        writer.abort()
        contents.abandon(content.pk)
        raise
    with transaction.atomic():
        contents.seal(content.pk, written)
    content.refresh_from_db()
    assert content.sha256 == hashlib.sha256(data).hexdigest()
    return content


def load(content: Content, start: int = 0, end: int | None = None) -> bytes:
    return b"".join(open_content(content).stream(start, end))


def replicas(content: Content, *states: str) -> list[Replica]:
    rows = Replica.objects.filter(segment__content=content).select_related("broker", "segment")
    return list(
        (rows.filter(state__in=states) if states else rows).order_by("segment__position", "broker__name")
    )


def copies(content: Content) -> int:
    """The least number of distinct domains that hold a segment STORED."""
    return min(
        len({r.broker.domain for r in segment.replicas.filter(state=State.STORED).select_related("broker")})
        for segment in Segment.objects.filter(content=content)
    )
