"""A database that is older than its brokers deletes nothing until an operator says so."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management.base import CommandError

from accounts.models import AuditEvent, User
from brokers.errors import Unavailable
from brokers.models import Broker
from console.tasks import advance_epoch
from replication import collect, contents, epoch, orphans, reconcile, scrub
from replication.models import Content, Event, Replica
from tests.brokers.conftest import faulty
from tests.console.kit import Crash, crash_at, load, new_process, objects_of, run, save, tree, unread
from tests.kit.clock import VirtualClock
from tests.kit.threads import race
from tests.replication.kit import Objects
from tests.vfs.conftest import Put
from vfs import fsck, trash
from vfs.models import Node
from vfs.upload import FileUpload, expire_uploads, target_at

pytestmark = pytest.mark.django_db(transaction=True)
LOCKED = "deletion is locked"


def run_everything(clock: VirtualClock) -> None:
    """Everything that works in the background, for a week."""
    for _ in range(7):
        clock.advance(days=1)
        advance_epoch()
        expire_uploads()
        reconcile.run_to_rest()
        collect.collect(grace=timedelta(0))
        orphans.scan()
        scrub.scrub(everything=True)


def test_an_older_database_put_back_deletes_nothing(
    put: Put, two: list[Broker], alice: User, root: User, clock: VirtualClock, expect_log: Callable[..., None]
) -> None:
    """B17. And B10: what is newer comes back."""
    expect_log(LOCKED)
    purged = put(alice, "purged-before", b"1")
    put(alice, "kept", b"2")
    advance_epoch()
    dump = save()
    put(alice, "newer", b"3" * 300_000)
    trash.purge(alice, alice, purged.pk)
    advance_epoch()
    load(dump)
    # Files deleted in the older database, and an upload that it saw in progress, give the collector work.
    trash.purge(alice, alice, Node.objects.get(name="kept").pk)
    before = {broker.pk: dict(Objects(broker)) for broker in two}
    run_everything(clock)
    for broker in two:
        assert before[broker.pk].items() <= dict(Objects(broker)).items(), "something was deleted or changed"
    assert Replica.objects.filter(state=Replica.State.DOOMED).exists(), "there was work for the collector"
    assert "deletion_locked" in {f.code for f in fsck.check()}
    assert "older" in run("collect", "--dry-run")["locked"]
    assert "older" in run("collect")["locked"]
    with pytest.raises(CommandError, match="no snapshot while deletion is locked"):
        run("snapshot")
    # Uploads and downloads go on.
    put(alice, "while-locked", b"4")
    assert unread() == []

    outlook = run("epoch_confirm", "--dry-run")
    assert outlook["locked"] and outlook["unknown_objects"] == 2 and outlook["doomed_objects"] == 2
    assert outlook["older_than_grace"] is True
    assert run("adopt", "--dry-run")["objects"]["unknown"] == 2
    report = run("adopt")
    assert report["objects"]["contents"] == 1 and report["operator"] == "root"
    assert any("lost+found" in path for path in tree())
    assert run("epoch_confirm", "--dry-run")["unknown_objects"] == 0
    assert run("epoch_confirm")["locked"] is False
    assert AuditEvent.objects.filter(action="epoch.confirmed").count() == 1
    collect.collect(grace=timedelta(0))
    assert not Replica.objects.filter(state=Replica.State.DOOMED).exists()
    reconcile.run_to_rest()
    assert run("fsck", "--full") == {"findings": []}
    assert unread() == []


def test_an_upload_that_the_older_database_saw_in_progress_comes_back(
    two: list[Broker], alice: User, root: User, clock: VirtualClock, expect_log: Callable[..., None]
) -> None:
    expect_log(LOCKED)
    with FileUpload(alice, target_at(alice, ["film"]), size=5) as upload:
        upload.write(b"12345")
        upload.complete()
        dump = save()
        upload.commit()
    advance_epoch()
    load(dump)
    clock.advance(hours=3)
    for _ in range(3):
        expire_uploads()
        collect.collect(grace=timedelta(0))
    assert all(len(objects_of(broker)) == 1 for broker in two)
    report = run("adopt")
    assert report["objects"]["contents"] == 1
    assert [path.split(":")[0] for path in tree()] == ["root"]
    assert unread() == []
    run("epoch_confirm")
    assert run("fsck", "--full") == {"findings": []}


def test_a_file_of_the_older_database_that_was_collected_since_is_named(
    put: Put, two: list[Broker], alice: User, clock: VirtualClock, expect_log: Callable[..., None]
) -> None:
    """B18, both sides: within the grace nothing is lost; after it fsck names the file."""
    expect_log(LOCKED)
    node = put(alice, "deleted since", b"data")
    advance_epoch()
    dump = save()
    trash.purge(alice, alice, node.pk)
    advance_epoch()
    clock.advance(hours=23)
    collect.collect()
    saved = {broker.pk: dict(Objects(broker)) for broker in two}
    load(dump)
    assert unread() == [], "younger than the grace: whole"
    assert saved == {broker.pk: dict(Objects(broker)) for broker in two}
    run("epoch_confirm")
    clock.advance(hours=1)
    dump = save()
    trash.purge(alice, alice, Node.objects.get(name="deleted since").pk)
    clock.advance(hours=25)
    advance_epoch()
    collect.collect()
    load(dump)
    assert run("epoch_confirm", "--dry-run")["older_than_grace"] is True
    with pytest.raises(SystemExit):
        run("fsck", "--full")
    assert "object_missing" in {f.code for f in fsck.check(full=True)}


def test_confirmed_objects_that_stay_unknown_go_after_the_orphan_age(
    put: Put, two: list[Broker], alice: User, clock: VirtualClock, expect_log: Callable[..., None]
) -> None:
    expect_log(LOCKED)
    advance_epoch()
    dump = save()
    put(alice, "newer", b"3")
    advance_epoch()
    load(dump)
    for _ in range(4):
        clock.advance(days=1)
        orphans.scan()
    run("epoch_confirm")
    # Sightings by an unconfirmed database count for nothing.
    orphans.scan()
    assert all(len(objects_of(broker)) == 1 for broker in two)
    clock.advance(days=3)
    assert orphans.scan().deleted == 2


def test_it_is_seen_by_a_process_that_starts_and_by_none_too_late(
    put: Put, two: list[Broker], alice: User, clock: VirtualClock, expect_log: Callable[..., None]
) -> None:
    """What a process saw of a broker is believed for minutes only."""
    expect_log(LOCKED)
    advance_epoch()
    assert epoch.deletable() == {broker.pk for broker in two}
    higher = epoch.name_of(epoch.current().number + 5)
    Objects(two[1])[higher] = epoch.TEXT
    assert epoch.deletable() == {broker.pk for broker in two}, "believed"
    clock.advance(seconds=epoch.BELIEVED + 1)
    assert epoch.deletable() == set()
    assert Event.objects.filter(kind="deletion locked").count() == 1
    run("epoch_confirm")
    assert epoch.current().number == int(higher[-12:]) + 1
    assert epoch.deletable() == {broker.pk for broker in two}
    new_process()
    assert epoch.deletable(fresh=True) == {broker.pk for broker in two}


def test_a_broker_that_does_not_tell_its_epoch_loses_nothing(
    put: Put, two: list[Broker], alice: User, clock: VirtualClock
) -> None:
    node = put(alice, "f", b"data")
    trash.purge(alice, alice, node.pk)
    with faulty(two[0]) as driver:
        driver.fail("list", Unavailable("down"))
        collect.collect(grace=timedelta(0))
        assert driver.count("delete") == 0
    assert (len(objects_of(two[0])), len(objects_of(two[1]))) == (1, 0)
    collect.collect(grace=timedelta(0))
    assert objects_of(two[0]) == set()


def test_many_raise_it_at_once(two: list[Broker]) -> None:
    def work(_i: int) -> int:
        return max(filter(None, (epoch.advance() for _ in range(5))))

    numbers = race(4, work)
    assert all(isinstance(number, int) for number in numbers), numbers
    assert epoch.lock() is None
    number = epoch.current().number
    assert 1 <= number <= 20
    epoch.advance()
    for broker in two:
        assert max(epoch.on_broker(broker)) == number + 1


@pytest.mark.parametrize("place", ["epoch.raised"])
def test_a_crash_after_the_commit_locks_nothing(two: list[Broker], place: str) -> None:
    advance_epoch()
    with crash_at(place), pytest.raises(Crash):
        epoch.advance()
    new_process()
    assert epoch.deletable(fresh=True) == {broker.pk for broker in two}
    assert epoch.advance() == 3


def test_the_log_says_it_once_an_hour(
    two: list[Broker], clock: VirtualClock, strict_log: Any, expect_log: Callable[..., None]
) -> None:
    expect_log(LOCKED)
    new_process()
    epoch.lock_now(9, "for a test")
    for _ in range(120):
        epoch.deletable()
        clock.advance(minutes=1)
    assert len([r for r in strict_log.records if LOCKED in r.getMessage()]) == 2
    assert contents.referrers() and not Content.objects.exists()
