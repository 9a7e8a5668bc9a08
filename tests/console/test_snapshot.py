"""Snapshots of the metadata: what is in them, where they stand, what a crash leaves, how long they are kept."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.management.base import CommandError
from django.db import connection

from accounts import tokens
from accounts.models import User
from brokers.errors import Unavailable
from brokers.keyring import Keyring
from brokers.models import Broker
from console import tables
from console.snapshot import make
from console.tasks import snapshot as snapshot_task
from replication import epoch, snapshots, vault
from replication.models import Snapshot
from tests.brokers.conftest import faulty
from tests.console.kit import Crash, crash_at, run
from tests.kit.clock import VirtualClock
from tests.kit.threads import race
from tests.replication.kit import Objects, memory_broker
from tests.vfs.conftest import Put
from vfs.models import Node

pytestmark = pytest.mark.django_db(transaction=True)
State = Snapshot.State


def names(broker: Broker, part: str = "cs-meta/snapshot-") -> set[str]:
    return {name for name in Objects(broker) if name.startswith(part)}


def content_of(broker: Broker) -> list[Any]:
    """The lines of the newest snapshot on a broker."""
    found = max(vault.on_broker(broker).values(), key=lambda f: f.number)
    with vault.read(vault.read_manifest(found), [found]) as file:
        return [json.loads(line) for line in gzip.decompress(file.read()).decode().split("\n") if line]


def rows_of(lines: list[Any], label: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    fields = None
    for line in lines:
        if isinstance(line, dict):
            fields = line["fields"] if line.get("table") == label else None
        elif fields:
            rows.append(dict(zip(fields, line, strict=True)))
    return rows


def test_every_model_is_in_a_snapshot_or_left_out_for_a_reason() -> None:
    known = set(tables.TABLES) | set(tables.LEFT_OUT)
    assert tables.all_models() == known
    assert not set(tables.TABLES) & set(tables.LEFT_OUT)
    assert all(tables.LEFT_OUT.values())


def test_it_stands_on_two_domains_and_holds_everything(put: Put, two: list[Broker], alice: User) -> None:
    node = put(alice, "a folder/\u00e9t\u00e9 \U0001f600.txt", b"x" * 1000)
    tokens.create(alice, "my token")
    report = run("snapshot")
    assert (report["state"], report["brokers"], report["dropped"]) == ("standing", ["a", "b"], 0)
    lines = content_of(two[0])
    assert lines == content_of(two[1])
    assert lines[0]["format"] == "cloudstore metadata"
    assert lines[-1]["end"]["vfs.Node"] == Node.objects.count() == 3
    names_of_nodes = {row["name"] for row in rows_of(lines, "vfs.Node")}
    assert names_of_nodes == {"", "a folder", node.name}
    assert [r["password"] for r in rows_of(lines, "accounts.User")] == [alice.password]
    assert len(rows_of(lines, "accounts.Token")) == 1
    assert len(rows_of(lines, "replication.Replica")) == 2
    assert {r["name"] for r in rows_of(lines, "brokers.Broker")} == {"a", "b"}
    assert run("snapshot", "--list")[0]["id"] == report["id"]


def test_no_name_leaves_the_database(put: Put, two: list[Broker], alice: User) -> None:
    put(alice, "confidential.txt", b"bytes")
    make()
    for broker in two:
        for name, data in Objects(broker).items():
            assert b"confidential" not in data and b"alice" not in data
            assert "alice" not in name and "confidential" not in name


def test_uploads_in_progress_are_not_in_it(two: list[Broker], alice: User) -> None:
    from vfs.upload import FileUpload, target_at

    with FileUpload(alice, target_at(alice, ["x"]), size=3) as upload:
        upload.write(b"abc")
        upload.complete()
        make()
        upload.commit()
    lines = content_of(two[0])
    for label in ("Content", "Segment", "Replica"):
        assert rows_of(lines, f"replication.{label}") == []


def test_parts_are_as_small_as_segments(
    put: Put, two: list[Broker], alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault, "SEGMENT_SIZE", 500)
    for number in range(5):
        put(alice, f"{number}", b"data")
    made = make()
    assert made.parts > 5
    assert len(names(two[0])) == made.parts + 1
    assert content_of(two[0])[-1]["end"]["vfs.Node"] == 6


def test_another_broker_takes_over(put: Put, two: list[Broker]) -> None:
    memory_broker("c")
    with faulty(two[0]) as driver:
        driver.fail("put", Unavailable("down"), on=lambda call: "snapshot" in call.name)
        made = make()
    assert {c.broker.name for c in made.copies.exclude(verified_at=None)} == {"b", "c"}


def test_what_reads_back_differently_does_not_count(
    two: list[Broker], expect_log: Callable[..., None]
) -> None:
    expect_log("stands on b alone")
    with faulty(two[0]) as driver:
        driver.flip("put", offset=200, on=lambda call: call.name.endswith("/000000"))
        driver.lie()  # the provider tells the size that was sent, and no checksum
        driver.lie(checksum=None)
        made = make()
    assert [c.broker.name for c in made.copies.exclude(verified_at=None)] == ["b"]
    assert vault.on_broker(two[0])[made.pk].manifest == ""
    assert snapshots.standing() == []


def test_one_domain_is_a_loud_warning(expect_log: Callable[..., None]) -> None:
    memory_broker("a")
    expect_log("the snapshot stands on a alone")
    assert make().state == State.STANDING


def test_no_broker_is_an_error(expect_log: Callable[..., None]) -> None:
    with pytest.raises(CommandError, match="no broker took the snapshot"):
        run("snapshot")
    assert Snapshot.objects.get().state == State.DOOMED
    expect_log("no snapshot of the metadata was made")
    snapshot_task()


@pytest.mark.parametrize(
    ("place", "time"),
    [
        ("epoch.raised", 1),
        ("snapshot.begun", 1),
        ("vault.copy_planned", 1),
        ("vault.parts_stored", 1),
        ("vault.manifest_stored", 1),
        ("vault.copy_planned", 2),
        ("vault.parts_stored", 2),
        ("vault.manifest_stored", 2),
        ("snapshot.stored", 1),
    ],
)
def test_a_crash_leaves_nothing_that_is_taken_for_a_snapshot(
    put: Put, two: list[Broker], alice: User, clock: VirtualClock, place: str, time: int
) -> None:
    put(alice, "f", b"data")
    good = make()
    with crash_at(place, time), pytest.raises(Crash):
        make()
    # Whatever has a manifest is whole.
    for broker in two:
        for found in vault.on_broker(broker).values():
            if found.manifest:
                vault.read(vault.read_manifest(found), [found]).close()
    snapshots.retain()
    assert good.pk in {s.pk for s in snapshots.standing()}
    # Long after, what the crash left is gone, and nothing else.
    clock.advance(hours=7)
    last = make()
    snapshots.retain()
    whole = {s.pk for s in Snapshot.objects.filter(state=State.STANDING)}
    assert {good.pk, last.pk} <= whole
    assert Snapshot.objects.count() == len(whole)
    for broker in two:
        assert set(vault.on_broker(broker)) == whole
        assert len(names(broker, "cs-meta/epoch-")) == 1


@pytest.mark.parametrize("time", [1, 2, 3])
def test_a_crash_while_dropping_is_finished_later(
    two: list[Broker], settings: Any, clock: VirtualClock, time: int
) -> None:
    settings.CLOUDSTORE_SNAPSHOT_KEEP, settings.CLOUDSTORE_SNAPSHOT_DAYS = 1, 0
    make()
    clock.advance(days=1)
    last = make()
    with crash_at("vault.object_removed", time), pytest.raises(Crash):
        snapshots.retain()
    snapshots.retain()
    assert list(Snapshot.objects.values_list("pk", flat=True)) == [last.pk]
    for broker in two:
        assert set(vault.on_broker(broker)) == {last.pk}


def test_retention(two: list[Broker], settings: Any, clock: VirtualClock) -> None:
    settings.CLOUDSTORE_SNAPSHOT_KEEP, settings.CLOUDSTORE_SNAPSHOT_DAYS = 3, 5
    made = []
    for _hour in range(0, 24 * 8, 8):
        made.append(make().created_at)
        snapshots.retain()
        clock.advance(hours=8)
    kept = sorted(s.created_at for s in Snapshot.objects.all())
    newest_of_days = {at.date(): at for at in made}
    wanted = set(made[-3:]) | {at for at in newest_of_days.values() if made[-1] - at <= timedelta(days=5)}
    assert kept == sorted(wanted)
    for broker in two:
        assert len(vault.on_broker(broker)) == len(kept)


def test_nothing_is_dropped_while_no_newer_one_stands_on_two_brokers(
    two: list[Broker], settings: Any, clock: VirtualClock, expect_log: Callable[..., None]
) -> None:
    settings.CLOUDSTORE_SNAPSHOT_KEEP, settings.CLOUDSTORE_SNAPSHOT_DAYS = 1, 0
    expect_log("stands on b alone")
    good = make()
    for _ in range(3):
        clock.advance(days=1)
        with faulty(two[0]) as driver:
            driver.fail("put", Unavailable("down"), on=lambda call: "snapshot" in call.name)
            make()
            snapshots.retain()
            driver.clear()
    assert good.pk in vault.on_broker(two[0]) and good.pk in vault.on_broker(two[1])
    clock.advance(days=1)
    last = make()
    snapshots.retain()
    assert set(vault.on_broker(two[1])) == {last.pk}


def test_a_broker_that_is_away_keeps_its_objects_until_it_answers(
    two: list[Broker], settings: Any, clock: VirtualClock
) -> None:
    settings.CLOUDSTORE_SNAPSHOT_KEEP, settings.CLOUDSTORE_SNAPSHOT_DAYS = 1, 0
    old = make()
    clock.advance(days=1)
    make()
    with faulty(two[0]) as driver:
        driver.fail("delete", Unavailable("down"))
        snapshots.retain()
        driver.clear()
    assert Snapshot.objects.get(pk=old.pk).state == State.DOOMED
    snapshots.retain()
    assert not Snapshot.objects.filter(pk=old.pk).exists()
    assert old.pk not in vault.on_broker(two[0])


def test_the_collector_and_the_orphan_search_leave_snapshots_alone(
    two: list[Broker], clock: VirtualClock
) -> None:
    make()
    before = {broker.pk: set(Objects(broker)) for broker in two}
    for _ in range(3):
        clock.advance(days=3)
        report = run("collect", "--now", "--orphans")
        assert report["orphans"]["orphans"] == 0
    assert {broker.pk: set(Objects(broker)) for broker in two} == before
    assert run("fsck", "--full") == {"findings": []}


def test_it_sees_one_moment_while_uploads_go_on(put: Put, two: list[Broker], alice: User) -> None:
    """Every version in a snapshot has its content, every content its segments, whatever commits meanwhile."""
    for number in range(10):
        put(alice, f"before-{number}", b"x")

    def work(i: int) -> None:
        for number in range(12):
            if i == 0:
                make()
            else:
                put(alice, f"{i}-{number}", b"y" * number)

    assert race(3, work) == [None] * 3
    for found in vault.on_broker(two[0]).values():
        with vault.read(vault.read_manifest(found), [found]) as file:
            lines = [json.loads(line) for line in gzip.decompress(file.read()).decode().split("\n") if line]
        contents = {row["id"] for row in rows_of(lines, "replication.Content")}
        assert {row["content_id"] for row in rows_of(lines, "vfs.Version")} <= contents
        assert {row["content_id"] for row in rows_of(lines, "replication.Segment")} == contents
        used = sum(r["size"] for r in rows_of(lines, "replication.Content"))
        assert [row["used"] for row in rows_of(lines, "accounts.User")] == [used]
        assert lines[-1]["end"]["vfs.Version"] >= 10


def test_what_commits_between_two_tables_is_not_in_it(
    put: Put, two: list[Broker], alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(alice, "before", b"x")
    rows = tables.Table.rows

    def slow(table: tables.Table) -> Iterator[tuple[object, ...]]:
        if table.label == "vfs.Node":
            race(1, lambda _: put(alice, "meanwhile", b"y"))
        return rows(table)

    monkeypatch.setattr(tables.Table, "rows", slow)
    make()
    assert Node.objects.filter(name="meanwhile").exists()
    lines = content_of(two[0])
    assert {row["name"] for row in rows_of(lines, "vfs.Node")} == {"", "before"}
    assert len(rows_of(lines, "vfs.Version")) == len(rows_of(lines, "replication.Content")) == 1


def test_a_writer_does_not_wait_for_a_snapshot(put: Put, two: list[Broker], alice: User) -> None:
    """The transaction that reads keeps nobody from writing."""
    from console.snapshot import one_moment

    def work(i: int) -> int:
        with one_moment():
            before = Node.objects.count()
            if i == 0:
                race(1, lambda _: put(alice, "meanwhile", b"z"))
            return Node.objects.count() - before

    assert work(0) == 0, "and it does not see what was written"
    assert Node.objects.filter(name="meanwhile").exists()
    if connection.vendor == "sqlite":
        assert connection.transaction_mode == "IMMEDIATE"


def test_a_wrong_or_changed_key_opens_nothing(two: list[Broker], settings: Any) -> None:
    made = make()
    found = vault.on_broker(two[0])[made.pk]
    settings.CLOUDSTORE_MASTER_KEYS = {1: b"w" * 32}
    with pytest.raises(Exception, match="does not open"):
        vault.read_manifest(found)
    settings.CLOUDSTORE_MASTER_KEYS = {2: b"w" * 32}
    with pytest.raises(Exception, match="version 1 is not configured"):
        vault.read_manifest(found)


def test_a_part_comes_from_whichever_copy_is_intact(put: Put, two: list[Broker], alice: User) -> None:
    put(alice, "f", b"data")
    made = make()
    copies = [vault.on_broker(broker)[made.pk] for broker in two]
    manifest = vault.read_manifest(copies[1])
    objects = Objects(two[0])
    part = copies[0].parts[0]
    changed = bytearray(objects[part])
    changed[300] ^= 1
    objects[part] = bytes(changed)
    vault.read(manifest, copies).close()
    with pytest.raises(vault.SnapshotDamaged, match="part 0 cannot be read"):
        vault.read(manifest, copies[:1])


def test_the_manifest_says_which_master_keys_are_needed(
    put: Put, two: list[Broker], alice: User, settings: Any
) -> None:
    put(alice, "f", b"data")
    settings.CLOUDSTORE_MASTER_KEYS = {**django_settings.CLOUDSTORE_MASTER_KEYS, 2: b"2" * 32}
    made = make()
    assert made.master_keys == [1, 2]
    assert vault.read_manifest(vault.on_broker(two[0])[made.pk]).master_keys == (1, 2)
    assert Keyring(settings.CLOUDSTORE_MASTER_KEYS).current == 2


def test_each_snapshot_has_an_epoch_of_its_own(two: list[Broker]) -> None:
    first, second = make(), make()
    assert second.number == first.number + 1 == epoch.current().number
    for broker in two:
        assert names(broker, "cs-meta/epoch-") == {epoch.name_of(second.number)}
