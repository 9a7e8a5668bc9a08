"""Placement: pure decisions over brokers and replicas."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.models import Replica
from replication.placement import Copy, Doom, Have, Plan, Target, Verify, choose, plan

pytestmark = pytest.mark.only_on("sqlite")

S = Replica.State
NOW = datetime(2030, 1, 1, tzinfo=UTC)
GB = 1_000_000_000


def target(id: int, domain: str | None = None, **changes: object) -> Target:
    values: dict[str, object] = {"available": 10 * GB}
    values.update(changes)
    return Target(id, domain or f"d{id}", **values)  # type: ignore[arg-type]


def make_plan(wanted: int, replicas: list[Have], targets: list[Target], **changes: object) -> Plan:
    values: dict[str, object] = {
        "size": 1000,
        "now": NOW,
        "uniform": random.Random(1).random,
        "trim_after": NOW,
        "fresh_since": NOW - timedelta(days=14),
    }
    values.update(changes)
    return plan(wanted, replicas, {t.id: t for t in targets}, **values)  # type: ignore[arg-type]


def have(id: int, broker: int, state: str = S.STORED, **changes: object) -> Have:
    values: dict[str, object] = {"verified_at": NOW}
    values.update(changes)
    return Have(id, broker, state, **values)  # type: ignore[arg-type]


def test_load_follows_free_space() -> None:
    uniform = random.Random(5).random
    targets = [target(1, available=60 * GB), target(2, available=30 * GB), target(3, available=10 * GB)]
    counts = Counter(choose(targets, 1, 1000, uniform)[0] for _ in range(20_000))
    assert counts[1] / 20_000 == pytest.approx(0.6, abs=0.02)
    assert counts[2] / 20_000 == pytest.approx(0.3, abs=0.02)


def test_weight_multiplies_and_zero_takes_none() -> None:
    uniform = random.Random(5).random
    targets = [target(1, weight=3.0), target(2, weight=1.0), target(3, weight=0.0, writable=False)]
    counts = Counter(choose(targets, 1, 1000, uniform)[0] for _ in range(10_000))
    assert counts[1] / 10_000 == pytest.approx(0.75, abs=0.02)
    assert counts[3] == 0


def test_an_unknown_capacity_counts_as_the_typical_one() -> None:
    uniform = random.Random(5).random
    targets = [target(1), target(2, available=None)]
    counts = Counter(choose(targets, 1, 1000, uniform)[0] for _ in range(10_000))
    assert counts[2] / 10_000 == pytest.approx(0.5, abs=0.02)


def test_never_two_in_one_domain_nor_where_it_does_not_fit() -> None:
    uniform = random.Random(2).random
    targets = [
        target(1, "x"),
        target(2, "x"),
        target(3, "y"),
        target(4, available=5),
        target(5, writable=False),
    ]
    for _ in range(200):
        chosen = choose(targets, 3, 1000, uniform)
        assert len(chosen) == 2
        assert {1, 2} & set(chosen)
        assert 3 in chosen
    assert choose(targets, 2, 1000, uniform, taken_domains={"x"}, tried={3}) == []


def test_at_rest_a_plan_is_empty() -> None:
    assert make_plan(2, [have(1, 1), have(2, 2)], [target(1), target(2), target(3)]) == Plan()


def test_a_missing_copy_goes_to_a_free_domain() -> None:
    result = make_plan(2, [have(1, 1)], [target(1), target(2, "d1"), target(3)])
    assert result.actions == [Copy(3)]
    assert not result.blocked


def test_no_free_domain_is_said_in_words() -> None:
    result = make_plan(3, [have(1, 1)], [target(1), target(2)])
    assert result.actions == [Copy(2)]
    assert "1 more healthy domain" in result.blocked


def test_a_lost_copy_is_replaced_on_its_own_broker_and_dropped_only_then() -> None:
    targets = [target(1), target(2)]
    lost = have(2, 2, S.LOST)
    assert make_plan(2, [have(1, 1), lost], targets).actions == [Copy(2)]
    assert make_plan(2, [have(1, 1), lost, have(3, 2)], targets).actions == [Doom(2, "replaced")]


def test_nothing_is_dropped_when_no_copy_is_good() -> None:
    result = make_plan(2, [have(1, 1, S.LOST), have(2, 2, S.LOST)], [target(1), target(2)])
    assert result.actions == [Verify(1), Verify(2)]
    later = [have(n, n, S.LOST, check_at=NOW + timedelta(hours=1)) for n in (1, 2)]
    result = make_plan(2, later, [target(1), target(2)])
    assert result.actions == []
    assert result.blocked == "no intact copy is known"


def test_suspects_are_looked_at_before_anything_is_copied() -> None:
    result = make_plan(2, [have(1, 1), have(2, 2, S.SUSPECT)], [target(1), target(2), target(3)])
    assert result.actions == [Verify(2)]


def test_a_suspect_behind_an_outage_counts_until_its_next_look() -> None:
    waiting = have(2, 2, S.SUSPECT, check_at=NOW + timedelta(minutes=5))
    result = make_plan(2, [have(1, 1), waiting], [target(1), target(2), target(3)])
    assert result.actions == []
    assert result.again_at == waiting.check_at


def test_a_suspect_whose_broker_is_away_counts_for_the_dwell() -> None:
    """Its look is due and cannot be taken: nothing is copied yet, and no time is named that has passed already."""
    for check_at in (None, NOW - timedelta(minutes=5), NOW):
        replicas = [have(1, 1), have(2, 2, S.SUSPECT, check_at=check_at, attempts=1)]
        young = target(2, readable=False, writable=False, counts=True)
        result = make_plan(2, replicas, [target(1), young, target(3)])
        assert (result.actions, result.again_at) == ([], None)
        assert result.blocked == "a suspect copy waits for another look"
        old = target(2, readable=False, writable=False, counts=False)
        assert make_plan(2, replicas, [target(1), old, target(3)]).actions == [Copy(3)]


def test_an_outage_counts_for_the_dwell_and_not_after_it() -> None:
    replicas = [have(1, 1), have(2, 2)]
    young = target(2, readable=False, writable=False, counts=True)
    old = target(2, readable=False, writable=False, counts=False)
    assert make_plan(2, replicas, [target(1), young, target(3)]) == Plan()
    assert make_plan(2, replicas, [target(1), old, target(3)]).actions == [Copy(3)]


def test_an_abandoned_attempt_goes() -> None:
    result = make_plan(2, [have(1, 1), have(2, 2), have(3, 3, S.PLANNED)], [target(1), target(2), target(3)])
    assert result.actions == [Doom(3, "abandoned")]


def test_a_copy_too_many_goes_from_the_fullest_after_the_dwell() -> None:
    targets = [target(1), target(2, available=1 * GB), target(3)]
    replicas = [have(1, 1), have(2, 2), have(3, 3)]
    assert make_plan(2, replicas, targets).actions == [Doom(2, "too many")]
    later = make_plan(2, replicas, targets, trim_after=NOW + timedelta(minutes=9))
    assert later.actions == []
    assert later.again_at == NOW + timedelta(minutes=9)


def test_what_stays_is_proven_first() -> None:
    targets = [target(1), target(2), target(3, available=1)]
    stale = [have(n, n, verified_at=NOW - timedelta(days=20)) for n in (1, 2, 3)]
    assert make_plan(2, stale, targets).actions == [Verify(1), Verify(2)]


def test_nothing_is_dropped_in_favour_of_a_copy_that_cannot_be_read() -> None:
    targets = [target(1), target(2, readable=False, writable=False), target(3)]
    replicas = [have(1, 1), have(2, 2), have(3, 3)]
    assert make_plan(2, replicas, targets).actions == [Doom(2, "too many")]
    targets = [target(1), target(2, readable=False, writable=False), target(3, "d1")]
    result = make_plan(2, replicas, targets)
    assert result.actions == []
    assert "until the others can be read" in result.blocked


def test_a_second_copy_in_one_domain_does_not_count() -> None:
    targets = [target(1, "x"), target(2, "x"), target(3)]
    result = make_plan(2, [have(1, 1), have(2, 2)], targets)
    assert result.actions == [Copy(3)]
    result = make_plan(2, [have(1, 1), have(2, 2), have(3, 3)], targets)
    assert [type(a) for a in result.actions] == [Doom]


states = st.sampled_from([S.PLANNED, S.STORED, S.SUSPECT, S.LOST])


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data(), wanted=st.integers(1, 4), seed=st.integers(0, 1000))
def test_plans_end_and_never_drop_below_what_is_wanted(data: st.DataObject, wanted: int, seed: int) -> None:
    """Carry out plans on a model of the rows until they are empty: they end, the copies that counted never fall
    below min(wanted, what there was), and what was reachable is reached."""
    count = data.draw(st.integers(1, 5))
    targets = {}
    for n in range(1, count + 1):
        up = data.draw(st.booleans(), label=f"broker {n} is up")
        targets[n] = target(n, data.draw(st.sampled_from("xyz")), readable=up, writable=up, counts=up)
    replicas: dict[int, Have] = {}
    for n in targets:
        if data.draw(st.booleans()):
            replicas[n] = have(n, n, data.draw(states))
    uniform = random.Random(seed).random

    def standing() -> int:
        return len(
            {
                targets[r.broker].domain
                for r in replicas.values()
                if r.state == S.STORED and targets[r.broker].counts
            }
        )

    least = standing()
    next_id = 100
    for _round in range(30):
        result = plan(
            wanted,
            list(replicas.values()),
            targets,
            size=1000,
            now=NOW,
            uniform=uniform,
            trim_after=NOW,
            fresh_since=NOW - timedelta(days=1),
        )
        if not result.actions:
            break
        for action in result.actions:
            if isinstance(action, Copy):
                assert all(
                    r.broker != action.broker or r.state in (S.LOST, S.PLANNED) for r in replicas.values()
                )
                replicas[next_id] = have(next_id, action.broker)
                next_id += 1
            elif isinstance(action, Verify):
                old = replicas[action.replica]
                fine = data.draw(st.booleans(), label=f"replica {old.id} verifies")
                later = NOW + timedelta(hours=1)
                replicas[old.id] = have(
                    old.id, old.broker, S.STORED if fine else S.LOST, check_at=None if fine else later
                )
                least = min(least, standing()) if not fine else least
            else:
                before = standing()
                del replicas[action.replica]
                assert standing() >= min(wanted, before)
        least = max(least, min(wanted, standing()))
    else:
        pytest.fail("the plans do not end")
    assert standing() >= min(wanted, least)
    domains = {t.domain for t in targets.values() if t.writable}
    if standing() and not result.blocked:
        assert standing() == wanted or standing() >= min(wanted, len(domains))
