"""List D of the failures: what shall be changes, and brokers are administered, while bytes are live."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command

from brokers import health
from brokers.errors import Unavailable
from brokers.health import poll
from brokers.models import Broker
from brokers.services import add_broker, set_enabled, update_broker
from brokers.testing.faulty import FaultyBroker
from console import operations
from console.operations import Who
from replication import placement, policy, reconcile, scrub, targets
from replication.collect import collect
from replication.models import Event, Replica, Segment
from replication.placement import Have
from replication.removal import RemovalRefused
from tests.brokers.conftest import faulty
from tests.kit import counters
from tests.kit.clock import VirtualClock
from tests.reliability.kit import Drive, Places, at_rest, findings, settle

pytestmark = pytest.mark.django_db
State = Replica.State


def stored() -> list[Replica]:
    return list(Replica.objects.filter(state=State.STORED).select_related("broker").order_by("pk"))


def away(*drivers: FaultyBroker) -> None:
    """Nothing answers there from now on."""
    for driver in drivers:
        for operation in ("put", "get", "stat", "delete", "list", "probe", "info"):
            counters.add(counters.FAULTS)
            driver.fail(operation, Unavailable("gone"))


def holders() -> dict[int, set[str]]:
    """Segment -> the names of the brokers with a copy."""
    found: dict[int, set[str]] = {}
    for replica in stored():
        found.setdefault(replica.segment_id, set()).add(replica.broker.name)
    return found


# -- D1 to D3: the copies change ---------------------------------------------------------------------------


def test_d1_more_copies_begin_with_those_at_most_risk(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    """2 -> 3 with one copy lost meanwhile: the segment with one copy is mended before any gets its third."""
    for number in range(5):
        drive.keep(f"file {number}", os.urandom(3000))
    victim = stored()[4]
    del memory_places.held(victim.broker)[victim.locator]
    scrub.scrub(everything=True)
    policy.change(copies=3)
    clock.advance(seconds=1)
    reconcile.sweep()
    copied = list(Event.objects.filter(kind="copied").order_by("pk").values_list("content", flat=True))
    assert copied[0] == victim.segment.content_id
    assert len(copied) == 6
    assert all(len(names) == 3 for names in holders().values())
    collect()
    at_rest(memory_places, three, drive)


def test_d1_uploads_go_on_while_copies_are_made(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    """An upload in the middle of the change has the new number of copies when it is at rest."""
    for number in range(3):
        drive.keep(f"before {number}", os.urandom(3000))
    policy.change(copies=3)
    first = Segment.objects.order_by("pk").first()
    assert first is not None
    reconcile.reconcile_segment(first.pk)
    drive.keep("meanwhile", os.urandom(3000))
    reconcile.run_to_rest()
    assert [len(names) for names in holders().values()] == [3, 3, 3, 3]
    at_rest(memory_places, three, drive)


def test_d2_copies_too_many_go_after_the_dwell_and_a_fresh_proof(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    policy.change(copies=3)
    drive.keep("file", os.urandom(3000))
    reconcile.run_to_rest()
    policy.change(copies=1, ack_copies=1)
    reconcile.run_to_rest()
    assert len(stored()) == 3, "within the dwell"
    # One rots unseen: it is not the one that is kept.
    clock.advance(hours=1)
    bad = max(stored(), key=lambda r: (r.broker.available or 0, -r.pk))
    counters.add(counters.FAULTS)
    memory_places.held(bad.broker)[bad.locator] = b"\0" * bad.segment.sealed_size
    reconcile.run_to_rest()
    [kept] = stored()
    assert kept.pk != bad.pk
    settle(clock, rounds=2)
    at_rest(memory_places, three, drive)


def test_d2_a_change_of_mind_within_the_dwell_deletes_nothing(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    policy.change(copies=3)
    drive.keep("file", os.urandom(3000))
    reconcile.run_to_rest()
    policy.change(copies=1, ack_copies=1)
    reconcile.run_to_rest()
    clock.advance(seconds=targets.trim_dwell().total_seconds() - 1)
    reconcile.run_to_rest()
    policy.change(copies=3)
    clock.advance(hours=1)
    assert reconcile.run_to_rest().actions == 0
    assert not Event.objects.filter(kind="doomed").exists()
    at_rest(memory_places, three, drive)


def test_d3_copies_to_and_fro_do_no_more_than_is_needed(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    """2 -> 3 -> 1 -> 2 with a rest between each: one copy more, two less, one more for each segment, and no more;
    without a rest between, nothing at all."""
    drive.keep("one", os.urandom(3000))
    drive.keep("two", os.urandom(3000))
    for copies in (3, 1, 2):
        policy.change(copies=copies, ack_copies=1)
    assert reconcile.run_to_rest().actions == 0
    for copies in (3, 1, 2):
        policy.change(copies=copies, ack_copies=1)
        clock.advance(hours=1)
        reconcile.run_to_rest()
        assert [len(names) for names in holders().values()] == [copies, copies]
    copied, doomed = (Event.objects.filter(kind=kind).count() for kind in ("copied", "doomed"))
    assert (copied, doomed) == (2 * 2, 2 * 2)
    collect()
    at_rest(memory_places, three, drive)


# -- D4 to D6: brokers go and return -----------------------------------------------------------------------


def test_d4_a_broker_with_the_only_copy_is_not_removed(
    memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    policy.change(copies=1, ack_copies=1)
    broker = memory_places.add("a")
    drive.keep("folder/only here", os.urandom(3000))
    with pytest.raises(RemovalRefused) as refused:
        operations.remove(broker.pk, Who())
    assert refused.value.code == "copies_needed"
    found = operations.look_at_removal(broker.pk)
    assert found.lost == ["alice:/folder/only here"]
    with pytest.raises(RemovalRefused) as refused:
        operations.remove_by_force(broker.pk, "A", Who())
    assert refused.value.code == "name_differs"
    at_rest(memory_places, [broker], drive)


def test_d4_a_forced_removal_says_what_is_lost_and_keeps_its_rows(
    memory_places: Places, clock: VirtualClock, drive: Drive, expect_log: Callable[..., None]
) -> None:
    expect_log("Bad Gateway")
    policy.change(copies=1, ack_copies=1)
    broker = memory_places.add("a")
    drive.keep("only here", os.urandom(3000))
    removed = operations.remove_by_force(broker.pk, "a", Who())
    assert removed.lost == ["alice:/only here"]
    lost = drive.kept.pop("only here")
    answer = drive.client.get(f"{drive.FILES}/only here")
    assert answer.status_code == 502
    assert answer.json()["code"] == "content_damaged"
    assert drive.head("only here").headers["Content-Length"] == str(len(lost))
    assert [finding for finding in findings() if "only here" in finding]


def test_d5_a_drain_whose_target_fills_stays_and_goes_on_later(
    memory_places: Places, clock: VirtualClock, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "FULL_MARGIN", 0)
    a, b = memory_places.add("a"), memory_places.add("b")
    for number in range(4):
        drive.keep(f"file {number}", os.urandom(50_000))
    small = memory_places.add("c", capacity=120_000)
    update_broker(small.pk, allowed={"reserve": 0})
    operations.begin_drain(a.pk, Who())
    settle(clock, rounds=3)
    a.refresh_from_db()
    assert a.draining
    left = {r.segment_id for r in stored() if r.broker_id == a.pk}
    assert 0 < len(left) < 4, "some went, and what has no room stays"
    assert all(len(names) == 2 for names in holders().values())
    drive.check()
    memory_places.add("d")
    settle(clock, rounds=2)
    assert not [r for r in stored() if r.broker_id == a.pk]
    at_rest(memory_places, [a, b, small], drive)


def test_d6_a_broker_that_returns_is_verified_and_not_filled_again(
    memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    """Removed by force, as when its contract ended, and connected again with what it held: its objects are known by
    their headers, read once, and count; nothing is uploaded."""
    a, b = memory_places.add("a"), memory_places.add("b")
    for number in range(4):
        drive.keep(f"file {number}", os.urandom(3000))
    options = dict(a.options)
    operations.remove_by_force(a.pk, "a", Who())
    reconcile.run_to_rest()
    assert all(names == {"b"} for names in holders().values())
    returned = add_broker("a", "memory", "domain-a", options, adopt=True)
    assert returned.marker == a.marker
    with faulty(returned) as driver:
        call_command("adopt")
        reconcile.run_to_rest()
        assert not [c for c in driver.calls if c.operation == "put" and c.name.startswith("cs/")]
    assert all(names == {"a", "b"} for names in holders().values())
    assert not Event.objects.filter(kind="copied").exists()
    at_rest(memory_places, [returned, b], drive)


# -- D7 to D10: outages --------------------------------------------------------------------------------------


def test_d7_all_brokers_away_is_said_at_once_and_ends_by_itself(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive,
    expect_log: Callable[..., None],
) -> None:  # fmt: skip
    expect_log("Service Unavailable")
    drive.keep("file", os.urandom(3000))
    with faulty(three[0]) as one, faulty(three[1]) as two, faulty(three[2]) as last:
        away(one, two, last)
        for broker in three:
            poll(broker.pk)
        before = [driver.count("put") for driver in (one, two, last)]
        assert drive.put("new", b"x" * 3000).status_code == 503
        assert [driver.count("put") for driver in (one, two, last)] == before, "known by then: not even tried"
        answer, _body = drive.get("file")
        assert answer.status_code == 503
        assert drive.usage() == (3000, 0)
    settle(clock, rounds=2, minutes=1)
    drive.keep("new", b"x" * 3000)
    settle(clock)
    at_rest(memory_places, three, drive)


@pytest.mark.parametrize("degraded", [False, True])
def test_d8_one_broker_of_two_copies(
    degraded: bool, memory_places: Places, clock: VirtualClock, drive: Drive,
    expect_log: Callable[..., None],
) -> None:  # fmt: skip
    """Refused, unless the operator allows less; then it is said, and mended when a second broker is there."""
    expect_log("Service Unavailable")
    policy.change(allow_degraded=degraded)
    a, b = memory_places.add("a"), memory_places.add("b")
    set_enabled(b.pk, False)
    answer = drive.put("file", b"x" * 3000)
    if not degraded:
        assert answer.status_code == 503
        assert drive.usage() == (0, 0)
        assert not stored()
    else:
        assert answer.status_code == 201
        assert answer.json()["copies"]["text"].startswith("1 of 2")
    set_enabled(b.pk, True)
    settle(clock)
    assert len(stored()) == 2 * degraded
    at_rest(memory_places, [a, b], drive)


def test_d9_a_broker_that_flaps_starts_no_repair(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    """Away and back every few minutes for a day, each outage shorter than the dwell: no copy is made, none goes."""
    for number in range(3):
        drive.keep(f"file {number}", os.urandom(3000))
    with faulty(three[0]) as driver:
        for turn in range(97):
            away(driver) if turn % 2 else driver.clear()
            for _poll in range(3):
                clock.advance(minutes=5)
                poll(three[0].pk)
            reconcile.sweep()
    assert not Event.objects.filter(kind__in=("copied", "doomed", "lost")).exists()
    settle(clock, minutes=5)
    at_rest(memory_places, three, drive)


def test_d9_proven_loss_waits_for_nothing(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    drive.keep("file", os.urandom(3000))
    replica = stored()[0]
    counters.add(counters.FAULTS)
    del memory_places.held(replica.broker)[replica.locator]
    scrub.scrub(everything=True)
    assert reconcile.sweep().copied == 1
    collect()
    at_rest(memory_places, three, drive)


def test_d10_copies_stand_on_distinct_domains_and_survive_any_of_them(
    memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    """Six brokers on three domains, three copies: with any two domains gone every file is read."""
    policy.change(copies=3)
    brokers = [memory_places.add(f"{domain}{number}", domain=domain) for domain in "xyz" for number in (1, 2)]
    for number in range(6):
        drive.keep(f"file {number}", os.urandom(3000))
    reconcile.run_to_rest()
    for gone in itertools.combinations("xyz", 2):
        away = [broker for broker in brokers if broker.domain in gone]
        for broker in away:
            set_enabled(broker.pk, False)
        drive.check()
        for broker in away:
            set_enabled(broker.pk, True)
    settle(clock)
    at_rest(memory_places, brokers, drive)


# -- D11 to D13: races and hands -----------------------------------------------------------------------------


def test_d11_the_order_of_a_batch_does_not_matter(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    policy.change(copies=3)
    for number in range(4):
        drive.keep(f"file {number}", os.urandom(3000))
    reconcile.run_to_rest()
    policy.change(copies=2)
    clock.advance(hours=1)
    pks = list(Segment.objects.values_list("pk", flat=True))
    random.Random(11).shuffle(pks)
    for pk in [*pks, *pks]:
        reconcile.reconcile_segment(pk)
    assert [len(names) for names in holders().values()] == [2, 2, 2, 2]
    collect()
    at_rest(memory_places, three, drive)


@pytest.mark.parametrize("edit", ["more copies", "broker disabled", "broker drained"])
def test_d11_an_action_is_checked_again_when_it_is_carried_out(
    edit: str, three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Between plan and act the operator changes what shall be: no copy goes that is needed by then."""
    policy.change(copies=3)
    drive.keep("file", os.urandom(3000))
    reconcile.run_to_rest()
    policy.change(copies=2)
    clock.advance(hours=1)
    planned = placement.plan
    edited = False

    def plan(*args: Any, **options: Any) -> placement.Plan:
        nonlocal edited
        result = planned(*args, **options)
        drops = [a for a in result.actions if isinstance(a, placement.Doom)]
        if drops and not edited:
            edited = True
            going = {action.replica for action in drops}
            staying = next(r for r in stored() if r.pk not in going)
            if edit == "more copies":
                policy.change(copies=3)
            elif edit == "broker disabled":
                set_enabled(staying.broker_id, False)
            else:
                operations.begin_drain(staying.broker_id, Who())
        return result

    monkeypatch.setattr(placement, "plan", plan)
    reconcile.run_to_rest()
    assert edited
    usable = [r for r in stored() if r.broker.enabled]
    assert len({r.broker.domain for r in usable}) >= 2
    drive.check()
    for broker in three:
        set_enabled(broker.pk, True)
    settle(clock)
    at_rest(memory_places, three, drive)


def test_d11_planning_ends_whatever_is_planned_from() -> None:
    """A plan's actions, applied in any order, are not planned a second time (see also
    tests/replication/test_placement_properties.py)."""
    now = targets.clock.now()
    brokers = {n: placement.Target(n, f"domain {n}", available=10**9) for n in range(4)}
    have = [Have(n, n, State.STORED, verified_at=now) for n in range(4)]
    for order in itertools.permutations(range(4)):
        replicas = [have[n] for n in order]
        for _round in range(4):
            plan = placement.plan(
                2, replicas, brokers, size=1, now=now, uniform=lambda: 0.5,
                trim_after=now - timedelta(hours=1), fresh_since=now,
            )  # fmt: skip
            dropped = {a.replica for a in plan.actions if isinstance(a, placement.Doom)}
            if not plan.actions:
                break
            replicas = [r for r in replicas if r.id not in dropped]
        assert len(replicas) == 2
        assert not plan.actions


def test_d13_what_somebody_changed_at_the_provider_is_mended(
    places: Places, clock: VirtualClock, drive: Drive
) -> None:
    """One object overwritten, one removed, one stranger put beside them: read around, mended, and the stranger is
    nobody's business."""
    brokers = [places.add(name) for name in "abc"]
    for number in range(3):
        drive.keep(f"file {number}", os.urandom(3000))
    first, second = stored()[0], stored()[3]
    counters.add(counters.FAULTS, 2)
    places.held(first.broker)[first.locator] = b"by hand"
    del places.held(second.broker)[second.locator]
    places.held(brokers[0])["holiday.jpg"] = b"not ours"
    drive.check()
    scrub.scrub(everything=True)
    settle(clock)
    assert places.held(brokers[0])["holiday.jpg"] == b"not ours"
    del places.held(brokers[0])["holiday.jpg"]
    at_rest(places, brokers, drive)
