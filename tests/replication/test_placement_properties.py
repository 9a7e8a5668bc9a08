"""What must hold of every plan, over generated brokers, segments, drains and moves (hypothesis)."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication import balance
from replication.balance import Held, Load
from replication.models import Replica
from replication.placement import Copy, Doom, Have, Plan, Stay, Target, Verify, choose, plan

pytestmark = pytest.mark.only_on("sqlite")

S = Replica.State
NOW = datetime(2030, 1, 1, tzinfo=UTC)
GB = 1_000_000_000
DOMAINS = "vwxyz"


@st.composite
def brokers(draw: st.DrawFn) -> dict[int, Target]:
    """One to seven brokers on five domains: some down, some full, some draining."""
    made = {}
    for n in range(1, draw(st.integers(1, 7)) + 1):
        up = draw(st.integers(0, 5)) > 0
        made[n] = Target(
            n,
            draw(st.sampled_from(DOMAINS)),
            readable=up,
            writable=up and draw(st.integers(0, 4)) > 0,
            counts=up,
            available=draw(st.sampled_from([None, 0, 1 * GB, 10 * GB])),
            weight=draw(st.sampled_from([0.5, 1.0, 3.0])),
            leaving=draw(st.integers(0, 3)) == 0,
        )
    return made


@st.composite
def situations(draw: st.DrawFn) -> tuple[int, dict[int, Target], list[Have]]:
    """Brokers, and a segment with replicas in any state, some of them on a move to any broker."""
    targets = draw(brokers())
    replicas = [
        Have(
            n,
            n,
            draw(st.sampled_from([S.STORED, S.STORED, S.STORED, S.PLANNED, S.SUSPECT, S.LOST])),
            verified_at=draw(st.sampled_from([NOW, NOW - timedelta(days=30)])),
            to=draw(st.one_of(st.none(), st.sampled_from(sorted(targets)))),
        )
        for n in targets
        if draw(st.booleans())
    ]
    return draw(st.integers(1, 4)), targets, replicas


class Rows:
    """The rows of one segment, on which plans are carried out as the reconciler does it."""

    def __init__(self, wanted: int, targets: dict[int, Target], replicas: list[Have], seed: int) -> None:
        self.wanted, self.targets = wanted, targets
        self.rows = {r.id: r for r in replicas}
        self.uniform = random.Random(seed).random
        self.next_id = 100

    def plan(self) -> Plan:
        return plan(
            self.wanted,
            list(self.rows.values()),
            self.targets,
            size=1000,
            now=NOW,
            uniform=self.uniform,
            trim_after=NOW,
            fresh_since=NOW - timedelta(days=1),
        )

    def verified(self) -> set[str]:
        """The domains with a copy that can be read."""
        stored = [self.targets[r.broker] for r in self.rows.values() if r.state == S.STORED]
        return {t.domain for t in stored if t.readable}

    def carry_out(self, made: Plan) -> None:
        for action in made.actions:
            match action:
                case Copy(broker):
                    assert all(
                        r.broker != broker or r.state not in Replica.LIVE or r.state == S.PLANNED
                        for r in self.rows.values()
                    )
                    assert not self.targets[broker].leaving
                    self.rows[self.next_id] = Have(self.next_id, broker, S.STORED, verified_at=NOW)
                    self.next_id += 1
                case Verify(replica):
                    if self.targets[self.rows[replica].broker].readable:
                        self.rows[replica] = replace(self.rows[replica], state=S.STORED, verified_at=NOW)
                case Stay(replica):
                    self.rows[replica] = replace(self.rows[replica], to=None)
                case Doom(replica, _reason):
                    before = len(self.verified())
                    del self.rows[replica]
                    after = len(self.verified())
                    assert after >= min(self.wanted, before), action

    def run(self) -> Plan:
        """Plan and carry out until nothing is left to do: -> the last plan, which is empty."""
        for _ in range(40):
            made = self.plan()
            if not made.actions:
                return made
            self.carry_out(made)
        raise AssertionError("the plans do not end")


examples = settings(max_examples=120, deadline=None, derandomize=True)


@examples
@given(situation=situations(), seed=st.integers(0, 1000))
def test_a_drop_never_lowers_verified_copies(
    situation: tuple[int, dict[int, Target], list[Have]], seed: int
) -> None:
    """Checked at each drop (`Rows.carry_out`), and over the whole way."""
    rows = Rows(*situation, seed)
    before = len(rows.verified())
    rows.run()
    assert len(rows.verified()) >= min(rows.wanted, before)


@examples
@given(situation=situations(), seed=st.integers(0, 1000))
def test_a_plan_applied_twice_is_empty(
    situation: tuple[int, dict[int, Target], list[Have]], seed: int
) -> None:
    rows = Rows(*situation, seed)
    rows.run()
    there = dict(rows.rows)
    assert rows.plan().actions == []
    assert rows.rows == there


@examples
@given(situation=situations(), seed=st.integers(0, 1000))
def test_what_is_short_of_its_copies_says_why(
    situation: tuple[int, dict[int, Target], list[Have]], seed: int
) -> None:
    rows = Rows(*situation, seed)
    last = rows.run()
    staying = {
        rows.targets[r.broker].domain
        for r in rows.rows.values()
        if r.state == S.STORED and rows.targets[r.broker].counts and not rows.targets[r.broker].leaving
    }
    on_leaving = [r for r in rows.rows.values() if rows.targets[r.broker].leaving and r.state in Replica.LIVE]
    if len(staying) < rows.wanted or on_leaving:
        assert last.blocked


@examples
@given(
    targets=brokers(),
    count=st.integers(1, 5),
    taken=st.sets(st.sampled_from(DOMAINS)),
    seed=st.integers(0, 99),
)
def test_never_two_in_one_domain_while_another_is_free(
    targets: dict[int, Target], count: int, taken: set[str], seed: int
) -> None:
    """`choose` takes each domain at most once, and as many as there are."""
    chosen = choose(targets.values(), count, 1000, random.Random(seed).random, taken_domains=taken)
    domains = [targets[pk].domain for pk in chosen]
    assert len(set(domains)) == len(domains)
    assert not set(domains) & taken
    free = {
        t.domain
        for t in targets.values()
        if t.writable and not t.leaving and t.domain not in taken and t.available != 0
    }
    assert len(chosen) == min(count, len(free))


@examples
@given(situation=situations(), seed=st.integers(0, 1000))
def test_any_copies_less_one_domains_down_leave_a_copy(
    situation: tuple[int, dict[int, Target], list[Have]], seed: int
) -> None:
    rows = Rows(*situation, seed)
    if rows.run().blocked or not rows.rows:
        return
    stored = [rows.targets[r.broker] for r in rows.rows.values() if r.state == S.STORED]
    counting = [t for t in stored if t.counts and not t.leaving]
    # At rest each copy has a domain of its own, so whichever copies-1 domains fail, one is left.
    assert len({t.domain for t in counting}) == len(counting) == rows.wanted


@examples
@given(situation=situations(), seed=st.integers(0, 1000))
def test_a_wish_to_move_never_holds_up_a_segment(
    situation: tuple[int, dict[int, Target], list[Have]], seed: int
) -> None:
    """With as many good copies on distinct domains as are wanted, moves that cannot be are given up, also when one
    is to take the place of another."""
    wanted, targets, replicas = situation
    staying = [r for r in replicas if r.state == S.STORED and not targets[r.broker].leaving]
    if len({targets[r.broker].domain for r in staying if targets[r.broker].counts}) < wanted:
        return
    rows = Rows(wanted, targets, replicas, seed)
    last = rows.run()
    assert "more healthy domain" not in last.blocked
    if not last.blocked:
        assert all(r.to is None or r.state != S.STORED for r in rows.rows.values())


def test_a_chain_of_moves_ends() -> None:
    """One copy is to take the place of another, which is to take that of a third, which has a copy where it goes."""
    targets = {n: Target(n, DOMAINS[n - 1], available=GB) for n in range(1, 6)}
    moving = [
        Have(1, 1, S.STORED, NOW, to=4),
        Have(2, 2, S.STORED, NOW, to=1),
        Have(3, 3, S.STORED, NOW, to=2),
    ]
    done = [Have(4, 4, S.STORED, NOW), Have(5, 5, S.STORED, NOW)]
    rows = Rows(3, targets, [*moving, *done], 1)
    assert not rows.run().blocked
    assert len(rows.rows) == 3
    assert 1 not in rows.rows


# -- rebalance ----------------------------------------------------------------------------------------


@st.composite
def drives(draw: st.DrawFn) -> tuple[list[Load], list[Held], dict[int, str]]:
    count = draw(st.integers(2, 6))
    domains = {n: draw(st.sampled_from(DOMAINS)) for n in range(1, count + 1)}
    held = dict.fromkeys(domains, 0)
    segments = []
    replica = 1
    for n in range(draw(st.integers(0, 12))):
        size = draw(st.integers(1, 8_000_000))
        at = {}
        taken: set[str] = set()
        for broker in draw(st.lists(st.sampled_from(sorted(domains)), max_size=3, unique=True)):
            if domains[broker] not in taken:
                taken.add(domains[broker])
                at[replica] = broker
                held[broker] += size
                replica += 1
        segments.append(Held(n, size, at))
    loads = [
        Load(
            n,
            domains[n],
            held[n],
            draw(st.sampled_from([None, 0, 100_000_000, 1 * GB])),
            draw(st.sampled_from([0.5, 1.0, 2.0])),
        )
        for n in domains
        if draw(st.integers(0, 5)) > 0
    ]
    return loads, segments, domains


def applied(segments: list[Held], moves: list[balance.Move]) -> list[Held]:
    to = {move.replica: move.to for move in moves}
    return [
        Held(s.segment, s.size, {replica: to.get(replica, broker) for replica, broker in s.at.items()})
        for s in segments
    ]


@examples
@given(drive=drives())
def test_a_rebalance_keeps_domains_apart_and_makes_load_more_even(
    drive: tuple[list[Load], list[Held], dict[int, str]],
) -> None:
    loads, segments, domains = drive
    moves = balance.moves(loads, segments, domains)
    goal = balance.goals(loads)
    after = balance.after(loads, moves)
    for segment in applied(segments, moves):
        there = [domains[broker] for broker in segment.at.values()]
        assert len(set(there)) == len(there)
    taking_part = {load.id for load in loads}
    assert all(move.source in taking_part and move.to in taking_part for move in moves)
    far = sum((load.held - goal[load.id]) ** 2 for load in loads)
    if moves:
        assert sum((load.held - goal[load.id]) ** 2 for load in after) < far
    assert balance.within(loads) is False or moves == []


@examples
@given(drive=drives())
def test_a_rebalance_ends_and_each_of_its_moves_can_be_carried_out(
    drive: tuple[list[Load], list[Held], dict[int, str]],
) -> None:
    """Batch by batch until none is left; in a batch no copy goes where another copy of its segment still is."""
    loads, segments, domains = drive
    for _batch in range(12):
        moves = balance.moves(loads, segments, domains)
        if not moves:
            return
        for segment in segments:
            mine = [move for move in moves if move.segment == segment.segment]
            for move in mine:
                others = {
                    domains[broker] for replica, broker in segment.at.items() if replica != move.replica
                }
                assert domains[move.to] not in others
        loads, segments = balance.after(loads, moves), applied(segments, moves)
    raise AssertionError("it does not end")
