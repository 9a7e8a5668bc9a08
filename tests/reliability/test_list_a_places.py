"""List A of docs/reliability.md, what happens to a whole place or its listing: A7, A12, A13, A14, A15, A18, A19."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from brokers import health
from brokers import open as open_module
from brokers.drivers.memory import MemoryBroker
from brokers.errors import Misconfigured, Unauthorized
from brokers.health import poll
from brokers.models import Broker, BrokerEvent, Health
from brokers.names import MARKER_NAME, new_object_key
from brokers.services import add_broker
from brokers.testing.faulty import FaultyBroker
from replication import incidents, orphans, policy, reconcile, scrub, write
from replication.collect import collect
from replication.models import Event, Orphan, Replica
from replication.suspects import INCIDENT_COUNT, suspect
from tests.kit import counters
from tests.kit.clock import VirtualClock
from tests.reliability.kit import BUCKET, Drive, Places, at_rest, findings, on, script, settle
from tests.reliability.test_list_a_refusals import error, of
from tests.servers.s3proxy import S3Proxy
from tests.servers.seaweedfs import S3Server

pytestmark = pytest.mark.django_db
State = Replica.State


def changes(*drivers: FaultyBroker) -> list[tuple[str, str]]:
    """What was written to or deleted from places, but for what polls write."""
    calls = [call for driver in drivers for call in driver.calls]
    return [
        (c.operation, c.name) for c in calls if c.operation in ("put", "delete") and c.name.startswith("cs/")
    ]


# -- A7 ------------------------------------------------------------------------------------------------------


def test_a7_a_lost_object_is_repaired_from_the_others(
    places: Places, clock: VirtualClock, drive: Drive
) -> None:
    brokers = [places.add(name) for name in "ab"]
    drive.keep("file", os.urandom(10_000))
    bad = Replica.objects.select_related("broker")[0]
    del places.held(bad.broker)[bad.locator]
    drive.check()
    scrub.scrub(everything=True)
    assert Replica.objects.get(pk=bad.pk).state == State.LOST
    assert reconcile.run_to_rest().copied == 1
    collect()
    at_rest(places, brokers, drive)


@pytest.fixture
def thousand(monkeypatch: pytest.MonkeyPatch, three: list[Broker], drive: Drive) -> list[Replica]:
    """A file of 1,000 objects on brokers a and b, all of which a loses at once; c has room."""
    monkeypatch.setattr(write, "SEGMENT_SIZE", 500)
    Broker.objects.filter(name="c").update(weight=0)
    drive.keep("file", random.Random(7).randbytes(500 * 1000))
    Broker.objects.filter(name="c").update(weight=1)
    rows = list(Replica.objects.filter(broker=three[0]).select_related("broker"))
    assert len(rows) == 1000
    return rows


@pytest.mark.only_on("sqlite")
def test_a7_a_thousand_missing_at_once_are_an_incident(
    three: list[Broker], thousand: list[Replica], memory_places: Places, clock: VirtualClock, drive: Drive,
    expect_log: Callable[..., None],
) -> None:  # fmt: skip
    """No storm: a twentieth is believed and repaired before it is seen that the broker, not its objects, is the
    matter; then it is offline, and the rest waits. The operator is told once. When a sample of the objects is back,
    everything counts again."""
    expect_log("missing at once")
    held = memory_places.held(three[0])
    kept = {r.locator: held[r.locator] for r in thousand}
    for locator in kept:
        counters.add(counters.FAULTS)
        del held[locator]
    with script(*three) as drivers:
        report = scrub.scrub(everything=True)
        assert (report.replicas, report.lost) == (2000, 50)
        for _ in range(3):
            reconcile.run_to_rest()
            collect()
            clock.advance(minutes=4)
        assert Event.objects.filter(kind="copied").count() <= 50
        assert Replica.objects.filter(broker=three[0], state=State.SUSPECT).count() >= 950
        assert len(changes(*drivers)) <= 100, "fifty copies, fifty deletes of what was replaced"
        assert drivers[0].count("probe") <= 60, "nor a storm of polls"
        [told] = BrokerEvent.objects.filter(broker=three[0], kind="objects_missing")
        assert told.detail.startswith("50 objects ")
        drive.get("file")
    row = Broker.objects.get(pk=three[0].pk)
    assert (row.health, row.health_reason) == (Health.OFFLINE, "objects_missing")
    held.update(kept)
    clock.advance(minutes=2)
    reconcile.run_to_rest()
    assert poll(row.pk).health == Health.ONLINE, "a sample was there, and two polls were good"
    doomed = Replica.objects.filter(broker=row, state=State.DOOMED)
    assert doomed.count() == 50, "what was replaced meanwhile is the broker's surplus now"
    settle(clock, rounds=1)
    assert Event.objects.filter(kind="copied").count() <= 50
    assert BrokerEvent.objects.filter(kind="objects_missing").count() == 1
    at_rest(memory_places, three, drive)


def test_a7_missing_objects_that_are_found_one_by_one_are_an_incident_too(
    three: list[Broker],
    memory_places: Places,
    clock: VirtualClock,
    drive: Drive,
    expect_log: Callable[..., None],
) -> None:
    """Each is read, believed and replaced before the next one is read: the storm is stopped all the same."""
    expect_log("missing at once")
    Broker.objects.filter(name="c").update(weight=0)
    for number in range(50):
        drive.keep(f"file {number}", b"x" * 100)
    Broker.objects.filter(name="c").update(weight=1)
    held = memory_places.held(three[0])
    for name in memory_places.objects(three[0]):
        counters.add(counters.FAULTS)
        del held[name]
    for replica in list(Replica.objects.filter(broker=three[0]).order_by("pk")):
        suspect(replica.pk, "not_found")
        reconcile.reconcile_segment(replica.segment_id)
        collect()
        clock.advance(seconds=1)
    assert Event.objects.filter(kind="copied").count() == INCIDENT_COUNT
    assert BrokerEvent.objects.filter(kind="objects_missing").count() == 1
    settle(clock)
    others = Replica.objects.filter(broker__in=three[1:], state=State.STORED)
    assert others.count() == 100, "copied after the dwell, as in every outage"
    assert Event.objects.filter(kind="lost").count() == INCIDENT_COUNT
    assert Broker.objects.get(pk=three[0].pk).health_reason == "objects_missing"
    incidents.confirm(three[0].pk)
    settle(clock)
    assert Event.objects.filter(kind="lost").count() == 50, "believed when an operator says so"
    at_rest(memory_places, three, drive)


# -- A12 -----------------------------------------------------------------------------------------------------


def _dwell_passes(clock: VirtualClock, minutes: int) -> None:
    """The schedule of a worker for so many minutes."""
    for _ in range(minutes):
        health.poll_due()
        reconcile.sweep()
        scrub.scrub(everything=True)
        collect()
        clock.advance(minutes=1)


def test_a12_revoked_credentials_are_an_outage(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    Broker.objects.filter(name="c").update(weight=1e-9)
    for number in range(10):
        drive.keep(f"file {number}", os.urandom(100))
    with script(*three) as drivers:
        revoked, *others = drivers
        revoked.fail("*", Unauthorized("the key was revoked"))
        clock.advance(minutes=6)
        drive.check()
        health.poll_due()
        row = Broker.objects.get(pk=three[0].pk)
        assert (row.health, row.health_reason) == (Health.OFFLINE, "unauthorized")
        for driver in drivers:
            driver.calls.clear()
        _dwell_passes(clock, 14)
        assert changes(*drivers) == [], "no repair and no delete during the dwell"
        assert not Replica.objects.exclude(state=State.STORED).exists()
        drive.keep("meanwhile", b"x" * 100)
        assert {name for _operation, name in changes(revoked)} == set()
        assert len(changes(*others)) == 2
        drive.check()
        _dwell_passes(clock, 5)
        assert Event.objects.filter(kind="copied").count() == 10, "after the dwell, copies elsewhere"
        assert not Event.objects.filter(kind="lost").exists(), "and still nothing is lost"
        assert not any(operation == "delete" for operation, _name in changes(*drivers))
        revoked.clear()
        settle(clock)
        at_rest(memory_places, three, drive)


def test_a12_a_revoked_key_of_a_bucket(
    s3_places: Places, proxy: S3Proxy, clock: VirtualClock, drive: Drive
) -> None:
    brokers = [s3_places.add(name, endpoint_url=proxy.url) for name in "abc"]
    Broker.objects.filter(name="c").update(weight=1e-9)
    drive.keep("file", b"x" * 1000)
    revoked = error(403, "InvalidAccessKeyId")
    proxy.rules.append(lambda call: revoked if of(brokers[0], call.path) else None)
    clock.advance(minutes=6)
    drive.check()
    assert poll(brokers[0].pk).health_reason == "unauthorized"
    before = {broker: s3_places.objects(broker) for broker in brokers}
    _dwell_passes(clock, 3)
    assert {broker: s3_places.objects(broker) for broker in brokers} == before
    assert not Replica.objects.exclude(state=State.STORED).exists()
    drive.keep("meanwhile", b"y" * 1000)
    proxy.rules.clear()
    settle(clock)
    at_rest(s3_places, brokers, drive)


# -- A13 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", ["everything", "every other one", "the first page"])
def test_a13_what_a_listing_does_not_show_is_not_gone(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive, hidden: str
) -> None:
    for number in range(20):
        drive.keep(f"file {number}", b"x" * 100)
    shown = sorted(memory_places.objects(three[0]))
    gone = {"everything": shown, "every other one": shown[::2], "the first page": shown[: len(shown) // 2]}[
        hidden
    ]
    with script(*three) as drivers:
        drivers[0].hide(lambda path: path in gone)
        for _ in range(4):
            orphans.scan()
            settle(clock, rounds=1, hours=30)
            orphans.scan()
        assert changes(*drivers) == []
    assert not Replica.objects.exclude(state=State.STORED).exists()
    assert not Event.objects.filter(kind__in=("lost", "copied", "orphan deleted")).exists()
    at_rest(memory_places, three, drive)


def test_a13_a_place_without_marker_whose_listing_lags_loses_nothing(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    """Its listing proves whose place it is. What it does not show is read before it counts as lost."""
    for number in range(20):
        drive.keep(f"file {number}", b"x" * 100)
    shown = sorted(memory_places.objects(three[0]))
    del memory_places.held(three[0])[MARKER_NAME]
    with script(three[0]) as [driver]:
        driver.hide(lambda path: path in shown[::2])
        assert poll(three[0].pk).health_reason == "marker_missing"
        settle(clock)
        assert memory_places.held(three[0])[MARKER_NAME]
    assert not Event.objects.filter(kind="lost").exists()
    at_rest(memory_places, three, drive)


def test_a13_an_object_is_an_orphan_only_when_seen_twice_and_long_apart(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    """One that comes and goes in the listing starts anew each time; one that a row knows by then is kept."""
    drive.keep("file", b"x" * 100)
    stray = new_object_key()
    memory_places.held(three[0])[stray] = b"stray"
    with script(three[0]) as [driver]:
        for _ in range(3):
            orphans.scan()
            clock.advance(hours=40)
            driver.hide(lambda path: path == stray)
            orphans.scan()
            assert not Orphan.objects.exists()
            driver.clear()
            clock.advance(hours=10)
        assert orphans.scan().deleted == 0
        clock.advance(hours=49)
        assert orphans.scan().deleted == 1
    assert stray not in memory_places.objects(three[0])
    settle(clock)
    at_rest(memory_places, three, drive)


# -- A14 -----------------------------------------------------------------------------------------------------


def _purge(drive: Drive, path: str) -> None:
    assert drive.client.delete(f"{drive.FILES}/{path}?purge=true").status_code == 204
    del drive.kept[path]


def test_a14_a_delete_that_deletes_nothing_is_tried_until_it_does(
    places: Places, clock: VirtualClock, drive: Drive
) -> None:
    """The row stays until the broker was seen without the object."""
    brokers = [places.add(name) for name in "ab"]
    drive.keep("file", b"x" * 100)
    drive.keep("other", b"y" * 100)
    _purge(drive, "file")
    with script(brokers[0]) as [driver]:
        driver.keep()
        for _ in range(3):
            clock.advance(hours=30)
            report = collect()
            assert report.failed == 1
        [row] = Replica.objects.filter(state=State.DOOMED)
        assert (row.broker, row.attempts, row.reason) == (brokers[0], 3, "unavailable")
        assert len(places.objects(brokers[0])) == 2
    clock.advance(hours=2)
    assert collect().objects == 1
    assert len(places.objects(brokers[0])) == 1
    at_rest(places, brokers, drive)


@on("memory", "local")
def test_a14_an_object_that_comes_back_after_its_delete_goes_again(
    places: Places, clock: VirtualClock, drive: Drive
) -> None:
    """Seen once without it, the row is dropped. What returns later has no row: two scans long apart, and it goes."""
    brokers = [places.add(name) for name in "ab"]
    drive.keep("file", b"x" * 100)
    held = places.held(brokers[0])
    [name] = places.objects(brokers[0])
    data = held[name]
    _purge(drive, "file")
    clock.advance(hours=30)
    assert collect().objects == 2
    held[name] = data
    assert [line.split(":")[0] for line in findings()] == ["unknown_object"]
    orphans.scan()
    clock.advance(hours=49)
    assert orphans.scan().deleted == 1
    assert places.objects(brokers[0]) == set()
    at_rest(places, brokers, drive)


# -- A15 -----------------------------------------------------------------------------------------------------


class Folding(MemoryBroker):
    """A place that takes names that differ in case only for the same."""

    def upload_file(self, file_data: bytes, filename: str) -> str:
        super().upload_file(file_data, filename.upper())
        return filename.upper()

    def download_file(self, storage_path: str, start: int = 0, length: int | None = None) -> bytes:
        return super().download_file(storage_path.upper(), start, length)

    def delete_file(self, storage_path: str) -> None:
        super().delete_file(storage_path.upper())

    def stat_file(self, storage_path: str) -> Any:
        return super().stat_file(storage_path.upper())

    def list_files(self, path: str = "") -> Iterator[Any]:
        return super().list_files(path.upper())


def test_a15_keys_differ_in_more_than_case() -> None:
    keys = {new_object_key() for _ in range(5000)}
    assert len(keys) == len({key.casefold() for key in keys}) == 5000
    assert all(key == key.lower() and key.isascii() for key in keys)


def test_a15_a_store_that_folds_case(clock: VirtualClock, drive: Drive, memory_places: Places) -> None:
    """Its locators are its own: nothing is written over, everything is found again."""
    folding = open_module.wrap(None, lambda driver: Folding(driver.options))
    with folding:
        brokers = [memory_places.add(name) for name in "ab"]
        for number in range(20):
            drive.keep(f"file {number}", os.urandom(100))
        assert all(r.locator == r.key.upper() for r in Replica.objects.all())
        drive.check()
        scrub.scrub(everything=True)
        settle(clock)
        assert {r.state for r in Replica.objects.all()} == {State.STORED}
        assert len(Replica.objects.all()) == 40
        assert len(brokers) == 2


# -- A18 -----------------------------------------------------------------------------------------------------


MARKED, UNMARKED = "another broker's", "somebody else's objects without a marker"


@pytest.mark.parametrize(
    ("places", "there"),
    [("memory", MARKED), ("memory", UNMARKED), ("local", MARKED), ("local", UNMARKED), ("s3", MARKED)],
    indirect=["places"],
)
def test_a18_another_place_is_never_written_to(
    places: Places, clock: VirtualClock, drive: Drive, there: str
) -> None:
    """The bucket or disk was exchanged: known by its marker at the next poll, left alone, and no replica counts as
    lost however long it takes. When the right place is back, so are its copies."""
    brokers = [places.add(name) for name in "abc"]
    Broker.objects.filter(name="c").update(weight=1e-9)
    for number in range(3):
        drive.keep(f"file {number}", os.urandom(100))
    held = places.held(brokers[0])
    kept = {name: held[name] for name in held}
    foreign = {new_object_key(): b"not ours"}
    if there == MARKED:
        foreign[MARKER_NAME] = b"broker 6f1a54a0-8a3c-4b2e-9d3f-0d1f8f6f8a11\n"
    for name in kept:
        del held[name]
    held.update(foreign)
    assert not poll(brokers[0].pk).readable
    drive.check()
    drive.keep("meanwhile", b"x" * 100)
    _purge(drive, "file 0")
    for _ in range(3):
        settle(clock, rounds=1, hours=25)
        scrub.scrub(everything=True)
        orphans.scan()
    assert {name: held[name] for name in held} == foreign, "nothing was written, nothing deleted"
    assert not Event.objects.filter(kind="lost").exists()
    drive.check()
    for name in foreign:
        del held[name]
    held.update(kept)
    settle(clock)
    at_rest(places, brokers, drive)


@on("local", "memory")
def test_a18_an_empty_place_is_an_outage_until_its_dwell_is_over(
    places: Places, clock: VirtualClock, drive: Drive, settings: Any
) -> None:
    """Nothing is written there and nothing is lost before it was empty at every poll of the dwell; if the bytes
    come back within it, nothing has happened. (What follows the dwell is docs/decisions/blank-brokers.md.)"""
    settings.CLOUDSTORE_BLANK_DWELL = 3600
    brokers = [places.add(name) for name in "ab"]
    drive.keep("file", os.urandom(1000))
    held = places.held(brokers[0])
    kept = {name: held[name] for name in held}
    for name in kept:
        del held[name]
    for _ in range(5):
        assert poll(brokers[0].pk).health_reason == "blank"
        reconcile.run_to_rest()
        scrub.scrub(everything=True)
        collect()
        clock.advance(minutes=11)
    assert set(held) == set()
    assert not Replica.objects.exclude(state=State.STORED).exists()
    drive.check()
    held.update(kept)
    settle(clock)
    assert not Event.objects.filter(kind__in=("lost", "copied")).exists()
    at_rest(places, brokers, drive)


# -- A19 -----------------------------------------------------------------------------------------------------


def test_a19_one_folder_is_one_broker(local_places: Places, local_root: Any, clock: VirtualClock) -> None:
    """However it is written, under whatever domain: a second broker on a place is refused when it is saved."""
    broker = local_places.add("a")
    root = broker.options["root"]
    (local_root / "link").symlink_to(root)
    held = set(local_places.held(broker))
    for path in (root, f"{root}/", f"{local_root}/b/../a", f"{local_root}/link"):
        with pytest.raises(Misconfigured, match="already the broker 'a'"):
            add_broker("again", "local", "another-domain", {"root": path})
    assert Broker.objects.count() == 1
    assert set(local_places.held(broker)) == held
    assert poll(broker.pk).health == Health.ONLINE


def test_a19_one_bucket_is_one_broker(s3_places: Places, bucket: S3Server, clock: VirtualClock) -> None:
    broker = s3_places.add("a")
    prefix = broker.options["prefix"]
    localhost = bucket.url.replace("127.0.0.1", "localhost")
    for options in (
        bucket.options(BUCKET, prefix=prefix),
        bucket.options(BUCKET, prefix=f"/{prefix}/"),
        {**bucket.options(BUCKET, prefix=prefix), "endpoint_url": localhost},
    ):
        with pytest.raises(Misconfigured, match="already the broker 'a'"):
            add_broker("again", "s3", "another-domain", options)
    assert Broker.objects.count() == 1
    assert poll(broker.pk).health == Health.ONLINE


def test_a19_two_brokers_of_one_domain_are_one_copy(clock: VirtualClock, memory_places: Places, drive: Drive,
                                                    expect_log: Callable[..., None]) -> None:  # fmt: skip
    """Different places that can fail together count once: an upload that needs two copies is refused."""
    expect_log("Service Unavailable")
    memory_places.add("a", domain="one")
    memory_places.add("b", domain="one")
    assert drive.put("file", b"x").status_code == 503
    policy.change(copies=1)
    drive.keep("file", b"x")
