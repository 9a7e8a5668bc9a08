"""Drain, rebalance and remove: what moves bytes between brokers as a whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command

from brokers import services
from brokers.health import poll
from brokers.models import Broker
from brokers.names import META_PREFIX
from replication import balance, drain, epoch, policy, rebalance, reconcile, removal
from replication.collect import collect
from replication.contents import abandon, condemn_unreferenced
from replication.fsck import check
from replication.models import Content, Event, Policy, Replica, Segment
from replication.removal import RemovalRefused
from tests.kit.clock import VirtualClock
from tests.replication.kit import Objects, State, copies, load, memory_broker, replicas, store

pytestmark = pytest.mark.django_db

MB = 1_000_000


@pytest.fixture
def three(clock: VirtualClock) -> list[Broker]:
    return [memory_broker(name) for name in "abc"]


def holder(content: Content) -> Broker:
    """One broker with copies of all of it."""
    return replicas(content, State.STORED)[0].broker


def rest() -> None:
    reconcile.run_to_rest()
    collect()
    assert reconcile.run_to_rest().actions == 0
    assert {f.code for f in check(full=True)} <= {"unreferenced", "broker_not_readable"}


# -- drain --------------------------------------------------------------------------------------------


def test_a_drained_broker_ends_empty_and_everything_stands_elsewhere(
    three: list[Broker], clock: VirtualClock
) -> None:
    files = {os.urandom(3000 + n): None for n in range(6)}
    stored = [(store(data), data) for data in files]
    leaving = holder(stored[0][0])
    before = drain.begin(leaving.pk)
    assert before.draining
    assert before.objects == Replica.objects.filter(broker=leaving).count() > 0
    assert before.bytes > 0
    assert before.blocked == ""
    clock.advance(seconds=10)
    reconcile.run_to_rest()
    # Copied and verified: nothing that counts is there any more, the objects wait for the collector.
    after = drain.progress(leaving.pk)
    assert after.objects == after.deleting == before.objects
    collect()
    after = drain.progress(leaving.pk)
    assert after.empty
    assert after.moved_bytes == before.bytes
    assert after.rate == pytest.approx(before.bytes / 10)
    assert after.seconds_left == 0
    assert not [name for name in Objects(leaving) if name.startswith("cs/")]
    for content, data in stored:
        assert load(content) == data
        assert copies(content) == 2
        assert leaving.pk not in {r.broker_id for r in replicas(content)}
    rest()


def test_a_draining_broker_is_read_and_takes_nothing_new(three: list[Broker]) -> None:
    content = store(b"x" * 1000)
    leaving = holder(content)
    drain.begin(leaving.pk)
    leaving.refresh_from_db()
    assert leaving.readable
    assert not leaving.writable
    assert leaving.pk not in {r.broker_id for r in replicas(store(b"y" * 1000))}
    # The one other copy's broker away: the draining one serves.
    for other in three:
        if other.pk != leaving.pk:
            services.set_enabled(other.pk, False)
    assert load(content) == b"x" * 1000


def test_a_drain_without_a_place_to_go_keeps_the_copies_and_says_why(clock: VirtualClock) -> None:
    brokers = [memory_broker(name) for name in "ab"]
    content = store(b"x" * 1000)
    progress = drain.begin(brokers[0].pk)
    assert "1 more healthy domain" in progress.blocked
    reconcile.run_to_rest()
    assert copies(content) == 2
    assert drain.progress(brokers[0].pk).waiting == {"2 copies need 1 more healthy domain(s) with space": 1}
    # A new broker, and it goes on.
    memory_broker("c")
    rest()
    assert drain.progress(brokers[0].pk).empty
    assert copies(content) == 2


def test_a_drain_is_undone(three: list[Broker]) -> None:
    content = store(b"x" * 1000)
    leaving = holder(content)
    drain.begin(leaving.pk)
    drain.begin(leaving.pk)
    undone = drain.undo(leaving.pk)
    drain.undo(leaving.pk)
    assert not undone.draining
    assert undone.since is None
    kinds = list(leaving.events.values_list("kind", flat=True))
    assert kinds.count("drain_begun") == kinds.count("drain_ended") == 1
    rest()
    assert leaving.pk in {r.broker_id for r in replicas(content, State.STORED)}
    leaving.refresh_from_db()
    assert leaving.writable


def test_a_dead_broker_is_drained_from_the_other_copies(three: list[Broker], clock: VirtualClock) -> None:
    content = store(b"x" * 1000)
    dead = holder(content)
    services.set_enabled(dead.pk, False)
    drain.begin(dead.pk)
    reconcile.run_to_rest()
    assert copies(content) == 2
    assert {r.state for r in Replica.objects.filter(broker=dead)} == {State.DOOMED}


def test_what_was_deleted_is_not_copied_again(three: list[Broker]) -> None:
    content = store(b"x" * 1000)
    leaving = holder(content)
    assert condemn_unreferenced([content.pk]) == 1
    drain.begin(leaving.pk)
    assert {r.state for r in Replica.objects.filter(broker=leaving)} == {State.DOOMED}
    assert Replica.objects.filter(segment__content=content, state=State.STORED).count() == 1
    assert Event.objects.filter(kind="copied").count() == 0


def test_the_last_copy_of_what_was_deleted_waits_for_the_grace(three: list[Broker]) -> None:
    content = store(b"x" * 1000)
    first, second = (r.broker for r in replicas(content))
    assert condemn_unreferenced([content.pk]) == 1
    drain.begin(first.pk)
    drain.begin(second.pk)
    assert Replica.objects.filter(segment__content=content, state=State.STORED).count() == 1


def test_a_damaged_copy_elsewhere_is_found_before_the_last_good_one_goes(three: list[Broker]) -> None:
    content = store(b"x" * 1000)
    good, bad = replicas(content)
    Objects(bad.broker)[bad.locator] = b"\0" * len(Objects(bad.broker)[bad.locator])
    poll(bad.broker_id)
    drain.begin(good.broker_id)
    reconcile.run_to_rest()
    assert load(content) == b"x" * 1000
    assert Replica.objects.filter(state=State.LOST).count() <= 1
    intact = [
        r
        for r in Replica.objects.filter(state=State.STORED).select_related("broker")
        if Objects(r.broker)[r.locator] != b"\0" * r.segment.sealed_size
    ]
    assert intact


# -- rebalance ----------------------------------------------------------------------------------------


@pytest.fixture
def uneven(clock: VirtualClock) -> list[Broker]:
    """Two full brokers and two empty ones, all of one size."""
    for name in "ab":
        memory_broker(name, capacity=500 * MB)
    for n in range(24):
        store(os.urandom(20_000 + n))
    made = [memory_broker(name, capacity=500 * MB) for name in "cd"]
    reconcile.run_to_rest()
    return made


def held() -> dict[str, int]:
    rows = Replica.objects.filter(state=State.STORED).select_related("broker", "segment")
    result = {broker.name: 0 for broker in Broker.objects.all()}
    for row in rows:
        result[row.broker.name] += row.segment.sealed_size
    return result


def test_load_becomes_even_and_then_nothing_moves(uneven: list[Broker], clock: VirtualClock) -> None:
    assert not rebalance.look().balanced
    contents = {c.pk: load(c) for c in Content.objects.all()}
    rebalance.begin()
    while Policy.objects.get().rebalancing_since is not None:
        reconcile.run_to_rest()
        collect()
        clock.advance(seconds=20)
    shares = held()
    goal = sum(shares.values()) / 4
    assert all(abs(size - goal) <= 0.1 * goal for size in shares.values()), shares
    assert rebalance.look().moves == 0
    assert not Replica.objects.exclude(moves_to=None).exists()
    for content in Content.objects.all():
        assert copies(content) == 2
        assert load(content) == contents[content.pk]
    rest()
    before = Event.objects.filter(kind="copied").count()
    rebalance.begin()
    rest()
    assert Event.objects.filter(kind="copied").count() == before
    assert Policy.objects.get().rebalancing_since is None


def test_a_batch_waits_for_the_one_before_and_for_the_rate(
    uneven: list[Broker], clock: VirtualClock, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebalance, "BATCH", 2)
    monkeypatch.setattr(rebalance, "BATCH_BYTES", 40_000)
    settings.CLOUDSTORE_REBALANCE_RATE = 1000
    rebalance.begin()
    assert rebalance.step() == 2
    clock.advance(seconds=3600)
    assert rebalance.step() == 0  # those are under way
    reconcile.run_to_rest()
    # The time of the first batch was over, so a second one went at once; its own time holds the third back.
    moved = Event.objects.filter(kind="doomed", detail="moved")
    assert moved.count() == 4
    assert rebalance.pending().count() == 0
    assert rebalance.step() == 0  # 40 kB take 40 s at this rate
    clock.advance(seconds=39)
    assert rebalance.step() == 0
    clock.advance(seconds=6)
    assert rebalance.step() == 2


def test_the_command_works_until_load_is_even(uneven: list[Broker], clock: VirtualClock) -> None:
    told = StringIO()
    call_command("rebalance", "--wait", stdout=StringIO(), stderr=told)
    outlook = rebalance.look()
    assert (outlook.running, outlook.balanced, outlook.moves) == (False, True, 0)
    assert "load is even" in told.getvalue()
    assert {copies(content) for content in Content.objects.all()} == {2}


def test_a_stopped_rebalance_leaves_no_mark_and_every_copy(uneven: list[Broker], clock: VirtualClock) -> None:
    rebalance.begin()
    assert rebalance.step() > 0
    rebalance.stop()
    assert rebalance.pending().count() == 0
    assert not rebalance.look().running
    clock.advance(hours=1)
    rest()
    assert held()["c"] == held()["d"] == 0


def test_a_target_that_goes_away_ends_the_wish(uneven: list[Broker], clock: VirtualClock) -> None:
    rebalance.begin()
    assert rebalance.step() > 0
    Policy.objects.update(rebalancing_since=None)
    for broker in uneven:
        services.set_enabled(broker.pk, False)
    rest()
    assert rebalance.pending().count() == 0
    assert all(copies(content) == 2 for content in Content.objects.all())


def test_an_uneven_load_that_may_not_move_says_why(clock: VirtualClock) -> None:
    """Two copies on two domains: each broker must hold everything, whatever its size."""
    memory_broker("small", capacity=300 * MB)
    memory_broker("large", capacity=900 * MB)
    for _ in range(4):
        store(os.urandom(20_000))
    outlook = rebalance.look()
    assert not outlook.balanced
    assert outlook.moves == 0
    assert "no copy may move" in outlook.blocked
    rebalance.begin()
    rest()
    assert Policy.objects.get().rebalancing_since is None


# -- remove -------------------------------------------------------------------------------------------


def test_a_broker_with_a_needed_copy_is_not_removed(three: list[Broker]) -> None:
    content = store(b"x" * 1000)
    kept = holder(content)
    standing = removal.look(kept.pk)
    assert (standing.needed, standing.contents, standing.only_here) == (1, 1, [])
    with pytest.raises(RemovalRefused, match="1 copies that are needed") as refused:
        removal.empty(kept.pk)
    assert refused.value.code == "copies_needed"
    kept.refresh_from_db()
    assert not kept.draining
    with pytest.raises(RemovalRefused):
        removal.forget(kept.pk)
    assert copies(content) == 2


def test_an_emptied_broker_leaves_nothing_of_ours(three: list[Broker]) -> None:
    content = store(b"x" * 1000)
    leaving = holder(content)
    epoch.advance()
    drain.begin(leaving.pk)
    reconcile.run_to_rest()
    names = set(Objects(leaving))
    assert any(name.startswith(META_PREFIX) for name in names)
    assert any(name.startswith("cs/") for name in names)
    removal.empty(leaving.pk)
    assert set(Objects(leaving)) == set()
    removal.empty(leaving.pk)
    assert removal.forget(leaving.pk) == 0
    assert not Broker.objects.filter(pk=leaving.pk).exists()
    assert load(content) == b"x" * 1000
    rest()


def test_what_nobody_knows_is_not_deleted_with_a_broker(three: list[Broker]) -> None:
    leaving = three[0]
    Objects(leaving)["cs/ff/" + "f" * 32] = b"nobody knows me"
    with pytest.raises(RemovalRefused) as refused:
        removal.empty(leaving.pk)
    assert refused.value.code == "unknown_objects"
    assert "cs/ff/" + "f" * 32 in set(Objects(leaving))
    assert "cs-marker" in set(Objects(leaving))


def test_a_place_that_does_not_answer_is_left_as_it_is_only_when_told(three: list[Broker]) -> None:
    content = store(b"x" * 1000)
    dead = holder(content)
    services.set_enabled(dead.pk, False)
    drain.begin(dead.pk)
    reconcile.run_to_rest()
    with pytest.raises(RemovalRefused) as refused:
        removal.empty(dead.pk)
    assert refused.value.code == "not_reachable"
    removal.empty(dead.pk, leave_objects=True)
    assert removal.forget(dead.pk) == 1
    assert len(Objects(dead)) >= 2
    assert copies(content) == 2
    rest()


def test_a_locked_database_removes_nothing(three: list[Broker], expect_log: Callable[..., Any]) -> None:
    expect_log("deletion is locked")
    epoch.lock_now(99, "an older database")
    with pytest.raises(RemovalRefused) as refused:
        removal.empty(three[0].pk)
    assert refused.value.code == "deletion_locked"
    assert "cs-marker" in set(Objects(three[0]))


def test_a_forced_removal_tells_what_is_lost_and_repairs_the_rest(three: list[Broker]) -> None:
    safe = store(b"x" * 1000)
    alone = store(b"y" * 1000, copies=1)
    gone = holder(alone)
    lost = removal.force(gone.pk)
    assert lost == [alone.pk]
    assert Event.objects.get(kind="lost", content=alone.pk).detail.endswith("by force")
    assert not Segment.objects.filter(content=alone, replicas__isnull=False).exists()
    assert "cs-marker" in set(Objects(gone))
    reconcile.run_to_rest()
    assert copies(safe) == 2
    assert load(safe) == b"x" * 1000
    assert {f.code for f in check()} - {"unreferenced"} == {"no_copy"}


def test_an_upload_under_way_needs_its_broker(three: list[Broker]) -> None:
    content = store(b"x" * 1000)
    Content.objects.filter(pk=content.pk).update(state=Content.State.OPEN, sealed_at=None)
    leaving = holder(content)
    assert drain.begin(leaving.pk).uploading == 1
    with pytest.raises(RemovalRefused):
        removal.empty(leaving.pk)
    abandon(content.pk)
    collect()
    removal.empty(leaving.pk)


def test_goals_follow_weight_and_space() -> None:
    loads = [
        balance.Load(1, "a", 100, 900),
        balance.Load(2, "b", 0, 1000, weight=2.0),
        balance.Load(3, "c", 0, None),
    ]
    assert balance.goals(loads) == pytest.approx({1: 25, 2: 50, 3: 25})


def test_the_policy_row_is_not_needed_to_sweep() -> None:
    """Nothing is drained or rebalanced: the two steps cost two queries and change nothing."""
    policy.current()
    assert drain.step() == 0
    assert rebalance.step() == 0
