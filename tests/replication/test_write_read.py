"""Contents go up and come down again; ranges, refusals, aborts."""

from __future__ import annotations

import os
import random

import pytest
from django.db import connection, transaction

from brokers.models import Broker, Health
from replication import contents, policy, transfer, write
from replication.collect import collect
from replication.errors import StateConflict, WriteRefused
from replication.fsck import check
from replication.models import Content, Replica, Segment
from replication.read import open_content
from replication.seal import FRAME_SIZE, SEGMENT_SIZE
from replication.write import ContentWriter
from tests.replication.kit import State, copies, load, memory_broker, replicas, store

pytestmark = pytest.mark.django_db


@pytest.fixture
def two() -> list[Broker]:
    return [memory_broker("a"), memory_broker("b")]


def codes() -> set[str]:
    """What a full fsck says, but for contents that nothing refers to (no vfs here)."""
    return {f.code for f in check(full=True)} - {"unreferenced"}


SIZES = [
    0,
    1,
    FRAME_SIZE - 1,
    FRAME_SIZE,
    FRAME_SIZE + 1,
    SEGMENT_SIZE - 1,
    SEGMENT_SIZE,
    SEGMENT_SIZE + 1,
    2 * SEGMENT_SIZE + 12345,
]


@pytest.mark.parametrize("size", SIZES)
def test_round_trip(two: list[Broker], size: int) -> None:
    data = os.urandom(size)
    content = store(data)
    assert content.state == Content.State.SEALED
    assert content.size == size
    assert copies(content) == 2
    assert load(content) == data
    assert codes() == set()


@pytest.mark.parametrize("piece", [1, 4096, 999_983, 20_000_000])
def test_pieces_of_any_size(two: list[Broker], piece: int) -> None:
    data = os.urandom(3_000 if piece == 1 else SEGMENT_SIZE + 3_000_000)
    assert load(store(data, piece=piece)) == data


def test_random_ranges(two: list[Broker]) -> None:
    data = os.urandom(2 * SEGMENT_SIZE + 700_001)
    content = store(data)
    dice = random.Random(11)
    borders = [
        0,
        1,
        FRAME_SIZE,
        SEGMENT_SIZE - 1,
        SEGMENT_SIZE,
        SEGMENT_SIZE + 1,
        2 * SEGMENT_SIZE,
        len(data),
    ]
    ranges = [(a, b) for a in borders for b in borders if a <= b]
    ranges += [tuple(sorted((dice.randrange(len(data)), dice.randrange(len(data))))) for _ in range(40)]  # type: ignore[misc]
    for start, end in ranges:
        assert load(content, start, end) == data[start:end]


def test_a_range_outside_is_refused(two: list[Broker]) -> None:
    reader = open_content(store(b"0123456789"))
    for start, end in [(-1, 2), (3, 2), (0, 11), (11, 11)]:
        with pytest.raises(ValueError, match="range"):
            reader.stream(start, end)


def test_objects_hold_no_plain_text(two: list[Broker]) -> None:
    from replication.transfer import fetch_all

    content = store(b"the secret sentence " * 5000)
    for replica in replicas(content):
        assert b"secret" not in fetch_all(replica.broker, replica.locator)


def test_all_copies_of_a_segment_are_alike(two: list[Broker]) -> None:
    from replication.transfer import fetch_all

    content = store(os.urandom(1000))
    one, other = (fetch_all(r.broker, r.locator) for r in replicas(content))
    assert one == other


def test_too_few_domains_are_refused_before_a_byte() -> None:
    memory_broker("a")
    memory_broker("b", domain="domain-a")
    content = contents.create()
    with pytest.raises(WriteRefused, match="2 brokers on distinct domains"):
        ContentWriter(content)
    assert not Replica.objects.exists()


def test_degraded_writes_where_the_operator_allows_them() -> None:
    memory_broker("a")
    policy.change(allow_degraded=True)
    content = store(b"x" * 100)
    assert copies(content) == 1
    assert Segment.objects.get().check_at is not None
    status = contents.copy_status([content.pk])[content.pk]
    assert (status.wanted, status.stored, status.brokers) == (2, 1, ("a",))


def test_acknowledged_after_w_copies_the_rest_becomes_due() -> None:
    for name in "abc":
        memory_broker(name)
    policy.change(copies=3)
    content = store(os.urandom(SEGMENT_SIZE + 1))
    assert copies(content) == 2
    assert Segment.objects.filter(check_at__isnull=False).count() == 2
    policy.change(copies=2, ack_copies=1)
    assert copies(store(b"y")) == 1


def test_copies_of_a_content_of_its_own(two: list[Broker]) -> None:
    assert copies(store(b"x", copies=1)) == 1


def test_offline_brokers_take_nothing(two: list[Broker]) -> None:
    third = memory_broker("c")
    Broker.objects.filter(pk=two[0].pk).update(health=Health.OFFLINE)
    content = store(b"z")
    assert {r.broker_id for r in replicas(content)} == {two[1].pk, third.pk}


def test_an_aborted_write_leaves_nothing_after_collect(two: list[Broker]) -> None:
    content = contents.create()
    writer = ContentWriter(content)
    writer.write(os.urandom(3 * SEGMENT_SIZE))
    writer.abort()
    writer.abort()
    assert contents.abandon(content.pk)
    assert not contents.abandon(content.pk)
    collect()
    assert not Content.objects.exists()
    assert not Replica.objects.exists()
    assert codes() == set()


def test_an_expired_upload_cannot_be_sealed(two: list[Broker]) -> None:
    content = contents.create()
    writer = ContentWriter(content)
    writer.write(b"late")
    written = writer.finish()
    contents.abandon(content.pk)
    with pytest.raises(StateConflict), transaction.atomic():
        contents.seal(content.pk, written)
    collect()
    assert codes() == set()


def test_memory_slots_come_back(two: list[Broker]) -> None:
    before = write._slots.taken
    store(os.urandom(4 * SEGMENT_SIZE))
    content = contents.create()
    writer = ContentWriter(content)
    writer.write(os.urandom(3 * SEGMENT_SIZE))
    writer.abort()
    assert write._slots.taken == before


@pytest.mark.django_db(transaction=True)
def test_intent_is_committed_before_the_put(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts run on other threads with connections of their own, which see what is committed and nothing else."""
    for name in "ab":
        memory_broker(name)
    seen: dict[str, str | None] = {}
    real = transfer.put

    def spy(broker: Broker, key: str, data: bytes, checksum: str) -> str:
        try:
            seen[key] = Replica.objects.filter(key=key).values_list("state", flat=True).first()
        finally:
            connection.close()
        return real(broker, key, data, checksum)

    monkeypatch.setattr(transfer, "put", spy)
    content = store(os.urandom(SEGMENT_SIZE + 1))
    assert set(seen.values()) == {State.PLANNED}
    assert {r.key for r in replicas(content, State.STORED)} == set(seen)


def test_query_counts_of_a_small_file(two: list[Broker], django_assert_max_num_queries: object) -> None:
    store(b"warm up")
    with django_assert_max_num_queries(20):  # type: ignore[operator]
        content = store(b"x" * 10_000)
    with django_assert_max_num_queries(3):  # type: ignore[operator]
        load(content)


def test_copy_status_in_constant_queries(two: list[Broker], django_assert_num_queries: object) -> None:
    many = [store(bytes([n])) for n in range(5)]
    with django_assert_num_queries(5):  # type: ignore[operator]
        found = contents.copy_status([c.pk for c in many])
    assert {s.text for s in found.values()} == {"2 of 2: a, b"}


def test_copy_status_names_every_broker_that_holds_a_part() -> None:
    for name in "abc":
        memory_broker(name)
    content = store(os.urandom(20), copies=1)
    only = replicas(content)[0]
    other = Broker.objects.exclude(pk=only.broker_id).order_by("name")[0]
    second = Segment.objects.create(
        content=content, position=1, offset=20, size=0, sealed_size=152, checksum="0" * 64
    )
    Replica.objects.create(segment=second, broker=other, key="cs/00/" + "0" * 32, state=State.STORED)
    status = contents.copy_status([content.pk])[content.pk]
    assert status.brokers == tuple(sorted([only.broker.name, other.name]))
    assert (status.stored, status.state) == (1, "ok")
