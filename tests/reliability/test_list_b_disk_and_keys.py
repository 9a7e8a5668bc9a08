"""List B of docs/reliability.md, the disk below a local broker (B14, B15), master keys (B20, B21), and rows that
always fail (B25). (B16, the order of system calls, is in tests/brokers/test_local.py.)"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from brokers import health, keyring
from brokers.drivers import local as local_module
from brokers.models import Broker, BrokerEvent, Health, MasterKeyCheck
from brokers.names import new_object_key
from replication import places, policy, reconcile, scrub, transfer
from replication.collect import collect
from replication.models import Content, Event, Replica, Segment
from tests.kit import counters
from tests.kit.clock import VirtualClock
from tests.reliability.kit import Drive, Files, Places, at_rest, findings, settle
from vfs.models import Node

pytestmark = pytest.mark.django_db
State = Replica.State


class Disk:
    """Fails system calls of the local driver that concern one folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = "/nowhere"
        self.failing: dict[str, int] = {}
        self.failed: list[tuple[str, int]] = []
        for name in ("write", "fdatasync", "fsync", "replace"):
            monkeypatch.setattr(local_module.os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *rest: Any, **named: Any) -> Any:
            number = self.failing.get(name)
            about = first if isinstance(first, int) else named.get("src_dir_fd")
            if number and about is not None and self._concerned(about):
                counters.add(counters.FAULTS)
                self.failed.append((name, about))
                raise OSError(number, os.strerror(number))
            return original(first, *rest, **named)

        return call

    def _concerned(self, descriptor: int) -> bool:
        try:
            return os.readlink(f"/proc/self/fd/{descriptor}").startswith(self.folder)
        except OSError:
            return False


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk(monkeypatch)
    yield made
    made.failing.clear()


def temporary_files(broker: Broker) -> list[str]:
    return [name for name in Files(broker) if name.startswith(".tmp/")]


# -- B14, B15 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["write", "fdatasync", "replace"])
def test_b14_a_disk_that_is_full_in_the_middle_of_a_write(
    local_places: Places, clock: VirtualClock, drive: Drive, disk: Disk, step: str
) -> None:
    """Nothing of the object stays, the copy goes to another disk, and the broker takes no more until there is room."""
    brokers = [local_places.add(name) for name in "abc"]
    Broker.objects.filter(name="c").update(weight=1e-9)
    drive.keep("before", b"x" * 1000)
    before = local_places.objects(brokers[0])
    disk.folder, disk.failing = brokers[0].options["root"], {step: errno.ENOSPC}
    drive.keep("meanwhile", b"y" * 1000)
    assert len(disk.failed) == 1, "no second try on a full disk"
    assert local_places.objects(brokers[0]) == before
    assert temporary_files(brokers[0]) == []
    stored = Replica.objects.filter(state=State.STORED, segment__content__versions__node__name="meanwhile")
    assert {r.broker.name for r in stored} == {"b", "c"}
    disk.failing = {"write": errno.ENOSPC}
    health.poll_due()
    row = Broker.objects.get(pk=brokers[0].pk)
    assert (row.health, row.health_reason, row.readable) == (Health.FULL, "out_of_space", True)
    assert BrokerEvent.objects.filter(broker=row, kind=Health.FULL).count() == 1
    failed = len(disk.failed)
    drive.keep("after", b"z" * 1000)
    assert len(disk.failed) == failed
    drive.check()
    disk.failing = {}
    settle(clock)
    at_rest(local_places, brokers, drive)


def test_b15_a_sync_that_failed_is_a_failed_put(
    local_places: Places, clock: VirtualClock, drive: Drive, disk: Disk
) -> None:
    """The descriptor is never synced again, for the second sync could lie; the object is written anew from the
    beginning, or elsewhere."""
    brokers = [local_places.add(name) for name in "abc"]
    Broker.objects.filter(name="c").update(weight=1e-9)
    drive.keep("before", b"x" * 1000)
    disk.folder, disk.failing = brokers[0].options["root"], {"fdatasync": errno.EIO}
    drive.keep("meanwhile", os.urandom(1000))
    assert 1 <= len(disk.failed) <= 4, "each try of the put, once"
    assert temporary_files(brokers[0]) == []
    stored = Replica.objects.filter(state=State.STORED, segment__content__versions__node__name="meanwhile")
    assert {r.broker.name for r in stored} == {"b", "c"}
    disk.failing = {}
    settle(clock)
    at_rest(local_places, brokers, drive)


# -- B20 -----------------------------------------------------------------------------------------------------

WRONG = {1: b"another key of thirty-two bytes!"}


def test_b20_a_wrong_master_key_writes_nothing(
    places: Places, clock: VirtualClock, drive: Drive, settings: Any, expect_log: Callable[..., None]
) -> None:
    """Nothing is sealed with it, nothing overwritten, nothing given out and nothing deleted; the reason is said. With
    the right key all is as before."""
    expect_log("Service Unavailable", "the master key does not open")
    brokers = [places.add(name) for name in "ab"]
    drive.keep("file", b"x" * 1000)
    right = settings.CLOUDSTORE_MASTER_KEYS
    checks = list(MasterKeyCheck.objects.values_list("version", "check_value"))
    rows = Content.objects.count(), Segment.objects.count(), Replica.objects.count(), Node.objects.count()
    held = [{name: places.held(broker)[name] for name in places.objects(broker)} for broker in brokers]

    settings.CLOUDSTORE_MASTER_KEYS = WRONG
    with pytest.raises(keyring.WrongMasterKey, match=r"not the key that this database was sealed with"):
        keyring.keyring()
    for answer in (
        drive.put("file", b"y"),
        drive.put("new", b"y"),
        drive.form("form", b"y"),
        drive.get("file")[0],
    ):
        assert (answer.status_code, answer.json()["code"]) == (503, "wrong_master_key")
    drive.kept.pop("form", None)
    assert drive.client.get("/api/v1/files/").status_code == 200, "names are there to see"
    assert any(line.startswith("key_does_not_open") for line in findings())
    assert "unreadable_file: alice: /file, version 1" in findings()
    clock.advance(days=3)
    scrub.scrub(everything=True)
    reconcile.run_to_rest()
    collect()
    assert held == [{n: places.held(b)[n] for n in places.objects(b)} for b in brokers]
    assert rows == (
        Content.objects.count(),
        Segment.objects.count(),
        Replica.objects.count(),
        Node.objects.count(),
    )
    assert checks == list(MasterKeyCheck.objects.values_list("version", "check_value"))
    assert drive.usage() == (1000, 0)

    settings.CLOUDSTORE_MASTER_KEYS = right
    drive.keep("new", b"z" * 10)
    at_rest(places, brokers, drive)


# -- B21 -----------------------------------------------------------------------------------------------------


def test_b21_a_key_version_that_is_missing(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive, settings: Any,
    expect_log: Callable[..., None],
) -> None:  # fmt: skip
    """Only what was sealed with it cannot be read, and fsck names it; it is neither collected nor left without repair,
    for copies need no key. Everything else goes on."""
    expect_log("Service Unavailable", "the master key does not open")
    first = settings.CLOUDSTORE_MASTER_KEYS
    drive.keep("old", b"x" * 1000)
    settings.CLOUDSTORE_MASTER_KEYS = {**first, 2: b"the second key of 32 bytes, true"}
    drive.keep("new", b"y" * 1000)
    assert Content.objects.get(versions__node__name="new").key_version == 2
    settings.CLOUDSTORE_MASTER_KEYS = first
    answer, _body = drive.get("new")
    assert (answer.status_code, answer.json()["code"]) == (503, "wrong_master_key")
    drive.get("old")
    drive.keep("newest", b"z" * 1000)
    named = [line for line in findings() if "key_does_not_open" in line or "unreadable_file" in line]
    assert len(named) == 2
    assert "unreadable_file: alice: /new, version 1" in named

    replica = Replica.objects.filter(segment__content__versions__node__name="new").select_related("broker")[0]
    del memory_places.held(replica.broker)[replica.locator]
    scrub.scrub(everything=True)
    settle(clock, hours=30)
    assert Event.objects.filter(kind="copied").count() == 1, "repaired without its key"
    assert not Event.objects.filter(kind="collected").exists()
    settings.CLOUDSTORE_MASTER_KEYS = {**first, 2: b"the second key of 32 bytes, true"}
    at_rest(memory_places, three, drive)


# -- B25 -----------------------------------------------------------------------------------------------------


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Locators whose mere touching is an error that nobody expects."""
    bad: set[str] = set()

    def poisoned(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(broker: Broker, locator: str, *rest: Any) -> Any:
            if locator in bad:
                counters.add(counters.FAULTS)
                raise RuntimeError("poison")
            return original(broker, locator, *rest)

        return call

    for name in ("fetch_whole", "remove", "fetch_all"):
        monkeypatch.setattr(transfer, name, poisoned(getattr(transfer, name)))
    return bad


def _poisoned_file(drive: Drive, poison: set[str], three: list[Broker]) -> Segment:
    """Of five files, the first has copies that cannot be touched."""
    for number in range(5):
        drive.keep(f"file {number}", b"x" * 100)
    segment = Segment.objects.get(content__versions__node__name="file 0")
    poison.update(segment.replicas.values_list("locator", flat=True))
    return segment


def test_b25_the_reconciler_parks_what_always_fails(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive, poison: set[str],
    expect_log: Callable[..., None],
) -> None:  # fmt: skip
    """It is tried less and less often, with the reason in its row, and the others come to rest meanwhile."""
    expect_log("reconciling segment")
    segment = _poisoned_file(drive, poison, three)
    Segment.objects.update(check_at=clock.now())
    policy.change(copies=3)
    waits = []
    for _ in range(8):
        reconcile.sweep()
        segment.refresh_from_db()
        assert segment.check_at is not None
        waits.append((segment.check_at - clock.now()).total_seconds())
        clock.advance(seconds=waits[-1])
    assert waits == [30, 60, 120, 240, 480, 900, 900, 900]
    assert (segment.attempts, segment.blocked) == (8, "failed; see the log")
    others = Segment.objects.exclude(pk=segment.pk)
    assert all(s.replicas.filter(state=State.STORED).count() == 3 for s in others)
    poison.clear()
    settle(clock)
    at_rest(memory_places, three, drive)


def test_b25_the_scrub_goes_on_behind_what_always_fails(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive, poison: set[str],
    expect_log: Callable[..., None],
) -> None:  # fmt: skip
    """The copy that was proven longest ago, and so comes first, is the one that fails: the others are read all the
    same, in this run and in the next."""
    expect_log("scrubbing replica")
    segment = _poisoned_file(drive, poison, three)
    for _ in range(2):
        clock.advance(days=14)
        report = scrub.scrub()
        assert (report.replicas, report.unreachable) == (10, 2)
    assert not Replica.objects.exclude(segment=segment).filter(verified_at__lt=clock.now()).exists()
    assert Replica.objects.filter(segment=segment, state=State.STORED).count() == 2
    poison.clear()
    clock.advance(days=14)
    assert scrub.scrub().unreachable == 0
    settle(clock)
    at_rest(memory_places, three, drive)


def test_b25_the_collector_goes_on_behind_what_always_fails(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive, poison: set[str],
    expect_log: Callable[..., None],
) -> None:  # fmt: skip
    expect_log("deleting replica")
    segment = _poisoned_file(drive, poison, three)
    for name in list(drive.kept):
        assert drive.client.delete(f"{drive.FILES}/{name}?purge=true").status_code == 204
    drive.kept.clear()
    clock.advance(days=3)
    report = collect()
    assert (report.objects, report.failed) == (8, 2)
    assert set(Replica.objects.values_list("segment", "state")) == {(segment.pk, State.DOOMED)}
    assert all(r.attempts == 1 and r.check_at and r.check_at > clock.now() for r in Replica.objects.all())
    poison.clear()
    clock.advance(hours=2)
    assert collect().objects == 2
    at_rest(memory_places, three, drive)


def test_b25_the_sweep_goes_on_behind_a_place_that_always_fails(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive,
    monkeypatch: pytest.MonkeyPatch, expect_log: Callable[..., None],
) -> None:  # fmt: skip
    expect_log("looking at the place of a failed")
    drive.keep("file", b"x" * 100)
    del memory_places.held(three[0])["cs-marker"]
    if not memory_places.objects(three[0]):
        memory_places.held(three[0])[new_object_key()] = b"x"
    assert health.poll(three[0].pk).health_reason == "marker_missing"

    def fails(_broker: Broker) -> bool:
        raise RuntimeError("poison")

    with monkeypatch.context() as patch:
        patch.setattr(places, "recognise", fails)
        policy.change(copies=1)
        drive.keep("single", b"x" * 100)
        policy.change(copies=2)
        assert reconcile.sweep().copied == 1
