"""Nodes whose clocks differ by an hour either way, and a clock that steps back: nothing is deleted early that
anybody may need, nothing is doubled for good, and work is late by no more than the difference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest

from accounts.models import User
from brokers import clock as clock_module
from brokers.models import Broker
from replication import collect, orphans, reconcile
from replication.models import Orphan, Replica, Segment
from tests.kit.clock import VirtualClock
from tests.replication.kit import Objects, copies, load, memory_broker, store
from tests.vfs.conftest import Put
from vfs import trash
from vfs.fsck import check
from vfs.models import Upload
from vfs.upload import FileUpload, expire_uploads, target_at

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)
STRAY = "cs/ab/" + "ab" * 16


class Skewed:
    """A node's clock: another one, so much ahead (or, negative, behind)."""

    def __init__(self, true: VirtualClock, ahead: timedelta) -> None:
        self.true, self.ahead = true, ahead

    def now(self) -> datetime:
        return self.true.now() + self.ahead

    def monotonic(self) -> float:
        return self.true.monotonic()

    def sleep(self, seconds: float) -> None:
        self.true.sleep(seconds)


@contextmanager
def node(clock: VirtualClock, ahead: timedelta) -> Iterator[None]:
    """What runs inside runs on a node with this clock."""
    before = clock_module.install(Skewed(clock, ahead))
    try:
        yield
    finally:
        clock_module.install(before)


BOTH = pytest.mark.parametrize("ahead", [HOUR, -HOUR], ids=["ahead", "behind"])


@BOTH
def test_a_running_upload_is_not_given_back(
    clock: VirtualClock, two: list[Broker], alice: User, ahead: timedelta
) -> None:
    with FileUpload(alice, target_at(alice, ["a.bin"]), size=20) as upload:
        for _ in range(10):
            upload.write(b"xy")
            clock.advance(seconds=61)
            with node(clock, ahead):
                assert expire_uploads() == 0
                assert collect.collect().objects == 0
        upload.complete()
        upload.commit()
    assert check(full=True) == []


@BOTH
def test_an_upload_that_nobody_continues_goes_late_by_the_difference(
    clock: VirtualClock, two: list[Broker], alice: User, settings, ahead: timedelta
) -> None:
    with node(clock, ahead):
        FileUpload(alice, target_at(alice, ["a.bin"]), size=20)
    clock.advance(seconds=(settings.CLOUDSTORE_UPLOAD_EXPIRY + HOUR).total_seconds())
    assert expire_uploads() == 1
    assert not Upload.objects.exists()


@BOTH
def test_purged_bytes_stay_for_the_grace_less_the_difference(
    clock: VirtualClock, put: Put, alice: User, two: list[Broker], ahead: timedelta
) -> None:
    file = put(alice, "a.bin", b"x" * 100)
    with node(clock, -ahead):
        trash.trash(alice, alice, file.pk)
        trash.purge(alice, alice, file.pk)
    clock.advance(hours=21)
    with node(clock, ahead):
        assert collect.collect().objects == 0
    assert all(len(Objects(broker)) for broker in two)
    clock.advance(hours=6)
    with node(clock, ahead):
        collect.collect()
        collect.collect()
    assert check(full=True) == []


@BOTH
def test_two_repairers_of_one_segment(clock: VirtualClock, two: list[Broker], ahead: timedelta) -> None:
    """The second believes the first one's lease to be over, or far away: at rest there are just the copies."""
    content = store(b"x" * 100)
    memory_broker("c")
    Replica.objects.filter(segment__content=content, broker=two[0]).update(state=Replica.State.LOST)
    segment = content.segments.get()
    Segment.objects.filter(pk=segment.pk).update(check_at=clock.now() + timedelta(minutes=10))  # held by one
    with node(clock, ahead):
        reconcile.sweep(full=True)
    for minutes in (11, 61, 61):
        clock.advance(minutes=minutes)
        reconcile.sweep(full=True)
        with node(clock, ahead):
            reconcile.sweep(full=True)
            collect.collect()
    assert copies(content) == 2
    assert Replica.objects.filter(segment=segment).count() == 2
    assert load(content) == b"x" * 100
    assert sum(len([n for n in Objects(b) if n.startswith("cs/")]) for b in Broker.objects.all()) == 2


@BOTH
def test_orphans_of_another_nodes_clock(clock: VirtualClock, two: list[Broker], ahead: timedelta) -> None:
    content = store(b"kept")
    Objects(two[0])[STRAY] = b"12345"
    with node(clock, ahead):
        orphans.scan()
    clock.advance(hours=45)
    with node(clock, -ahead):
        orphans.scan()
    assert STRAY in Objects(two[0])
    clock.advance(hours=5)
    with node(clock, ahead):
        orphans.scan()
    assert STRAY not in Objects(two[0])
    assert load(content) == b"kept"
    assert copies(content) == 2


def test_a_clock_that_steps_back(clock: VirtualClock, two: list[Broker], put: Put, alice: User) -> None:
    """An hour back: ages are negative for a while, and nothing is taken for old."""
    with node(clock, HOUR):
        put(alice, "kept.bin", b"x" * 100)
        gone = put(alice, "gone.bin", b"y" * 100)
        trash.trash(alice, alice, gone.pk)
        trash.purge(alice, alice, gone.pk)
        Objects(two[0])[STRAY] = b"12345"
        orphans.scan()
        running = FileUpload(alice, target_at(alice, ["running.bin"]), size=4)
        running.write(b"ab")
    assert collect.collect().objects == 0
    assert orphans.scan().deleted == 0
    assert Orphan.objects.exists()
    assert expire_uploads() == 0
    running.write(b"cd")
    running.complete()
    running.commit()
    reconcile.sweep(full=True)
    clock.advance(hours=60)
    orphans.scan()
    collect.collect()
    collect.collect()
    reconcile.sweep(full=True)
    assert [f.code for f in check(full=True)] == []
