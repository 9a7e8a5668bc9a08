"""Rebalancing: load moves in proportion to free space.

`balance.moves` says which copies; each is marked with the broker that shall have it (`Replica.moves_to`) and due,
and the reconciler copies, verifies and deletes as it always does. So it is resumable by nature: what is marked is in
the database. Batches are planned from the loads as they are then, no faster than CLOUDSTORE_REBALANCE_RATE, and the
run ends when the loads are within the tolerance or nothing may move.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Count, QuerySet, Sum

from brokers import clock
from brokers.failpoint import reach
from brokers.health import poll
from brokers.models import Broker
from replication import balance, policy, targets
from replication.balance import Held, Load, Move
from replication.models import Content, Event, Policy, Replica, Segment

log = logging.getLogger(__name__)
State = Replica.State

# At most so much is marked at a time.
BATCH_BYTES = 256 * 1024 * 1024
BATCH = 500
WINDOW = 1000
# Capacities older than this are asked for again before a batch is planned.
MEASURED = timedelta(seconds=15)


@dataclass
class Share:
    """One broker's part: `goal` is what it should hold."""

    broker: str
    held: int
    goal: int

    @property
    def off(self) -> float:
        """How far it is from its goal, as a part of the goal."""
        return abs(self.held - self.goal) / self.goal if self.goal else 0.0


@dataclass
class Outlook:
    """How load stands, and what a rebalance would still do: `moves` copies of `bytes`. `pending` and
    `pending_bytes` are marked and under way. `blocked` says why an uneven load stays as it is."""

    running: bool
    balanced: bool
    pending: int
    pending_bytes: int
    moves: int = 0
    bytes: int = 0
    seconds_left: int | None = None
    blocked: str = ""
    shares: list[Share] = field(default_factory=list)


def begin() -> None:
    """Let the reconciler's sweeps move load from now on, until it is even. Idempotent."""
    policy.current()
    with transaction.atomic():
        if Policy.objects.filter(pk=1, rebalancing_since=None).update(
            rebalancing_since=clock.now(), rebalance_at=None
        ):
            Event.objects.create(kind="rebalance begun")


def stop() -> None:
    """End it now: no copy is marked any more. One that stands twice by then is dropped once, after the dwell for
    copies too many. Idempotent."""
    with transaction.atomic():
        if Policy.objects.filter(pk=1).exclude(rebalancing_since=None).update(rebalancing_since=None):
            Event.objects.create(kind="rebalance stopped")
        Replica.objects.exclude(moves_to=None).update(moves_to=None)


def look() -> Outlook:
    """How load stands, and all moves that would be made now. Changes nothing, asks no broker."""
    rules = policy.current()
    marked = pending().aggregate(n=Count("pk"), size=Sum("segment__sealed_size"))
    loads = _loads()
    goal = balance.goals(loads)
    names = {broker.pk: broker.name for broker in Broker.objects.all()}
    outlook = Outlook(
        running=rules.rebalancing_since is not None,
        balanced=balance.within(loads),
        pending=marked["n"],
        pending_bytes=marked["size"] or 0,
        shares=[Share(names[load.id], load.held, round(goal[load.id])) for load in loads],
    )
    if not outlook.balanced:
        domains = _domains()
        for segments in _candidates(loads):
            found = balance.moves(loads, segments, domains)
            loads = balance.after(loads, found)
            outlook.moves += len(found)
            outlook.bytes += sum(move.size for move in found)
        if not outlook.moves and not outlook.pending:
            outlook.blocked = "no copy may move: every broker with room shares a domain with the other copies"
    outlook.seconds_left = round((outlook.bytes + outlook.pending_bytes) / settings.CLOUDSTORE_REBALANCE_RATE)
    return outlook


def pending() -> QuerySet[Replica]:
    """The copies that are marked to move."""
    return Replica.objects.filter(
        moves_to__isnull=False, segment__content__state=Content.State.SEALED
    ).exclude(state=State.DOOMED)


def step() -> int:
    """Mark the next batch of copies, when one is due: -> how many. Ends the run when there is nothing to move.
    Every sweep calls it; idempotent, any number of processes may. Outside any transaction."""
    rules = policy.current()
    now = clock.now()
    if rules.rebalancing_since is None or (rules.rebalance_at is not None and rules.rebalance_at > now):
        return 0
    if pending().exists():
        return 0
    for broker in Broker.objects.filter(enabled=True):
        if broker.writable and (broker.measured_at is None or now - broker.measured_at > MEASURED):
            poll(broker.pk)
    loads = _loads()
    domains = _domains()
    batch: list[Move] = []
    if not balance.within(loads):
        for segments in _candidates(loads):
            batch = balance.moves(loads, segments, domains, most=BATCH_BYTES)[:BATCH]
            if batch:
                break
    return _mark(rules, batch)


def _mark(rules: Policy, batch: list[Move]) -> int:
    now = clock.now()
    size = sum(move.size for move in batch)
    changes: dict[str, Any] = {
        "rebalance_at": now + timedelta(seconds=size / settings.CLOUDSTORE_REBALANCE_RATE)
    }
    if not batch:
        changes["rebalancing_since"] = None
    marked = 0
    with transaction.atomic():
        # Of two that planned at once, one marks.
        mine = Policy.objects.filter(
            pk=rules.pk, rebalancing_since=rules.rebalancing_since, rebalance_at=rules.rebalance_at
        )
        if not mine.update(**changes):
            return 0
        if not batch:
            Event.objects.create(kind="rebalanced")
            return 0
        due: set[int] = set()
        for move in batch:
            # A segment that is being worked on is left alone; a later batch sees it again.
            at_rest = Segment.objects.filter(pk=move.segment, check_at=None)
            if move.segment not in due and not at_rest.update(check_at=now):
                continue
            due.add(move.segment)
            here = Replica.objects.filter(pk=move.replica, broker=move.source, state=State.STORED)
            marked += here.update(moves_to=move.to)
    reach("rebalance.marked")
    return marked


def _loads() -> list[Load]:
    """What each broker that takes part holds: those that take new copies now, and not only as a last resort."""
    rows = Replica.objects.order_by().values("broker", "state").annotate(size=Sum("segment__sealed_size"))
    held: dict[int, int] = {}
    doomed: dict[int, int] = {}
    for row in rows:
        of = doomed if row["state"] == State.DOOMED else held
        of[row["broker"]] = of.get(row["broker"], 0) + row["size"]
    return [
        Load(t.id, t.domain, held.get(t.id, 0), t.available, t.weight, doomed.get(t.id, 0))
        for t in targets.load(background=True).values()
        if t.writable and not t.reluctant
    ]


def _domains() -> dict[int, str]:
    return dict(Broker.objects.values_list("pk", "domain"))


def _candidates(loads: list[Load]) -> Iterator[list[Held]]:
    """Segments at rest with a copy on a broker that holds more than its goal, in windows."""
    goal = balance.goals(loads)
    sources = [load.id for load in loads if load.held > goal[load.id]]
    low = -1
    while True:
        rows = Segment.objects.filter(
            pk__gt=low,
            check_at=None,
            content__state=Content.State.SEALED,
            replicas__broker__in=sources,
            replicas__state=State.STORED,
        )
        window = list(rows.order_by("pk").distinct().values_list("pk", "sealed_size")[:WINDOW])
        if not window:
            return
        low = window[-1][0]
        at: dict[int, dict[int, int]] = {pk: {} for pk, _size in window}
        live = Replica.objects.filter(segment__in=list(at)).exclude(state=State.DOOMED)
        for pk, segment, broker in live.order_by("pk").values_list("pk", "segment_id", "broker_id"):
            at[segment][pk] = broker
        yield [Held(pk, size, at[pk]) for pk, size in window]
