"""List A of docs/reliability.md, what goes wrong while bytes are put: A1, A2, A3."""

from __future__ import annotations

import os

import pytest

from brokers.errors import Timeout
from brokers.models import Broker
from brokers.testing.faulty import FaultyBroker
from replication.models import Content, Replica
from replication.seal import HEADER_SIZE, TAG_SIZE
from replication.write import LATE_PUT
from tests.kit.clock import VirtualClock
from tests.reliability.kit import Drive, Places, at_rest, findings, on, script, settle
from tests.servers.s3proxy import S3Call, S3Proxy

pytestmark = pytest.mark.django_db
State = Replica.State


def puts(driver: FaultyBroker) -> list[str]:
    """The keys of the objects that were put, in order."""
    return [c.name for c in driver.calls if c.operation == "put" and c.name.startswith("cs/")]


# -- A1 ------------------------------------------------------------------------------------------------------


def test_a1_stored_but_the_reply_timed_out(places: Places, clock: VirtualClock, drive: Drive) -> None:
    """The same key is tried again and asked about: one object and one row on each broker."""
    brokers = [places.add(name) for name in "ab"]
    with script(*brokers) as drivers:
        for driver in drivers:
            driver.fail("put", Timeout("the answer was lost"), on=1, after=True)
        drive.keep("file", b"once" * 1000)
        for driver in drivers:
            assert len(puts(driver)) == 2
            assert len(set(puts(driver))) == 1, "the key stays the same"
    assert {r.state for r in Replica.objects.all()} == {State.STORED}
    for broker in brokers:
        row = Replica.objects.get(broker=broker)
        assert places.objects(broker) == {row.locator}
    at_rest(places, brokers, drive)


def test_a1_the_reply_of_a_real_put_is_lost(
    s3_places: Places, proxy: S3Proxy, clock: VirtualClock, drive: Drive
) -> None:
    """The connection breaks after the server has stored the object."""
    brokers = [s3_places.add(name, endpoint_url=proxy.url) for name in "ab"]
    lost: list[str] = []

    def drop(call: S3Call) -> str | None:
        if call.method != "PUT" or "/cs/" not in call.path or call.path in lost:
            return None
        lost.append(call.path)
        return "drop"

    proxy.rules.append(drop)
    drive.keep("file", b"once" * 1000)
    assert len(lost) == 2
    for broker in brokers:
        assert len(s3_places.objects(broker)) == Replica.objects.filter(broker=broker).count() == 1
    at_rest(s3_places, brokers, drive)


@on("memory", "local")
def test_a1_replies_that_never_come_hand_off_and_leave_nothing(
    places: Places, clock: VirtualClock, drive: Drive
) -> None:
    """Every answer of one broker is lost, so another one takes over. What was stored there under a known key goes
    once it can no longer be on its way."""
    brokers = [places.add(name) for name in "abc"]
    Broker.objects.filter(name="c").update(weight=1e-9)
    with script(brokers[0]) as [driver]:
        driver.fail("put", Timeout("the answer was lost"), after=True)
        drive.keep("file", b"x" * 1000)
        assert len(set(puts(driver))) == 1, "retries never rename"
        driver.clear()
        content = Content.objects.get()
        assert {r.broker.name for r in Replica.objects.filter(state=State.STORED)} == {"b", "c"}
        [stray] = Replica.objects.filter(state=State.DOOMED)
        assert (stray.broker, stray.check_at) == (brokers[0], clock.now() + LATE_PUT)
        assert places.objects(brokers[0]) == {stray.key}, "one object, known by its row"
    settle(clock)
    assert content.segments.get().replicas.count() == 2
    assert places.objects(brokers[0]) == set()
    at_rest(places, brokers, drive)


# -- A2 ------------------------------------------------------------------------------------------------------


def test_a2_accepted_and_lost_does_not_count(places: Places, clock: VirtualClock, drive: Drive) -> None:
    """A write that was acknowledged and is not there is seen before the upload is: a third broker has the copy."""
    brokers = [places.add(name) for name in "abc"]
    Broker.objects.filter(name="c").update(weight=1e-9)
    with script(*brokers[:2]) as [first, second]:
        first.lose()
        drive.keep("file", b"x" * 1000)
        assert len(puts(first)) == len(puts(second)) == 1
        assert places.objects(brokers[0]) == set()
        stored = Replica.objects.filter(state=State.STORED)
        assert {r.broker.name for r in stored} == {"b", "c"}
        assert all(r.verified_at for r in stored)
    settle(clock)
    at_rest(places, brokers, drive)


def test_a2_everything_lost_is_no_upload(three: list[Broker], clock: VirtualClock, drive: Drive,
                                         memory_places: Places, expect_log: object) -> None:  # fmt: skip
    expect_log("Service Unavailable")  # type: ignore[operator]
    with script(*three) as drivers:
        for driver in drivers:
            driver.lose()
        answer = drive.put("file", b"x" * 1000)
        assert (answer.status_code, answer.json()["code"]) == (503, "not_enough_brokers")
        assert answer.headers["Retry-After"]
    assert drive.usage() == (0, 0)
    settle(clock)
    assert drive.head("file").status_code == 404
    at_rest(memory_places, three, drive)


# -- A3 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("places", "stored"),
    [("memory", 0), ("memory", 1), ("memory", -1), ("local", 0), ("local", HEADER_SIZE), ("s3", 0)],
    indirect=["places"],
)
def test_a3_a_cut_put_is_bad_and_handed_off(
    places: Places, clock: VirtualClock, drive: Drive, stored: int
) -> None:
    brokers = [places.add(name) for name in "abc"]
    Broker.objects.filter(name="c").update(weight=1e-9)
    with script(brokers[0]) as [driver]:
        driver.truncate("put", stored)
        drive.keep("file", os.urandom(1000))
        driver.clear()
        [bad] = Replica.objects.exclude(state=State.STORED)
        assert (bad.broker, bad.state, bad.reason) == (brokers[0], State.DOOMED, "corrupt")
        assert {r.broker.name for r in Replica.objects.filter(state=State.STORED)} == {"b", "c"}
        drive.check()
    settle(clock)
    at_rest(places, brokers, drive)


@on("memory", "local")
def test_a3_an_empty_file_is_no_empty_object(places: Places, clock: VirtualClock, drive: Drive) -> None:
    brokers = [places.add(name) for name in "ab"]
    drive.keep("empty", b"")
    answer, body = drive.get("empty")
    assert (answer.headers["Content-Length"], body) == ("0", b"")
    for broker in brokers:
        [name] = places.objects(broker)
        assert len(places.held(broker)[name]) == HEADER_SIZE + TAG_SIZE
    at_rest(places, brokers, drive)
    [name] = places.objects(brokers[0])
    places.held(brokers[0])[name] = b""
    assert any(line.startswith("object_damaged") for line in findings()), "never the form of an empty file"
