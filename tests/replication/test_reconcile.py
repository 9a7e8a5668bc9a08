"""Copies missing, too many, damaged: the reconciler brings them to rest, and then does nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from brokers.health import poll
from brokers.models import Broker, Health
from replication import contents, incidents, policy, reconcile, scrub, suspects
from replication.collect import collect
from replication.fsck import check
from replication.models import Content, Event, Replica, Segment
from replication.seal import SEGMENT_SIZE
from tests.kit.clock import VirtualClock
from tests.replication.kit import Objects, State, copies, load, memory_broker, replicas, store

pytestmark = pytest.mark.django_db


@pytest.fixture
def three(clock: VirtualClock) -> list[Broker]:
    return [memory_broker(name) for name in "abc"]


def codes() -> set[str]:
    return {f.code for f in check(full=True)} - {"unreferenced"}


def rest() -> reconcile.Report:
    """Run to rest, see that rest is rest, and that fsck agrees."""
    report = reconcile.run_to_rest()
    again = reconcile.run_to_rest()
    assert again.actions == 0
    collect()
    return report


def damage(replica: Replica, how: str) -> None:
    """Change the stored object behind the product's back."""
    store_of = Objects(replica.broker)
    data = bytearray(store_of[replica.locator])
    if how == "flip":
        data[len(data) // 2] ^= 1
        store_of[replica.locator] = bytes(data)
    elif how == "truncate":
        store_of[replica.locator] = bytes(data[:-100])
    elif how == "empty":
        store_of[replica.locator] = b""
    elif how == "delete":
        del store_of[replica.locator]


def test_copies_two_three_one_two(three: list[Broker], clock: VirtualClock) -> None:
    data = os.urandom(2 * SEGMENT_SIZE + 5)
    content = store(data)
    assert copies(content) == 2
    for wanted in (3, 1, 2):
        policy.change(copies=wanted)
        before = copies(content)
        rest()
        if wanted < before:
            assert copies(content) == before, "nothing goes before the dwell"
            clock.advance(hours=1)
            rest()
        assert copies(content) == wanted
        assert load(content) == data
        assert codes() == set()


def test_changing_the_copies_back_within_the_dwell_drops_nothing(
    three: list[Broker], clock: VirtualClock
) -> None:
    content = store(b"x" * 1000)
    policy.change(copies=3)
    rest()
    policy.change(copies=1)
    rest()
    clock.advance(minutes=5)
    policy.change(copies=3)
    rest()
    clock.advance(hours=2)
    rest()
    assert copies(content) == 3
    assert not Event.objects.filter(kind="doomed").exists()


@pytest.mark.parametrize("how", ["flip", "truncate", "empty", "delete"])
def test_damage_is_read_around_found_and_mended(three: list[Broker], how: str) -> None:
    data = os.urandom(SEGMENT_SIZE + 100)
    content = store(data)
    victim = replicas(content)[0]
    damage(victim, how)
    assert {"object_missing" if how == "delete" else "object_damaged"} <= codes()
    assert load(content) == data
    scrub.scrub(everything=True)
    rest()
    assert copies(content) == 2
    assert load(content) == data
    assert codes() == set()
    assert not Replica.objects.filter(pk=victim.pk).exists()


@pytest.mark.parametrize("how", ["flip", "truncate", "delete"])
def test_scrub_finds_what_nobody_reads(three: list[Broker], how: str, clock: VirtualClock) -> None:
    data = os.urandom(1000)
    content = store(data)
    damage(replicas(content)[1], how)
    clock.advance(days=9)
    report = scrub.scrub()
    assert (report.replicas, report.lost) == (2, 1)
    rest()
    assert copies(content) == 2
    assert codes() == set()
    assert scrub.scrub().replicas == 0, "what was just proven is left alone"


@pytest.mark.parametrize("step", [-3600, 0, 3600], ids=["steps back", "stands still", "steps on"])
def test_scrub_reads_everything_once_whatever_the_clock_does(
    three: list[Broker], clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Batches must not end early, or begin anew, because a look at a copy moved its time."""
    monkeypatch.setattr(scrub, "BATCH", 3)
    for number in range(10):
        store(b"%d" % number)
    Replica.objects.filter(pk__in=[r.pk for r in Replica.objects.all()[:4]]).update(verified_at=None)
    looked: list[int] = []
    real = suspects.verify

    def verify(replica: Replica, segment: Segment) -> str:
        looked.append(replica.pk)
        clock.advance(seconds=step)
        return real(replica, segment)

    monkeypatch.setattr(suspects, "verify", verify)
    assert scrub.scrub(everything=True).replicas == 20
    assert len(set(looked)) == len(looked) == 20


def test_swapped_objects_are_found(three: list[Broker], clock: VirtualClock) -> None:
    one, two = store(b"1" * 1000, copies=2), store(b"2" * 1000, copies=2)
    a, b = replicas(one)[0], replicas(two)[0]
    objects = [Objects(r.broker) for r in (a, b)]
    first, second = objects[0][a.locator], objects[1][b.locator]
    objects[0][a.locator], objects[1][b.locator] = second, first
    assert load(one) == b"1" * 1000
    assert load(two) == b"2" * 1000
    assert codes() >= {"object_damaged"}
    scrub.scrub(everything=True)
    rest()
    assert codes() == set()


def test_all_copies_damaged_is_said_and_nothing_is_deleted(three: list[Broker], clock: VirtualClock) -> None:
    from replication.errors import ContentDamaged

    content = store(b"precious" * 100)
    for replica in replicas(content):
        damage(replica, "flip")
    with pytest.raises(ContentDamaged):
        load(content)
    reconcile.run_to_rest()
    clock.advance(days=3)
    reconcile.run_to_rest()
    collect()
    assert {r.state for r in replicas(content)} == {State.LOST}
    assert "no_copy" in codes()
    assert contents.copy_status([content.pk])[content.pk].state == "damaged"


def test_a_lost_copy_that_comes_back_is_taken_again(three: list[Broker], clock: VirtualClock) -> None:
    content = store(b"precious" * 100)
    kept = {}
    for replica in replicas(content):
        objects = Objects(replica.broker)
        kept[replica.pk] = (objects, replica.locator, objects[replica.locator])
        damage(replica, "delete")
    scrub.scrub(everything=True)
    reconcile.run_to_rest()
    assert {r.state for r in replicas(content)} == {State.LOST}
    for objects, locator, data in kept.values():
        objects[locator] = data
    clock.advance(days=1)
    rest()
    assert load(content) == b"precious" * 100
    assert codes() == set()


def test_an_outage_waits_for_its_dwell_and_its_return_is_trimmed(
    three: list[Broker], clock: VirtualClock
) -> None:
    content = store(b"x" * 5000)
    out = replicas(content)[0].broker
    Broker.objects.filter(pk=out.pk).update(health=Health.OFFLINE, health_since=clock.now())
    rest()
    assert len(replicas(content, State.STORED)) == 2, "a young outage starts nothing"
    clock.advance(minutes=16)
    rest()
    assert len(replicas(content, State.STORED)) == 3
    Broker.objects.filter(pk=out.pk).update(health=Health.ONLINE, health_since=clock.now())
    rest()
    clock.advance(hours=1)
    rest()
    assert len(replicas(content, State.STORED)) == 2
    assert codes() == set()


def test_a_blank_place_is_filled_again(clock: VirtualClock) -> None:
    brokers = [memory_broker("a"), memory_broker("b")]
    many = [store(os.urandom(1000)) for _ in range(30)]
    Objects(brokers[0]).clear()
    for _ in range(3):
        broker = poll(brokers[0].pk)
        clock.advance(minutes=2)
    assert broker.health == Health.ONLINE
    assert not Objects(broker).keys() & {r.locator for r in Replica.objects.filter(broker=broker)}
    rest()
    assert all(copies(c) == 2 for c in many)
    assert codes() == set()


def test_a_place_that_was_written_to_before_it_was_found_blank(clock: VirtualClock) -> None:
    """Emptied between two polls and filled with new objects: those prove that it is the right place."""
    brokers = [memory_broker("a"), memory_broker("b")]
    many = [store(os.urandom(1000)) for _ in range(30)]
    Objects(brokers[0]).clear()
    many.append(store(b"written to the place without marker"))
    reconcile.run_to_rest()
    assert poll(brokers[0].pk).health_reason == "marker_missing"
    assert not Replica.objects.filter(state=State.LOST).exists()
    reconcile.run_to_rest()
    assert not Replica.objects.filter(state=State.LOST).exists(), "nothing is believed before the dwell"
    clock.advance(minutes=3)
    reconcile.sweep()
    for _ in range(2):
        clock.advance(minutes=1)
        poll(brokers[0].pk)
    rest()
    assert all(copies(c) == 2 for c in many)
    assert codes() == set()


def test_a_place_with_anything_unknown_is_not_recognised(clock: VirtualClock) -> None:
    brokers = [memory_broker("a"), memory_broker("b")]
    content = store(b"x")
    Objects(brokers[0]).clear()
    store(b"y")
    Objects(brokers[0])["cs/ab/" + "ab" * 16] = b"of another installation"
    poll(brokers[0].pk)
    clock.advance(hours=1)
    reconcile.run_to_rest()
    assert poll(brokers[0].pk).health_reason == "marker_missing"
    assert load(content) == b"x"
    assert not Replica.objects.filter(state=State.LOST).exists()


def test_a_missing_object_is_believed_only_after_a_poll(clock: VirtualClock) -> None:
    """The poll of a moment ago saw the right place; the place went blank since. Nothing is copied into it."""
    brokers = [memory_broker("a"), memory_broker("b")]
    content = store(b"x")
    Objects(brokers[0]).clear()
    scrub.scrub(everything=True)
    reconcile.run_to_rest()
    assert Broker.objects.get(pk=brokers[0].pk).health_reason == "blank"
    assert len(Objects(brokers[0])) == 0
    assert not Replica.objects.filter(state=State.LOST).exists()
    assert load(content) == b"x"


def test_many_missing_at_once_wait_for_the_operator(
    three: list[Broker], clock: VirtualClock, expect_log: Callable[..., None]
) -> None:
    expect_log("missing at once")
    policy.change(copies=3)
    many = [store(b"%d" % n) for n in range(60)]
    rest()
    objects = Objects(three[0])
    gone = [r.locator for c in many for r in replicas(c) if r.broker.name == "a"]
    for locator in gone:
        del objects[locator]
    scrub.scrub(everything=True)
    reconcile.run_to_rest()
    held = Replica.objects.filter(broker__name="a", state=State.SUSPECT).count()
    assert held > 35, "most are held back as the broker's incident"
    assert Broker.objects.get(name="a").health_reason == "objects_missing"
    clock.advance(minutes=20)
    rest()
    assert Replica.objects.filter(broker__name="a", state=State.SUSPECT).count() == held, "nor by the dwell"
    incidents.confirm(three[0].pk)
    poll(three[0].pk)
    rest()
    clock.advance(minutes=20)
    rest()
    assert all(copies(c) == 3 for c in many)
    assert codes() == set()


def test_a_segment_that_always_fails_does_not_hold_up_others(
    three: list[Broker], clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, expect_log: object
) -> None:
    expect_log("reconciling segment")  # type: ignore[operator]
    bad, good = store(b"bad"), store(b"good")
    policy.change(copies=3)
    poison = bad.segments.get().pk
    real = reconcile._round_of

    def sometimes(segment_id: int, report: reconcile.Report, since: datetime) -> object:
        if segment_id == poison:
            raise RuntimeError("poison")
        return real(segment_id, report, since)

    monkeypatch.setattr(reconcile, "_round_of", sometimes)
    reconcile.run_to_rest()
    assert copies(good) == 3
    row = Segment.objects.get(pk=poison)
    assert row.attempts >= 1
    assert row.check_at is not None and row.check_at > clock.now()


def test_tasks_run_twice_or_late_change_nothing(three: list[Broker]) -> None:
    content = store(b"x")
    policy.change(copies=3)
    reconcile.sweep()
    for _ in range(2):
        for segment in content.segments.all():
            assert reconcile.reconcile_segment(segment.pk).actions == 0
    assert copies(content) == 3


def test_a_held_segment_is_left_alone(three: list[Broker], clock: VirtualClock) -> None:
    content = store(b"x", copies=3)
    segment = content.segments.get()
    Segment.objects.filter(pk=segment.pk).update(check_at=clock.now() + timedelta(minutes=10))
    assert reconcile.reconcile_segment(segment.pk).looked_at == 0
    clock.advance(minutes=11)
    assert reconcile.reconcile_segment(segment.pk).copied == 1


def test_purge_and_collect_after_the_grace(three: list[Broker], clock: VirtualClock) -> None:
    content = store(b"x" * 100)
    assert contents.condemn_unreferenced([content.pk]) == 1
    collect()
    assert load(Content.objects.get()) == b"x" * 100, "within the grace a running download goes on"
    clock.advance(days=2)
    assert collect(dry_run=True).contents == 1
    report = collect()
    assert (report.contents, report.objects) == (1, 2)
    assert not Content.objects.exists()
    assert collect().objects == 0
    assert check(full=True) == []


def test_deletes_wait_for_a_broker_that_is_away(three: list[Broker], clock: VirtualClock) -> None:
    content = store(b"x" * 100)
    away = replicas(content)[0].broker
    contents.condemn_unreferenced([content.pk])
    clock.advance(days=2)
    Broker.objects.filter(pk=away.pk).update(health=Health.OFFLINE, health_since=clock.now())
    assert collect().objects == 1
    Broker.objects.filter(pk=away.pk).update(
        health=Health.ONLINE, health_since=clock.now() - timedelta(days=1)
    )
    clock.advance(hours=2)
    assert collect().objects == 1
    assert check(full=True) == []


@pytest.mark.parametrize("rotten", [0, 1])
def test_the_last_good_copy_is_not_dropped_as_one_too_many(
    clock: VirtualClock, three: list[Broker], rotten: int
) -> None:
    """Existence is not health: what stays is read once more before what is too many goes."""
    content = store(b"precious", copies=None)
    bad = replicas(content)[rotten]
    Objects(bad.broker)[bad.locator] = b"rotten"
    policy.change(copies=1)
    clock.advance(hours=1)
    reconcile.run_to_rest()
    clock.advance(hours=1)
    reconcile.run_to_rest()
    collect()
    assert load(content) == b"precious"
    assert (copies(content), codes()) == (1, set())


def test_a_copy_that_was_taken_for_lost_stays_until_the_others_are_proven(
    clock: VirtualClock, three: list[Broker]
) -> None:
    content = store(b"precious")
    rotten, taken_for_lost = replicas(content)
    Objects(rotten.broker)[rotten.locator] = b"rotten"
    Replica.objects.filter(pk=taken_for_lost.pk).update(state=State.LOST, reason="corrupt")
    policy.change(copies=1)
    clock.advance(hours=1)
    reconcile.run_to_rest()
    clock.advance(hours=1)
    reconcile.run_to_rest()
    collect()
    assert load(content) == b"precious"
