"""What the tests of bytes share: brokers in memory, quick writes and reads, faults."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, MutableMapping
from typing import Any

from django.db import transaction

from brokers import clock
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
    memory.clear(space)
    return add_broker(name, "memory", domain or f"domain-{name}", {"space": space, **options})


class Objects(MutableMapping[str, bytes]):
    """What a memory broker holds, to look at and to damage behind the product's back."""

    def __init__(self, broker: Broker) -> None:
        self._objects = memory.space(broker.options["space"]).objects

    def __getitem__(self, name: str) -> bytes:
        return self._objects[name][0]

    def __setitem__(self, name: str, data: bytes) -> None:
        self._objects[name] = (data, clock.now())

    def __delitem__(self, name: str) -> None:
        del self._objects[name]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._objects))

    def __len__(self) -> int:
        return len(self._objects)


def store(data: bytes, *, copies: int | None = None, piece: int = 1 << 18) -> Content:
    """Write `data` as a sealed content, the way an upload does."""
    content = contents.create(copies)
    writer = ContentWriter(content)
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
