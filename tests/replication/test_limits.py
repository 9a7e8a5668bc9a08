"""How limits and states of brokers reach bytes: where copies go, who is read first, what the background leaves be."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest

from brokers import health
from brokers.errors import OverLimit
from brokers.models import Broker, Health
from brokers.services import update_broker
from replication import capacity, orphans, placement, policy, reconcile, scrub, targets
from replication.models import Content, Replica
from replication.placement import Target
from tests.brokers.conftest import faulty
from tests.kit.clock import VirtualClock
from tests.replication.kit import State, load, memory_broker, replicas, store

pytestmark = [pytest.mark.django_db, pytest.mark.only_on("sqlite")]
MB = 1024 * 1024


@pytest.fixture
def three(clock: VirtualClock) -> list[Broker]:
    return [memory_broker(name) for name in "abc"]


def held_by(content: Content) -> set[str]:
    return {r.broker.name for r in replicas(content, State.STORED)}


def degrade(name: str, clock: VirtualClock) -> None:
    Broker.objects.filter(name=name).update(degraded_since=clock.now(), degraded_reason="slow")


def use_up(name: str, clock: VirtualClock, *, hard: bool = False) -> None:
    until = clock.now() + timedelta(days=20)
    Broker.objects.filter(name=name).update(traffic_over_until=until, monthly_hard=hard)


# -- capacity ------------------------------------------------------------------------------------------------


def test_a_cap_is_counted_from_our_own_copies(three: list[Broker], clock: VirtualClock) -> None:
    update_broker(three[0].pk, allowed={"capacity_limit": 1000 * MB, "reserve": 100 * MB})
    policy.change(copies=3)
    store(b"x" * 100_000)
    reconcile.run_to_rest()
    sealed = Replica.objects.get(broker=three[0]).segment.sealed_size
    clock.advance(seconds=61)
    assert capacity.measure() == 1, "brokers without a cap are not counted"
    assert capacity.measure() == 0, "a young count is good"
    row = Broker.objects.get(pk=three[0].pk)
    assert row.held == sealed and row.held_at == clock.now()
    assert targets.load()[row.pk].available == 1000 * MB - sealed - 100 * MB
    assert capacity.measure(everything=True) == 3


def test_no_copy_goes_beyond_the_cap(three: list[Broker], clock: VirtualClock) -> None:
    update_broker(three[0].pk, allowed={"capacity_limit": 65 * MB})  # 64 MiB are kept free
    Broker.objects.filter(name="a").update(weight=1e9)
    for number in range(8):
        store(random.Random(number).randbytes(300_000))
        clock.advance(seconds=61)
        reconcile.sweep()
    row = Broker.objects.get(name="a")
    assert 2 * 300_000 <= capacity.held(row.pk) <= 1 * MB
    assert health.poll(row.pk).health == Health.ONLINE
    Broker.objects.filter(pk=row.pk).update(capacity_limit=64 * MB)
    assert health.poll(row.pk).health == Health.FULL


# -- degraded ------------------------------------------------------------------------------------------------


def test_reluctant_brokers_are_drawn_last() -> None:
    well = [Target(n, f"d{n}", available=10**9) for n in range(2)]
    slow = [Target(n, f"d{n}", available=10**15, weight=99, reluctant=True) for n in range(2, 4)]
    source = random.Random(1)
    for _ in range(200):
        assert set(placement.choose([*slow, *well], 2, 100, source.random)) == {0, 1}
        three = placement.choose([*slow, *well], 3, 100, source.random)
        assert set(three[:2]) == {0, 1} and three[2] in (2, 3)
    shared = [Target(1, "same", available=10**9), Target(2, "same", available=10**12, reluctant=True)]
    assert placement.choose(shared, 2, 100, source.random) == [1]


def test_a_degraded_broker_gets_copies_only_when_no_other_is_left(
    three: list[Broker], clock: VirtualClock
) -> None:
    degrade("a", clock)
    assert all(held_by(store(b"%d" % n)) == {"b", "c"} for n in range(10))
    Broker.objects.filter(name="b").update(weight=0)
    assert held_by(store(b"needs two")) == {"a", "c"}


def test_a_degraded_broker_is_read_last(three: list[Broker], clock: VirtualClock) -> None:
    Broker.objects.filter(name="c").update(weight=0)
    content = store(b"x" * 1000)
    for name, other in (("a", "b"), ("b", "a")):
        Broker.objects.update(degraded_since=None)
        degrade(name, clock)
        with faulty(Broker.objects.get(name=name)) as slow, faulty(Broker.objects.get(name=other)) as well:
            assert load(content) == b"x" * 1000
            assert (slow.count("get"), well.count("get")) == (0, 1)


def test_a_degraded_brokers_copies_count_and_stay(three: list[Broker], clock: VirtualClock) -> None:
    Broker.objects.filter(name="c").update(weight=0)
    content = store(b"x")
    Broker.objects.update(weight=1)
    degrade("a", clock)
    clock.advance(hours=3)
    assert reconcile.run_to_rest().actions == 0 and held_by(content) == {"a", "b"}


# -- a month's traffic ---------------------------------------------------------------------------------------


def test_the_background_leaves_a_broker_alone_whose_traffic_is_used_up(
    three: list[Broker], clock: VirtualClock
) -> None:
    Broker.objects.filter(name="c").update(weight=0)
    content = store(b"x" * 1000)
    Broker.objects.update(weight=1)
    use_up("a", clock)
    a = Broker.objects.get(name="a")
    with faulty(a) as driver:
        clock.advance(days=1)
        assert scrub.scrub(everything=True).replicas == 1
        orphans.scan()
        policy.change(copies=3)
        reconcile.run_to_rest()
        assert held_by(content) == {"a", "b", "c"}, "the copy was read from the other one"
        assert load(content) == b"x" * 1000
        assert driver.count("get") == driver.count("put") == driver.count("delete") == 0
        Broker.objects.exclude(name="a").update(enabled=False)
        assert load(content) == b"x" * 1000, "users still read"
        assert driver.count("get") == 1


def test_repairs_do_not_go_there_and_uploads_only_when_they_must(
    three: list[Broker], clock: VirtualClock
) -> None:
    use_up("a", clock)
    content = store(b"x")
    assert held_by(content) == {"b", "c"}
    policy.change(copies=3)
    report = reconcile.run_to_rest()
    assert held_by(content) == {"b", "c"} and any("1 more healthy domain" in why for why in report.blocked)
    Broker.objects.filter(name="b").update(weight=0)
    policy.change(copies=2)
    assert held_by(store(b"an upload")) == {"a", "c"}
    Broker.objects.update(weight=1)
    policy.change(copies=3)
    clock.advance(days=21)
    reconcile.run_to_rest()
    assert held_by(content) == {"a", "b", "c"}, "the next month"


def test_a_hard_limit_refuses_users_too_and_loses_nothing(
    three: list[Broker], clock: VirtualClock, monkeypatch: Any
) -> None:
    Broker.objects.filter(name="c").update(weight=0)
    content = store(b"x" * 1000)
    use_up("a", clock, hard=True)
    assert load(content) == b"x" * 1000
    row = Broker.objects.get(name="a")
    from replication import transfer

    with pytest.raises(OverLimit):
        transfer.fetch_all(row, replicas(content)[0].locator)
    assert Broker.objects.get(name="a").health == Health.ONLINE
    assert held_by(content) == {"a", "b"}
