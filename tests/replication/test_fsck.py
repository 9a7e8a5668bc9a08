"""fsck names each violation by its code: one planted for each."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import pytest

from brokers import clock
from brokers.errors import Unavailable
from brokers.models import Broker, Health
from brokers.open import wrap
from brokers.testing.faulty import FaultyBroker
from replication import contents, epoch, keys, vault
from replication.fsck import check
from replication.models import Content, Replica, Segment
from tests.replication.kit import Objects, State, memory_broker, replicas, store

pytestmark = pytest.mark.django_db


def _rows(**changes: object) -> Callable[[Content], object]:
    return lambda c: Replica.objects.filter(pk=replicas(c)[0].pk).update(**changes)


def _segment(**changes: object) -> Callable[[Content], object]:
    return lambda c: Segment.objects.filter(content=c).update(**changes)


def _unknown(content: Content) -> None:
    Objects(replicas(content)[0].broker)["cs/ab/" + "ab" * 16] = b"stray"


def _missing(content: Content) -> None:
    replica = replicas(content)[0]
    del Objects(replica.broker)[replica.locator]


def _damaged(content: Content) -> None:
    replica = replicas(content)[0]
    Objects(replica.broker)[replica.locator] = bytes(replica.segment.sealed_size)


def _same_domain(content: Content) -> None:
    Broker.objects.update(domain="one")


def _third(content: Content) -> None:
    third = memory_broker("c")
    first = replicas(content)[0]
    Objects(third)[first.key + "f"] = Objects(first.broker)[first.locator]
    Replica.objects.create(
        segment=first.segment, broker=third, key=first.key + "f", locator=first.key + "f", state=State.STORED
    )


def _wrong_key(content: Content) -> None:
    version, wrapped = keys.new_wrapped_key(uuid.uuid4())
    Content.objects.filter(pk=content.pk).update(key_version=version, wrapped_key=wrapped)


def _overdue(content: Content) -> None:
    contents.condemn_unreferenced([content.pk])
    assert check(full=True) == [], "what waits for its grace is as it should be"
    Content.objects.filter(pk=content.pk).update(condemned_at=clock.now() - timedelta(hours=26))


def _offline(content: Content) -> None:
    Broker.objects.filter(name="a").update(health=Health.OFFLINE, health_since=clock.now())


def _unreadable(content: Content) -> AbstractContextManager[None]:
    replica = replicas(content)[0]

    def failing(driver: object) -> FaultyBroker:
        made = FaultyBroker(driver)
        made.fail("get", Unavailable("no answer"), on=lambda call: call.name == replica.locator)
        return made

    return wrap(replica.broker_id, failing)


def _snapshot(content: Content) -> None:
    Objects(replicas(content)[0].broker)[vault.name_of(1, uuid.uuid4(), 0)] = b"of another database"


def _no_good_copy(content: Content) -> None:
    for replica in replicas(content):
        Objects(replica.broker)[replica.locator] = bytes(replica.segment.sealed_size)


# What to do to a sound content; where it returns a context manager, the violation holds inside.
PLANTED: dict[str, Callable[[Content], object]] = {
    "segments_do_not_add_up": lambda c: Content.objects.filter(pk=c.pk).update(size=c.size + 1),
    "wrong_offset": _segment(offset=5),
    "bad_header": _segment(header=b"nonsense"),
    "no_checksum": _segment(checksum=""),
    "wrong_sealed_size": _segment(sealed_size=7),
    "no_copy": lambda c: Replica.objects.filter(segment__content=c).update(state=State.LOST),
    "copies_missing": _same_domain,
    "copies_too_many": _third,
    "replica_planned": _rows(state=State.PLANNED),
    "replica_suspect": _rows(state=State.SUSPECT),
    "replica_lost": _rows(state=State.LOST),
    "replica_doomed": _rows(state=State.DOOMED),
    "overdue": _overdue,
    "key_does_not_open": _wrong_key,
    "unknown_object": _unknown,
    "object_missing": _missing,
    "object_damaged": _damaged,
    "object_unreadable": _unreadable,
    "does_not_read_back": lambda c: Content.objects.filter(pk=c.pk).update(sha256="0" * 64),
    "broker_not_readable": _offline,
    "unknown_snapshot": _snapshot,
    "deletion_locked": lambda c: epoch.lock_now(7, "planted"),
}


@pytest.mark.parametrize("code", PLANTED)
def test_planted_violations_are_named(code: str) -> None:
    for name in ("a", "b"):
        memory_broker(name)
    content = store(b"x" * 1000)
    assert {f.code for f in check(full=True)} == {"unreferenced"}
    planted = PLANTED[code](content)
    with planted if isinstance(planted, AbstractContextManager) else nullcontext():
        assert code in {f.code for f in check(full=True)}


def test_bytes_that_cannot_be_read_back_are_named_with_their_content() -> None:
    for name in ("a", "b"):
        memory_broker(name)
    content, other = store(b"x" * 1000), store(b"y")
    _no_good_copy(content)
    found = {f.code: f for f in check(full=True)}
    assert found["does_not_read_back"].content == content.pk
    assert "no good copy of segment 0" in found["does_not_read_back"].detail
    assert not any(str(other.pk) in f.detail for f in check(full=True) if f.code != "unreferenced")


def test_an_object_sealed_with_another_key_does_not_read_back() -> None:
    """Checksums alone would find nothing wrong with it."""
    for name in ("a", "b"):
        memory_broker(name)
    content, other = store(b"x" * 1000), store(b"y" * 1000)
    for mine, theirs in zip(replicas(content), replicas(other), strict=True):
        Objects(mine.broker)[mine.locator] = Objects(theirs.broker)[theirs.locator]
        segment = theirs.segment
    Segment.objects.filter(content=content).update(header=segment.header, checksum=segment.checksum)
    assert {f.code for f in check(full=True)} == {"unreferenced", "bad_header", "does_not_read_back"}


def test_a_young_outage_is_not_a_missing_copy() -> None:
    for name in ("a", "b"):
        memory_broker(name)
    store(b"x")
    _offline(Content.objects.get())
    assert "copies_missing" not in {f.code for f in check()}
    Broker.objects.filter(name="a").update(health_since=clock.now() - timedelta(hours=1))
    assert "copies_missing" in {f.code for f in check()}
