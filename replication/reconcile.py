"""The reconciler: drives what is to what the database says shall be.

It looks at rows that are due, `placement.plan` says what is needed, `transfer` acts, and each step ends in a
compare-and-set. It needs no key: it copies sealed bytes. Claiming a segment moves its `check_at` ahead, which
is a lease: nobody else takes it meanwhile, and a crash lets it run out.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Count, F, Q, QuerySet
from django.db.models.functions import Coalesce

from brokers import clock, entropy
from brokers.errors import BrokerError, Corrupt, NotFound
from brokers.failpoint import reach
from brokers.health import note_failure
from brokers.models import Broker
from brokers.names import new_object_key
from replication import (
    capacity,
    drain,
    incidents,
    placement,
    places,
    policy,
    rebalance,
    suspects,
    targets,
    transfer,
)
from replication.models import Content, Event, Policy, Replica, Segment
from replication.placement import Copy, Doom, Have, Plan, Stay, Verify
from replication.write import delete_after

log = logging.getLogger(__name__)
State = Replica.State

RETRY = timedelta(seconds=30)
RETRY_MOST = timedelta(minutes=15)
FULL_PASS = timedelta(hours=1)
# Rounds of plan and act on one segment; a plan that is not at rest by then waits for its next turn.
ROUNDS = 8
# Segments per window of a full pass.
WINDOW = 5000


@dataclass
class Report:
    """What a run did; `blocked` holds reasons with the number of segments each holds up."""

    looked_at: int = 0
    copied: int = 0
    verified: int = 0
    lost: int = 0
    doomed: int = 0
    failed: int = 0
    blocked: dict[str, int] = field(default_factory=dict)

    @property
    def actions(self) -> int:
        return self.copied + self.verified + self.lost + self.doomed + self.failed


# -- one segment --------------------------------------------------------------------------------------


def reconcile_segment(segment_id: int, report: Report | None = None) -> Report:
    """Bring one segment to rest, as far as the brokers allow. Idempotent; does nothing while another worker
    holds the segment, or when it is not due."""
    report = report or Report()
    now = clock.now()
    due = Q(check_at__isnull=True) | Q(check_at__lte=now)
    claimed = (
        Segment.objects.filter(due, pk=segment_id, content__state=Content.State.SEALED)
        .values_list("pk", flat=True)
        .first()
    )
    lease = now + settings.CLOUDSTORE_REPAIR_LEASE
    reach("reconcile.found")
    if claimed is None or not Segment.objects.filter(due, pk=segment_id).update(check_at=lease):
        return report
    report.looked_at += 1
    reach("reconcile.claimed")
    outcome = Plan(blocked="needs more rounds")
    try:
        for _round in range(ROUNDS):
            outcome = _round_of(segment_id, report, now)
            if not outcome.actions:
                break
    except Exception:
        # A row that always fails must not hold up the others: it waits longer each time.
        log.exception("reconciling segment %s failed", segment_id)
        outcome = Plan(blocked="failed; see the log")
    _release(segment_id, lease, outcome, report)
    return report


def _release(segment_id: int, lease: datetime, outcome: Plan, report: Report) -> None:
    """End the lease, unless the segment became due anew meanwhile."""
    mine = Segment.objects.filter(pk=segment_id, check_at=lease)
    if not outcome.actions and not outcome.blocked:
        mine.update(check_at=None, attempts=0, blocked="")
        return
    why = outcome.blocked or "actions failed"
    report.blocked[why] = report.blocked.get(why, 0) + 1
    attempts = Segment.objects.values_list("attempts", flat=True).get(pk=segment_id)
    now = clock.now()
    again_at = now + min(RETRY * 2 ** min(attempts, 10), RETRY_MOST)
    if outcome.again_at is not None and outcome.again_at > now:
        again_at = outcome.again_at
    mine.update(check_at=again_at, attempts=min(attempts + 1, 1000), blocked=why[:200])


def _round_of(segment_id: int, report: Report, since: datetime) -> Plan:
    """Plan from the rows as they are now, and act: -> the plan, whose actions are empty when nothing was left
    to do or nothing that was tried worked. What was proven before `since` is proven again before a copy goes."""
    segment = Segment.objects.select_related("content").get(pk=segment_id)
    rows = list(segment.replicas.select_related("broker").exclude(state=State.DOOMED))
    rules = policy.current()
    now = clock.now()
    all_brokers = {b.pk: b for b in Broker.objects.all()}
    seen = targets.load(all_brokers.values(), background=True)
    plan = placement.plan(
        policy.copies_of(segment.content, rules),
        [
            Have(r.pk, r.broker_id, r.state, r.verified_at, r.check_at, r.attempts, r.moves_to_id)
            for r in rows
        ],
        seen,
        size=segment.sealed_size,
        now=now,
        uniform=entropy.uniform,
        trim_after=targets.trim_after([r.broker for r in rows], rules),
        fresh_since=since,
    )
    by_id = {r.pk: r for r in rows}
    progress = False
    for action in plan.actions:
        if isinstance(action, Verify):
            progress |= _verify(by_id[action.replica], segment, report, since)
        elif isinstance(action, Copy):
            progress |= _copy(segment, all_brokers[action.broker], report)
        elif isinstance(action, Stay):
            progress |= bool(Replica.objects.filter(pk=action.replica).update(moves_to=None))
        else:
            progress |= _doom(by_id[action.replica], segment, action, report, since)
    if plan.actions and not progress:
        return Plan(blocked=plan.blocked or "the brokers refuse; trying again")
    return plan


def _verify(replica: Replica, segment: Segment, report: Report, since: datetime) -> bool:
    was = replica.state
    became = suspects.verify(replica, segment)
    report.verified += 1
    report.lost += became == State.LOST and was != State.LOST
    if became != was:
        return True
    return Replica.objects.filter(pk=replica.pk, state=State.STORED, verified_at__gte=since).exists()


def _copy(segment: Segment, broker: Broker, report: Report) -> bool:
    """One more copy of a segment on `broker`: plan, read a proven copy, put, compare-and-set."""
    key = new_object_key()
    try:
        with transaction.atomic():
            planned = Replica.objects.create(segment=segment, broker=broker, key=key)
    except IntegrityError:
        return False  # somebody else's copy of this segment is on its way to this broker
    reach("reconcile.planned")
    reason = "no source"
    data = _read_source(segment)
    if data is not None:
        try:
            locator = transfer.put(broker, key, data, segment.checksum)
        except BrokerError as error:
            note_failure(broker.pk, error)
            reason = error.code
        else:
            reach("reconcile.put")
            now = clock.now()
            with transaction.atomic():
                changed = Replica.objects.filter(pk=planned.pk, state=State.PLANNED).update(
                    state=State.STORED, locator=locator, stored_at=now, verified_at=now
                )
                if changed:
                    Event.objects.create(kind="copied", content=segment.content_id, broker=broker)
            report.copied += changed
            return bool(changed)
    report.failed += 1
    Replica.objects.filter(pk=planned.pk, state=State.PLANNED).update(
        state=State.DOOMED, reason=reason, check_at=delete_after(reason)
    )
    return False


def _read_source(segment: Segment) -> bytes | None:
    """The sealed bytes of a segment from the first replica that proves them. What fails on the way becomes
    suspect."""
    sources = segment.replicas.filter(state=State.STORED).select_related("broker")

    def rank(replica: Replica) -> tuple[bool, bool, float, int]:
        broker = replica.broker
        return not broker.readable, broker.reluctant, transfer.latency(broker), replica.pk

    for replica in sorted(sources, key=rank):
        try:
            data = transfer.fetch_whole(
                replica.broker, replica.locator, segment.sealed_size, segment.checksum
            )
        except (NotFound, Corrupt) as error:
            suspects.suspect(replica.pk, error.code)
        except BrokerError as error:
            note_failure(replica.broker_id, error)
        else:
            Replica.objects.filter(pk=replica.pk, state=State.STORED).update(verified_at=clock.now())
            return data
    return None


def _doom(replica: Replica, segment: Segment, action: Doom, report: Report, since: datetime) -> bool:
    """-> DOOMED, re-validated in its own transaction: a copy of proven or possible worth goes only while as
    many as shall be stay without it, each proven since this worker took the segment."""
    with transaction.atomic():
        # The row's update is the lock of the segment: two that drop copies at once would otherwise both see
        # the other's copy standing.
        Segment.objects.filter(pk=segment.pk).update(attempts=F("attempts"))
        now_state = Replica.objects.filter(pk=replica.pk).values_list("state", flat=True).first()
        if now_state != replica.state:
            return False
        if now_state in (State.STORED, State.SUSPECT, State.LOST) and not _stands_without(
            replica, segment, since
        ):
            return False
        changed = Replica.objects.filter(pk=replica.pk, state=replica.state).update(
            state=State.DOOMED, reason=action.reason, check_at=None, attempts=0, moves_to=None
        )
        if changed:
            Event.objects.create(
                kind="doomed", content=segment.content_id, broker_id=replica.broker_id, detail=action.reason
            )
    report.doomed += changed
    return bool(changed)


def _stands_without(replica: Replica, segment: Segment, since: datetime) -> bool:
    content = Content.objects.get(pk=segment.content_id)
    proven = segment.replicas.filter(state=State.STORED, verified_at__gte=since)
    others = proven.exclude(pk=replica.pk).select_related("broker")
    domains = {r.broker.domain for r in others if r.broker.readable}
    return len(domains) >= policy.copies_of(content, policy.held())


# -- finding what is due ------------------------------------------------------------------------------


def reconcile_content(content_id: uuid.UUID) -> Report:
    """Bring every due segment of one content to rest."""
    report = Report()
    rows = Segment.objects.filter(content=content_id, check_at__lte=clock.now()).order_by("position")
    for pk in list(rows.values_list("pk", flat=True)):
        reconcile_segment(pk, report)
    return report


def sweep(seconds: float = 60.0, *, full: bool = False) -> Report:
    """Find due segments and bring them to rest, for about so many seconds; the fewest copies first.

    `check_at` says what is due; a full pass over all segments sets it wherever the copies are not what they
    shall be. The pass runs when brokers or the policy changed, once an hour, and when asked for with `full`."""
    report = Report()
    until = clock.monotonic() + seconds
    places.settle()
    incidents.settle()
    capacity.measure()
    drain.step()
    rebalance.step()
    _full_pass(force=full)
    while clock.monotonic() < until:
        batch = list(_due()[:200])
        if not batch:
            break
        for pk in batch:
            reconcile_segment(pk, report)
            if clock.monotonic() >= until:
                break
    return report


def run_to_rest(*, rounds: int = 50) -> Report:
    """Everything that can be done now, waiting for nothing: `manage.py reconcile`. What waits for a back-off
    is tried at once; leases and dwells are honoured."""
    total = Report()
    for number in range(rounds):
        if number == 0:
            Segment.objects.filter(check_at__isnull=False).exclude(blocked="").update(check_at=clock.now())
        report = sweep(seconds=3600.0, full=True)
        total.looked_at += report.looked_at
        for name in ("copied", "verified", "lost", "doomed", "failed"):
            setattr(total, name, getattr(total, name) + getattr(report, name))
        total.blocked = report.blocked if report.looked_at else total.blocked
        if not report.looked_at:
            break
    return total


def _due() -> QuerySet[Segment, int]:
    """Ids of segments that are due, those with the fewest good copies first."""
    stored = Count("replicas", filter=Q(replicas__state=State.STORED))
    return (
        Segment.objects.filter(check_at__lte=clock.now(), content__state=Content.State.SEALED)
        .annotate(stored=stored)
        .order_by("stored", "check_at")
        .values_list("pk", flat=True)
    )


def _full_pass(*, force: bool) -> None:
    """Set `check_at` wherever the copies are not what they shall be, if it is time for that."""
    rules = policy.current()
    brokers = list(Broker.objects.all())
    now = clock.now()
    seen = targets.fingerprint(brokers, rules)
    changed = seen != rules.swept_fingerprint
    if not (force or changed or rules.swept_at is None or now - rules.swept_at > FULL_PASS):
        return
    if changed:
        # What was blocked may have a way now.
        Segment.objects.filter(check_at__isnull=False).exclude(blocked="").update(check_at=now)
    for pks in _off_target(brokers, rules):
        for window in places.windows(pks):
            Segment.objects.filter(pk__in=window, check_at__isnull=True).update(check_at=now)
    Policy.objects.filter(pk=rules.pk).update(swept_fingerprint=seen, swept_at=now)


def _off_target(brokers: Iterable[Broker], rules: Policy) -> Iterator[list[int]]:
    """Ids of sealed contents' segments whose copies differ from what they shall be, in windows of ids."""
    counting = [pk for pk, t in targets.load(brokers).items() if t.counts]
    good = Q(replicas__state=State.STORED, replicas__broker__in=counting)
    unsettled = Q(replicas__state__in=(State.PLANNED, State.SUSPECT, State.LOST))
    moving = Q(replicas__moves_to__isnull=False)
    low, top = -1, Segment.objects.order_by("-pk").values_list("pk", flat=True).first()
    while top is not None and low < top:
        rows = (
            Segment.objects.filter(pk__gt=low, pk__lte=low + WINDOW, content__state=Content.State.SEALED)
            .annotate(
                domains=Count("replicas__broker__domain", distinct=True, filter=good),
                copies=Count("replicas", distinct=True, filter=good),
                open_ends=Count("replicas", distinct=True, filter=unsettled | moving),
                wanted=Coalesce("content__copies", rules.copies),
            )
            .filter(~Q(domains=F("wanted")) | ~Q(copies=F("wanted")) | Q(open_ends__gt=0))
            .order_by()
        )
        pks = list(rows.values_list("pk", flat=True))
        if pks:
            yield pks
        low += WINDOW
