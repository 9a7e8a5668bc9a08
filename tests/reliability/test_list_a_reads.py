"""List A of docs/reliability.md, what goes wrong while bytes are read: A4, A5, A10, A20. (A6 needs a real connection:
tests/vfs/test_live.py.)"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from brokers.errors import Unavailable
from brokers.models import Broker
from brokers.testing.faulty import FaultyBroker
from replication import reconcile, scrub, transfer, write
from replication.collect import collect
from replication.keys import content_key
from replication.models import Content, Event, Replica, Segment
from replication.seal import FRAME_SIZE, HEADER_SIZE, TAG_SIZE, seal
from tests.brokers.conftest import faulty
from tests.kit import counters
from tests.kit.clock import VirtualClock
from tests.reliability.kit import Drive, Places, at_rest, findings, on, script, settle
from tests.replication.kit import Objects

pytestmark = pytest.mark.django_db
State = Replica.State
SEALED_FRAME = FRAME_SIZE + TAG_SIZE
FRAMES = 3
# The part that the tests of ranges ask for: the end of the first frame and the beginning of the second.
SPAN = (FRAME_SIZE - 1000, FRAME_SIZE + 1000)


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 0x10
    return bytes(changed)


def rotten(data: bytes) -> bytes:
    dice, changed = random.Random(4), bytearray(data)
    for _ in range(len(data) // 100):
        changed[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def frames_swapped(data: bytes) -> bytes:
    first, second = HEADER_SIZE, HEADER_SIZE + SEALED_FRAME
    end = second + SEALED_FRAME
    return data[:first] + data[second:end] + data[first:second] + data[end:]


def frame_repeated(data: bytes) -> bytes:
    first, second = HEADER_SIZE, HEADER_SIZE + SEALED_FRAME
    return data[:second] + data[first:second] + data[second + SEALED_FRAME :]


# What a place may do to an object: -> what it holds then; None: nothing. `other` is another content's object of the
# same size, `next` the object of the same content's next segment, `again` the same bytes sealed once more.
Damage = Callable[[bytes, dict[str, bytes]], bytes | None]
DAMAGES: dict[str, Damage] = {
    "first bit": lambda d, _: flipped(d, 0),
    "format version": lambda d, _: flipped(d, 4),
    "content id": lambda d, _: flipped(d, 8),
    "wrapped key": lambda d, _: flipped(d, 60),
    "salt": lambda d, _: flipped(d, HEADER_SIZE - 1),
    "first byte of a frame": lambda d, _: flipped(d, HEADER_SIZE),
    "tag of a frame": lambda d, _: flipped(d, HEADER_SIZE + SEALED_FRAME - 1),
    "second frame": lambda d, _: flipped(d, HEADER_SIZE + SEALED_FRAME + 500),
    "last frame": lambda d, _: flipped(d, HEADER_SIZE + 2 * SEALED_FRAME + 500),
    "last bit": lambda d, _: flipped(d, len(d) - 1),
    "many bits": lambda d, _: rotten(d),
    "one byte short": lambda d, _: d[:-1],
    "cut at a frame": lambda d, _: d[: HEADER_SIZE + SEALED_FRAME],
    "cut in a frame": lambda d, _: d[: HEADER_SIZE + SEALED_FRAME + 10],
    "only the header": lambda d, _: d[:HEADER_SIZE],
    "one byte": lambda d, _: d[:1],
    "empty": lambda d, _: b"",
    "one byte long": lambda d, _: d + b"\0",
    "twice": lambda d, _: d + d,
    "shifted": lambda d, _: b"\0" + d[:-1],
    "frames swapped": lambda d, _: frames_swapped(d),
    "a frame repeated": lambda d, _: frame_repeated(d),
    "zeros": lambda d, _: bytes(len(d)),
    "noise": lambda d, _: random.Random(7).randbytes(len(d)),
    "an apology in HTML": lambda d, _: b"<html>Sorry, please try again later</html>",
    "another content": lambda d, o: o["other"],
    "the next segment": lambda d, o: o["next"],
    "sealed again": lambda d, o: o["again"],
    "gone": lambda d, _: None,
}
# Not seen by a reader: the header of the row is used, and what stands behind the object's end is never asked for.
UNSEEN = {
    "first bit", "format version", "content id", "wrapped key", "salt", "one byte long", "twice",
}  # fmt: skip
# Outside the range.
UNSEEN_IN_SPAN = UNSEEN | {"last frame", "last bit", "one byte short"}


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of three frames, so that a file of two segments is small."""
    monkeypatch.setattr(write, "SEGMENT_SIZE", FRAMES * FRAME_SIZE)


@contextmanager
def asked_first(first: Broker, *others: Broker) -> Iterator[list[FaultyBroker]]:
    """All other brokers answer later, so that readers ask `first` first."""
    with script(first, *others) as drivers:
        for broker, driver in zip(others, drivers[1:], strict=True):
            driver.delay("get", 0.5)
            for replica in Replica.objects.filter(broker=broker, state=State.STORED)[:1]:
                transfer.fetch(broker, replica.locator, 0, 1)
        yield drivers


def the_other_strings(content: Content, segment: Segment, held: Objects) -> dict[str, bytes]:
    following = content.segments.get(position=1).replicas.get(broker__name="a")
    other = Replica.objects.exclude(segment__content=content).get(broker__name="a", segment__position=0)
    plain = bytes(segment.size)
    sealed = seal(
        content_key(content),
        plain,
        content_id=content.pk,
        position=0,
        offset=0,
        last=False,
        key_version=content.key_version,
        wrapped_key=bytes(content.wrapped_key),
    )
    return {"other": held[other.locator], "next": held[following.locator], "again": bytes(sealed.data)}


@pytest.mark.parametrize("way", ["full", "range", "head"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a4_damage_is_never_served_and_repaired_once(
    small_segments: None, three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive,
    damage: str, way: str,
) -> None:  # fmt: skip
    """Whatever a place has made of an object: users get the right bytes, the copy is suspected where a reader has
    touched the damage and found by the scrub elsewhere, and it is replaced by one copy."""
    third = three[2]
    Broker.objects.filter(pk=third.pk).update(weight=0)  # both files lie on the first two
    data = bytes(FRAMES * FRAME_SIZE) + os.urandom(10_000)
    drive.keep("other", data)
    drive.keep("file", data)
    Broker.objects.filter(pk=third.pk).update(weight=1)
    content = Content.objects.get(versions__node__name="file")
    segment = content.segments.get(position=0)
    bad = segment.replicas.get(broker=three[0])
    held = Objects(three[0])
    counters.add(counters.FAULTS)
    instead = DAMAGES[damage](held[bad.locator], the_other_strings(content, segment, held))
    if instead is None:
        del held[bad.locator]
    else:
        held[bad.locator] = instead

    with asked_first(*three) as drivers:
        before = drivers[0].count("get")
        if way == "head":
            answer = drive.head("file")
            assert (answer.status_code, answer.headers["Content-Length"]) == (200, str(len(data)))
            assert drivers[0].count("get") == before, "nothing is read for that"
        else:
            drive.get("file", SPAN if way == "range" else None)
            assert drivers[0].count("get") > before
        bad.refresh_from_db()
        unseen = DAMAGES.keys() if way == "head" else UNSEEN if way == "full" else UNSEEN_IN_SPAN
        assert bad.state == (State.STORED if damage in unseen else State.SUSPECT)
        # The repair looks once more before it believes, and reads twice in that look.
        reconcile.run_to_rest()
        scrub.scrub(everything=True)
        reconcile.run_to_rest()
        assert Event.objects.filter(kind="lost").count() == Event.objects.filter(kind="copied").count() == 1
        collect()
        assert not Replica.objects.filter(pk=bad.pk).exists()
        assert bad.locator not in held
        drive.get("file")
    settle(clock)
    assert Event.objects.filter(kind="copied").count() == 1, "one repair"
    at_rest(memory_places, three, drive)


LIES: dict[str, Callable[[FaultyBroker], object]] = {
    "a flipped bit": lambda d: d.flip("get", 100, on=range(1, 2)),
    "the last bit": lambda d: d.flip("get", -1, on=range(1, 2)),
    "cut": lambda d: d.truncate("get", 1000, on=range(1, 2)),
    "empty": lambda d: d.truncate("get", 0, on=range(1, 2)),
    "other bytes": lambda d: d.swap("get", os.urandom(5000), on=range(1, 2)),
    "more bytes": lambda d: d.swap("get", bytes(9 << 20), on=range(1, 2)),
    "an apology in HTML": lambda d: d.swap("get", b"<html>Sorry</html>", on=range(1, 2)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a4_a_connection_that_lies_once_costs_a_look_and_no_repair(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive, lie: str
) -> None:
    Broker.objects.filter(name="c").update(weight=0)
    drive.keep("file", os.urandom(4000))
    with asked_first(*three) as [first, second, _third]:
        first.clear()
        LIES[lie](first)
        drive.get("file")
        assert Replica.objects.get(broker=three[0]).state == State.SUSPECT
        written = first.count("put"), second.count("put")
        report = reconcile.run_to_rest()
        assert (report.verified, report.lost, report.copied) == (1, 0, 0)
        assert (first.count("put"), second.count("put")) == written
    assert {r.state for r in Replica.objects.all()} == {State.STORED}
    assert not Event.objects.filter(kind__in=("lost", "copied", "doomed")).exists()
    at_rest(memory_places, three, drive)


def test_a4_a_difference_is_read_once_more_before_it_is_believed(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    drive.keep("file", os.urandom(4000))
    replica = Replica.objects.select_related("segment", "broker")[0]
    with faulty(replica.broker) as driver:
        driver.flip("get", 100, on=1)
        assert scrub.scrub(everything=True).lost == 0
        assert driver.count("get") == 2, "the object and its second look"
        driver.flip("get", 100)
        assert scrub.scrub(everything=True).lost == 1
    settle(clock)
    at_rest(memory_places, three, drive)


# -- A5 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flipped", "gone"])
@on("memory", "local")
def test_a5_all_copies_bad_is_said_and_nothing_is_deleted(
    places: Places, clock: VirtualClock, drive: Drive, damage: str, expect_log: Callable[..., None]
) -> None:
    """502 before the first byte; the listing and fsck name the file by its path; what is there stays there, and when
    the bytes come back so does the file."""
    expect_log("Bad Gateway")
    brokers = [places.add(name) for name in "abc"]
    drive.keep("folder/precious", os.urandom(5000))
    drive.keep("folder/sound", os.urandom(5000))
    rows = list(Replica.objects.filter(segment__content__versions__node__name="precious"))
    kept = {}
    for replica in rows:
        held = places.held(replica.broker)
        kept[replica] = held[replica.locator]
        counters.add(counters.FAULTS)
        if damage == "gone":
            del held[replica.locator]
        else:
            held[replica.locator] = flipped(kept[replica], HEADER_SIZE + 7)
    before = {broker: places.objects(broker) for broker in brokers}

    answer, _body = drive.get("folder/precious")
    assert (answer.status_code, answer.json()["code"]) == (502, "content_damaged")
    for _ in range(3):
        settle(clock, rounds=2, hours=30)
        scrub.scrub(everything=True)
    assert {broker: places.objects(broker) for broker in brokers} == before, "nothing was deleted"
    assert {r.state for r in Replica.objects.filter(pk__in=[r.pk for r in rows])} == {State.LOST}
    assert "unreadable_file: alice: /folder/precious, version 1" in findings(full=False)
    assert not any("/folder/sound" in line for line in findings())
    listed = drive.client.get("/api/v1/files/folder/").json()["children"]
    assert {entry["name"]: entry["copies"]["state"] for entry in listed} == {
        "precious": "damaged",
        "sound": "ok",
    }
    drive.get("folder/sound")

    for replica, data in kept.items():
        places.held(replica.broker)[replica.locator] = data
    settle(clock, hours=2)
    at_rest(places, brokers, drive)


# -- A10 -----------------------------------------------------------------------------------------------------


def test_a10_a_slow_broker_is_asked_last(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    """Reads in a process follow the time that each broker has lately taken: after one slow answer the other copy is
    asked, and the slow one again when that fails."""
    Broker.objects.filter(name="c").update(weight=0)
    for number in range(10):
        drive.keep(f"file {number}", b"x" * 1000)
    with script(*three[:2]) as [slow, fast]:
        slow.delay("get", 2.0)
        for number in range(10):
            drive.get(f"file {number}")
        assert slow.count("get") <= 1, "known after one answer"
        assert fast.count("get") >= 9
        for number in range(10):
            drive.get(f"file {number}")
        assert slow.count("get") <= 1
        waited = clock.monotonic()
        assert waited <= 2.0, "nobody waited for it again"
        fast.fail("get", Unavailable("down"))
        drive.get("file 3")
        assert slow.count("get") >= 1
    at_rest(memory_places, three, drive)


def test_a10_a_broker_that_was_slow_is_asked_again_some_time(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    """It was slow for a while, and nobody asked it: its share of the reads comes back without a restart."""
    Broker.objects.filter(name="c").update(weight=0)
    drive.keep("file", b"x" * 1000)
    with script(*three[:2]) as [one, two]:
        one.delay("get", 2.0, on=1)
        two.delay("get", 0.01)
        for _ in range(5):
            drive.get("file")
        before = one.count("get")
        assert before <= 1
        for _minute in range(30):
            clock.advance(minutes=1)
            drive.get("file")
        assert one.count("get") > before
    at_rest(memory_places, three, drive)


# -- A20 -----------------------------------------------------------------------------------------------------


def test_a20_bit_rot_at_rest_is_found_by_the_scrub(places: Places, clock: VirtualClock, drive: Drive) -> None:
    """Nobody reads the file. Within the period of the scrub the rotten copy is found by its hash, taken out of use,
    replaced, and counted."""
    brokers = [places.add(name) for name in "abc"]
    drive.keep("file", os.urandom(50_000))
    drive.keep("other", os.urandom(50_000))
    bad = Replica.objects.select_related("broker").order_by("pk")[0]
    held = places.held(bad.broker)
    held[bad.locator] = flipped(held[bad.locator], 30_000)
    assert scrub.scrub().replicas == 0, "it was proven a moment ago"
    clock.advance(days=14)
    report = scrub.scrub()
    assert (report.replicas, report.lost) == (4, 1)
    assert Replica.objects.get(pk=bad.pk).state == State.LOST
    assert Event.objects.filter(kind="lost", broker=bad.broker, detail="corrupt").count() == 1
    report2 = reconcile.run_to_rest()
    assert (report2.copied, report2.lost) == (1, 0)
    collect()
    assert bad.locator not in set(held)
    at_rest(places, brokers, drive)


def test_a20_every_byte_is_read_within_the_period(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Scheduled runs with a small budget each: after one period every copy was proven within it, oldest first."""
    monkeypatch.setattr(scrub, "LEAST_BUDGET", 3_000)
    for number in range(12):
        drive.keep(f"file {number}", os.urandom(2000))
        clock.advance(hours=1)
    began = clock.now()
    seen = 0
    while (clock.now() - began).days < 14:
        report = scrub.scrub()
        assert report.bytes <= 3_000 + 2 * 2300, "a run keeps to its budget"
        seen += report.replicas
        clock.advance(hours=6)
    assert seen >= 24
    assert not Replica.objects.filter(verified_at__lt=began).exists()
    at_rest(memory_places, three, drive)
