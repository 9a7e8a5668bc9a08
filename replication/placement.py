"""Where copies go, and what a segment needs: pure functions over plain values.

No IO, no database, no clock: the caller says what is, these say what shall be done. The executor
(replication/reconcile.py) re-validates each action against the rows when it acts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median

from replication.models import Replica

State = Replica.State

# A suspect that could not be looked at so often no longer counts, though its broker seems well.
SUSPECT_ATTEMPTS = 5
# What goes from a broker that it leaves: a LOST one is dropped as such.
LEFT = (State.STORED, State.SUSPECT)


@dataclass(frozen=True, slots=True)
class Target:
    """A broker as placement sees it. `counts`: its replicas count as copies (it is well, or its outage is
    younger than the dwell). `available` in bytes, beyond what is kept free, None where the provider won't say.
    `leaving`: it is being drained, so its replicas stay just until as many copies stand elsewhere. `reluctant`: it
    gets a copy only where no other broker can."""

    id: int
    domain: str
    readable: bool = True
    writable: bool = True
    counts: bool = True
    available: int | None = None
    weight: float = 1.0
    leaving: bool = False
    reluctant: bool = False


@dataclass(frozen=True, slots=True)
class Have:
    """A replica as placement sees it. `to`: the broker that shall have it instead."""

    id: int
    broker: int
    state: str
    verified_at: datetime | None = None
    check_at: datetime | None = None
    attempts: int = 0
    to: int | None = None


@dataclass(frozen=True, slots=True)
class Copy:
    broker: int


@dataclass(frozen=True, slots=True)
class Verify:
    replica: int


@dataclass(frozen=True, slots=True)
class Doom:
    replica: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stay:
    """Forget where the replica was to move: that cannot be any more."""

    replica: int


Action = Copy | Verify | Doom | Stay


@dataclass(slots=True)
class Plan:
    """What to do now; empty and not blocked means at rest. `blocked` says in words why the segment cannot
    reach its copies yet; `again_at` when looking again is worth it, when that is known."""

    actions: list[Action] = field(default_factory=list)
    blocked: str = ""
    again_at: datetime | None = None


def choose(
    targets: Iterable[Target],
    count: int,
    size: int,
    uniform: Callable[[], float],
    *,
    taken_domains: Collection[str] = (),
    tried: Collection[int] = (),
) -> list[int]:
    """Up to `count` brokers on distinct domains for an object of `size` bytes.

    Drawn at random in proportion to weight x free space, without repetition of a domain (the keys of
    Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006), so that load follows free space
    without any memory. A broker that won't tell its space counts as the median of those that do. Returns fewer
    than `count` when there are no more fitting domains. Reluctant brokers are drawn after all others."""
    fitting = [t for t in targets if t.id not in tried and t.domain not in taken_domains and fits(t, size)]
    known = [t.available for t in fitting if t.available is not None]
    typical = float(median(known)) if known else 1.0
    keyed: list[tuple[bool, float, int, Target]] = []
    for t in fitting:
        share = t.weight * (typical if t.available is None else float(t.available))
        if share > 0:
            key = max(uniform(), 1e-12) ** (1.0 / share_scaled(share, typical))
            keyed.append((not t.reluctant, key, t.id, t))
    keyed.sort(reverse=True, key=lambda item: item[:3])
    chosen: list[int] = []
    domains: set[str] = set()
    for _eager, _key, _id, t in keyed:
        if len(chosen) == count:
            break
        if t.domain not in domains:
            chosen.append(t.id)
            domains.add(t.domain)
    return chosen


def fits(target: Target, size: int) -> bool:
    """Whether a broker takes another object of `size` bytes now."""
    room = target.available is None or target.available >= size
    return target.writable and not target.leaving and room


def share_scaled(share: float, typical: float) -> float:
    """A share relative to the typical one: the draw depends on ratios alone, and powers of 1/terabytes would
    all round to one."""
    return max(share / typical, 1e-9)


def _counted(replicas: Iterable[Have], targets: Mapping[int, Target], now: datetime) -> dict[str, list[Have]]:
    """The replicas that count as copies, by domain: STORED on a broker that counts, and SUSPECT ones that wait
    for another look, or for their broker (an outage is never a loss)."""
    by_domain: dict[str, list[Have]] = {}
    for r in replicas:
        target = targets[r.broker]
        later = not target.readable or (r.check_at is not None and r.check_at > now)
        waiting = r.state == State.SUSPECT and later and r.attempts < SUSPECT_ATTEMPTS
        if target.counts and (r.state == State.STORED or waiting):
            by_domain.setdefault(target.domain, []).append(r)
    return by_domain


def plan(
    wanted: int,
    replicas: Sequence[Have],
    targets: Mapping[int, Target],
    *,
    size: int,
    now: datetime,
    uniform: Callable[[], float],
    trim_after: datetime,
    fresh_since: datetime,
) -> Plan:
    """What one segment needs to have `wanted` copies on distinct domains.

    Suspects are looked at before anything is copied; copies are made before anything is dropped; nothing is
    dropped before a copy that stays was proven at `fresh_since` or later (so not the last good one either,
    whatever has happened to the others since somebody looked), what is too many not before `trim_after`. A plan
    carried out and made again is empty.

    A replica on a broker that is being drained, and one whose copy stands where it was to move, is leaving: it is
    no copy that counts, and goes without a dwell once `wanted` others stand."""
    result = Plan()

    # An attempt that nobody finished: the object may exist or not, so it goes, and its key with it.
    result.actions += [Doom(r.id, "abandoned") for r in replicas if r.state == State.PLANNED]

    due_suspects = [
        r
        for r in replicas
        if r.state == State.SUSPECT
        and targets[r.broker].readable
        and (r.check_at is None or r.check_at <= now)
    ]
    result.actions += [Verify(r.id) for r in due_suspects]
    if due_suspects:
        return result

    leaving = _leaving(replicas, targets)
    counted = _counted([r for r in replicas if r.id not in leaving], targets, now)
    if not any(r.state == State.STORED for r in replicas):
        # Nothing good is left to copy from: a lost replica may have come back.
        lost = [r for r in replicas if r.state == State.LOST and targets[r.broker].readable]
        retry = [Verify(r.id) for r in lost if r.check_at is None or r.check_at <= now]
        result.actions += retry
        if not retry:
            result.blocked = "no intact copy is known"
        return result

    missing = wanted - len(counted)
    if missing > 0:
        taken = {
            targets[r.broker].domain
            for r in replicas
            if r.state in Replica.LIVE and r.state != State.PLANNED and r.id not in leaving
        }
        holding = {r.broker for r in replicas if r.state in Replica.LIVE}
        chosen = choose(targets.values(), missing, size, uniform, taken_domains=taken, tried=holding)
        result.actions += [Copy(broker) for broker in chosen]
        if len(chosen) < missing:
            result.blocked = f"{wanted} copies need {missing - len(chosen)} more healthy domain(s) with space"
        return result

    waiting = [r for r in replicas if r.state == State.SUSPECT and r.id not in leaving]
    if waiting:
        looks = [r.check_at for r in waiting if r.check_at is not None and r.check_at > now]
        result.blocked, result.again_at = "a suspect copy waits for another look", min(looks, default=None)
        return result

    moving = [r for r in replicas if r.to is not None and r.state == State.STORED and r.id not in leaving]
    if moving:
        result.actions += [_move(r, replicas, targets, size) for r in moving]
        return result

    # The copies stand, as far as is known: what was found lost goes, what leaves, and what is too many.
    gone = [Doom(r.id, "replaced") for r in replicas if r.state == State.LOST]
    gone += [Doom(r.id, leaving[r.id]) for r in replicas if r.id in leaving and r.state in LEFT]
    _trim(result, wanted, counted, gone, targets, now, trim_after, fresh_since)
    return result


def _leaving(replicas: Sequence[Have], targets: Mapping[int, Target]) -> dict[int, str]:
    """The replicas that are to go from where they are, with the reason. One that moves leaves only once its copy
    stands at the other broker, and stays there."""
    stored = {r.broker for r in replicas if r.state == State.STORED and r.to is None}
    reasons = {}
    for r in replicas:
        if targets[r.broker].leaving:
            reasons[r.id] = "drained"
        elif r.to in stored and r.to != r.broker and _stays(targets.get(r.to)):
            reasons[r.id] = "moved"
    return reasons


def _stays(target: Target | None) -> bool:
    return target is not None and target.counts and not target.leaving


def _move(r: Have, replicas: Sequence[Have], targets: Mapping[int, Target], size: int) -> Action:
    """The copy that lets `r` leave, or an end of the wish when its new place is no better any more: it is full,
    gone, or its domain has another copy."""
    to = targets.get(r.to) if r.to is not None else None
    others = [o for o in replicas if o.id != r.id and o.state in Replica.LIVE]
    taken = {targets[o.broker].domain for o in others}
    if to is None or to.id == r.broker or to.domain in taken or not _stays(to) or not fits(to, size):
        return Stay(r.id)
    return Copy(to.id)


def _trim(
    result: Plan,
    wanted: int,
    counted: Mapping[str, list[Have]],
    gone: Sequence[Doom],
    targets: Mapping[int, Target],
    now: datetime,
    trim_after: datetime,
    fresh_since: datetime,
) -> None:
    """Drop `gone` (what was found lost, what leaves), what is beyond `wanted`, and second copies within one
    domain."""

    known = [t.available for t in targets.values() if t.available is not None]
    typical = float(median(known)) if known else 1.0

    def worth(r: Have) -> tuple[bool, bool, float, int]:
        t = targets[r.broker]
        space = t.weight * (typical if t.available is None else float(t.available))
        return (t.readable, t.writable, space, -r.id)

    best = [max(rs, key=worth) for rs in counted.values()]
    best.sort(key=worth, reverse=True)
    keep = best[:wanted]
    kept_ids = {r.id for r in keep}
    extra = [r for rs in counted.values() for r in rs if r.id not in kept_ids]
    if not extra and not gone:
        return
    if not all(targets[r.broker].readable for r in keep):
        what = "a copy too many" if extra else "a copy that is to go"
        result.blocked = f"{what} stays until the others can be read"
        return
    dwells = bool(extra) and trim_after > now
    if dwells:
        result.blocked, result.again_at = "a copy too many stays for the dwell time", trim_after
        if not gone:
            return
    stale = [r for r in keep if r.verified_at is None or r.verified_at < fresh_since]
    if stale:
        result.actions += [Verify(r.id) for r in stale]
        return
    result.actions += gone
    if not dwells:
        result.actions += [Doom(r.id, "too many") for r in extra]
